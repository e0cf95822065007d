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

import torch

from archir.diag import ArchirError, error
from archir.ir.graph import Graph
from archir.ops.arithmetic import Array
from archir.train.device import weights_of
from archir.train.ema import Ema
from archir.weights.store import Weights, load_metadata, load_weights, save_weights

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
                arrays[f"{slot}/{parameter_path}"] = value.detach().cpu().contiguous().numpy()
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

    def restore(self, live: Live) -> None:
        """Put everything back in place.

        Raises:
            ArchirError: A637, the checkpoint is of another network or optimizer.
        """
        _put(self.path, live.module, live.graph, self.under(WEIGHTS))
        if live.ema is not None:
            _put(self.path, live.ema.module, live.graph, self.under(EMA))
        slots = {k for k in self.arrays if not k.startswith((WEIGHTS, EMA))}
        for path, parameter in live.optimized():
            state: dict[str, Any] = {}
            for key in sorted(k for k in slots if k.partition("/")[2] == path):
                slot, stored = key.partition("/")[0], torch.from_numpy(self.arrays[key].copy())
                if slot == "step":
                    state[slot] = stored
                    continue
                if stored.shape != parameter.shape:
                    raise _unfit(self.path, f"{key} has the shape {list(stored.shape)}")
                kept = stored.to(parameter.device, parameter.dtype)
                state[slot] = torch.empty_like(parameter).copy_(kept)
            if state:
                live.optimizer.state[parameter] = state
        live.scaler.load_state_dict(dict(self.counters["scaler"]))


def _put(file: Path, module: torch.nn.Module, graph: Graph, weights: Mapping[str, Array]) -> None:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for path in graph.parameters:
        stored = weights.get(path)
        if stored is None or path not in own or tuple(own[path].shape) != stored.shape:
            raise _unfit(file, f"`{path}` is missing or of another shape")
        with torch.no_grad():
            own[path].copy_(torch.from_numpy(stored.copy()))


def _unfit(file: Path, what: str) -> ArchirError:
    return error("A637", f"{file} is no checkpoint of this run: {what}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ArchirError: A601 or A610, it cannot be read; A637, it is no checkpoint.
    """
    arrays = load_weights(path)
    try:
        counters = json.loads(load_metadata(path)[_KEY])
    except (KeyError, ValueError, RecursionError):
        counters = None
    if not isinstance(counters, dict):
        raise error("A637", f"{path} is no checkpoint of `archir train`")
    return Checkpoint(path, arrays, counters)
