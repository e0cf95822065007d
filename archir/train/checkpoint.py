"""Where a training run stands, in one file that is put in place whole.

The file is safetensors: ``weights/PATH``, ``ema/PATH`` and ``SLOT/PATH`` for each slot of the
optimizer (``momentum_buffer``, ``exp_avg``, ...). Its metadata hold the counters of the run as
JSON. No generator is stored: all random draws are functions of the seed and the step. Importing
this module needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archir.diag import ArchirError, error
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.train.device import weights_of
from archir.train.ema import Ema
from archir.train.logs import ANEW
from archir.weights.store import (
    Weights,
    load_metadata,
    load_weights,
    numpy_dtype,
    save_weights,
)

_KEY = "archir.checkpoint"
WEIGHTS, EMA = "weights/", "ema/"


@dataclass
class Live:
    """A network in training: what a step changes, and what a growth replaces.

    ``module`` is the lowered network itself, never a wrapper of it.
    """

    graph: Graph
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    scaler: torch.amp.GradScaler

    @property
    def scored(self) -> torch.nn.Module:
        """The network that is validated and saved: the average, where there is one."""
        return self.module if self.ema is None else self.ema.module

    def optimized(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters that the optimizer holds, by path."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for path, parameter in self.module.named_parameters():
            if id(parameter) in held:
                yield path, parameter

    def is_finite(self) -> bool:
        """Whether every parameter is a number."""
        largest = [p.detach().abs().max() for p in self.module.parameters() if p.numel()]
        return bool(torch.isfinite(torch.stack([x.float() for x in largest])).all())


def save_checkpoint(path: Path, live: Live, counters: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically: whatever stood there stays until the new one is whole.

    Raises:
        ArchirError: A602, it cannot be written (a full disk, for one).
    """
    arrays = {WEIGHTS + p: a for p, a in weights_of(live.module, live.graph).items()}
    if live.ema is not None:
        arrays |= {EMA + p: a for p, a in weights_of(live.ema.module, live.graph).items()}
    for parameter_path, parameter in live.optimized():
        for slot, value in live.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                arrays[f"{slot}/{parameter_path}"] = _array(value)
    stored = {**counters, "scaler": live.scaler.state_dict()}
    save_weights(path, arrays, {_KEY: json.dumps(stored, sort_keys=True)})


def save_weights_alone(path: Path, weights: Weights, counters: Mapping[str, Any]) -> None:
    """Write weights as a checkpoint that cannot be continued from.

    Raises:
        ArchirError: A602, it cannot be written.
    """
    arrays = {WEIGHTS + p: a for p, a in weights.items()}
    save_weights(path, arrays, {_KEY: json.dumps(dict(counters), sort_keys=True)})


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint's file."""

    path: Path
    arrays: Mapping[str, Array]
    counters: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Array]:
        """The tensors of a kind, by path."""
        return {k.removeprefix(prefix): a for k, a in self.arrays.items() if k.startswith(prefix)}

    def checked_counters(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The counters, all there and of the kinds that ``own`` are, those of a new run.

        A list of one mapping in ``own`` stands for any number of such.

        Raises:
            ArchirError: A637, the file is damaged.
        """
        for name, value in own.items():
            if not _alike(self.counters.get(name), value):
                raise self.unfit(f"its entry `{name}` is missing or damaged")
        return {name: self.counters[name] for name in own}

    def unfit(self, what: str) -> ArchirError:
        """The error of a checkpoint that cannot be used."""
        return error(
            "A637",
            f"{self.path} is no checkpoint of this run: {what}",
            hint=ANEW,
        )

    def restore(self, live: Live) -> None:
        """Put everything back in place.

        Raises:
            ArchirError: A637, the checkpoint is damaged, or of another network or optimizer.
        """
        slots = SLOTS[type(live.optimizer)]
        known = {f"{slot}/{path}" for path, _ in live.optimized() for slot in slots}
        for kind in (WEIGHTS, *([EMA] if live.ema is not None else [])):
            known.update(kind + path for path in live.graph.parameters)
        unknown = sorted(self.arrays.keys() - known)
        if unknown:
            raise self.unfit(f"there is no place for `{unknown[0]}`")
        self._put(live.module, live.graph, self.under(WEIGHTS))
        if live.ema is not None:
            self._put(live.ema.module, live.graph, self.under(EMA))
        for path, parameter in live.optimized():
            state = self._state(path, parameter, live.optimizer)
            if state:
                live.optimizer.state[parameter] = state
        scaler = live.scaler.state_dict()
        if not _alike(self.counters.get("scaler"), scaler):
            raise self.unfit("its entry `scaler` is missing or damaged")
        live.scaler.load_state_dict(dict(self.counters["scaler"]))

    def _put(self, module: torch.nn.Module, graph: Graph, weights: Mapping[str, Array]) -> None:
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for path in graph.parameters:
            stored = weights.get(path)
            if stored is None:
                raise self.unfit(f"`{path}` is missing")
            with torch.no_grad():
                own[path].copy_(self._fitting(path, stored, own[path]))

    def _fitting(self, name: str, stored: Array, own: torch.Tensor) -> torch.Tensor:
        """A stored tensor, which has the shape and type of one that is there."""
        found, wanted = (stored.dtype.name, stored.shape), (str(own.dtype)[6:], tuple(own.shape))
        if found != wanted:
            told = [f"{kind}{list(shape)}" for kind, shape in (found, wanted)]
            raise self.unfit(f"`{name}` is {told[0]}, expected {told[1]}")
        return _tensor(stored)

    def _state(
        self, path: str, parameter: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> dict[str, torch.Tensor]:
        """What an optimizer keeps of a parameter: nothing before its first step, else all."""
        slots = SLOTS[type(optimizer)]
        found = {s: self.arrays[f"{s}/{path}"] for s in slots if f"{s}/{path}" in self.arrays}
        if found and len(found) < len(slots):
            raise self.unfit(f"the optimizer's state of `{path}` is not whole")
        state: dict[str, torch.Tensor] = {}
        for slot, array in found.items():
            if slot == "step":  # on the CPU, wherever the parameter lies
                stored = self._fitting(f"{slot}/{path}", array, torch.zeros(()))
                if not stored >= 0:
                    raise self.unfit(f"`{slot}/{path}` is no number of steps")
                state[slot] = stored
                continue
            # laid out as the parameter is, which is how torch would have made it
            stored = self._fitting(f"{slot}/{path}", array, parameter)
            state[slot] = torch.empty_like(parameter).copy_(stored)
        return state


def _array(tensor: torch.Tensor) -> Array:
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:  # which NumPy has not of its own
        return plain.view(torch.uint16).numpy().view(numpy_dtype("bf16"))
    found: Array = plain.numpy()
    return found


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


SLOTS: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
"""What each optimizer keeps of a parameter."""


def _alike(stored: object, own: object) -> bool:
    """Whether JSON values are of one kind, down to their entries."""
    if isinstance(own, dict):
        return (
            isinstance(stored, dict)
            and stored.keys() == own.keys()
            and all(_alike(stored[k], own[k]) for k in own)
        )
    if isinstance(own, list):
        if not isinstance(stored, list):
            return False
        if own and isinstance(own[0], dict):
            return all(_alike(entry, own[0]) for entry in stored)
        return len(stored) == len(own) and all(map(_alike, stored, own))
    if isinstance(own, float):
        return isinstance(stored, int | float) and not isinstance(stored, bool)
    return type(stored) is type(own)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ArchirError: A601, it cannot be read; A637, it is damaged or no checkpoint.
    """
    arrays: Weights = {}
    try:
        arrays = load_weights(path)
        counters = json.loads(load_metadata(path)[_KEY])
    except ArchirError as failure:
        found = failure.diagnostics[0]
        if found.code == "A601":
            raise
        raise error("A637", found.message, hint=ANEW) from None
    except (KeyError, ValueError, RecursionError):
        counters = None
    if not isinstance(counters, dict):
        raise error("A637", f"{path} is no checkpoint of `archir train`")
    return Checkpoint(path, arrays, counters)
