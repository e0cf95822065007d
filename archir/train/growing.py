"""Growing a network while it is trained: the changes of a timetable, applied when they are due.

At a growth everything that training holds moves through the rewrite: the weights and their
running average by the terms of the rule, the optimizer's moments by its gradient map
(:mod:`archir.train.state`). The grown network is saved whole in the run folder, with its
certificate: a ``train`` step for what was trained up to there, a ``rewrite`` step for the growth.

Importing this module needs torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from archir.api import Network, Rewritten, load
from archir.diag import ArchirError, error
from archir.files import cannot_write
from archir.ir.graph import Graph
from archir.proof.certificate import state_of
from archir.train.checkpoint import Live
from archir.train.data import Dataset, calibration_of
from archir.train.device import weights_of
from archir.train.ema import Ema
from archir.train.logs import ANEW, METRICS
from archir.train.recipe import TrainConfig, train_facts
from archir.train.state import Fate, State
from archir.train.timetable import Change, check_times, named, rehearse

NETWORKS = "networks"
"""The folder of a run that holds the grown networks: ``1.arch`` and what belongs to it, ..."""


class Growing:
    """The growths of one run: a :class:`archir.train.loop.Growth`."""

    def __init__(
        self,
        network: Network,
        changes: Sequence[Change],
        dataset: Dataset,
        config: TrainConfig,
        *,
        earlier: int = 0,
    ) -> None:
        """Keep what is to be done; nothing is tried before :meth:`begin`.

        Args:
            network: The network that training starts from, with its weights.
            changes: The growths in the order in which they come.
            dataset: What is trained on.
            config: How.
            earlier: Steps that the optimizer took before this run.
        """
        self.earlier = earlier
        self.changes, self.dataset, self.config = tuple(changes), dataset, config
        self._networks = {0: network}
        self._dues: list[int] = []
        self.lines: list[dict[str, Any]] = []
        """What the metrics say of each growth so far."""

    def begin(self, per_epoch: int, steps: int) -> None:
        """Try the timetable on the text alone.

        Raises:
            ArchirError: A681, a growth is out of order or beyond the run; A3xx or A4xx, one is
                not possible.
        """
        check_times(self.changes, per_epoch, steps)
        rehearse(self._networks[0], self.changes)
        self._dues = [change.due(per_epoch) for change in self.changes]

    def due(self, step: int, stage: int) -> bool:
        """Whether the network grows before this step."""
        return stage < len(self._dues) and self._dues[stage] <= step

    def record(self) -> list[dict[str, Any]]:
        """The timetable as JSON values."""
        return [change.record(self._networks[0]) for change in self.changes]

    def grow(
        self, live: Live, step: int, stage: int, folder: Path | None
    ) -> tuple[Live, Sequence[Mapping[str, Any]]]:
        """The network after its next growth, with its optimizer, and a line on it for the log.

        Raises:
            ArchirError: A3xx or A4xx, the growth is not possible; A602, the folder cannot be
                written; A65x, the optimizer's state cannot be moved.
        """
        change = self.changes[stage]
        present = self._trained(live, stage, step, folder)
        state = State.of(
            present,
            live.optimizer,
            module=live.module,
            ema=None if live.ema is None else weights_of(live.ema.module, live.graph),
            scaler=live.scaler.state_dict() or None,
            step=self.earlier + step,
        )
        try:
            moved = state.apply(
                change.applications,
                seed=change.seed,
                calibration=calibration_of(live.graph, self.dataset, self.config.seed),
            )
        except ArchirError as failure:
            raise named(failure, stage + 1, change) from None
        if folder is not None:
            try:
                (folder / NETWORKS).mkdir(exist_ok=True)
            except OSError as reason:
                raise cannot_write(folder / NETWORKS, reason) from reason
            moved.state.save(_kept(folder, stage + 1), force=True)
        self._networks[stage + 1] = moved.state.network
        self.lines.append(_line(stage + 1, change, moved.rewritten, moved.fates))
        return self._live(moved.state, live), self.lines[-1:]

    def restored(self, live: Live, stage: int, folder: Path) -> Live:
        """The network after so many growths, as the run folder keeps it.

        Raises:
            ArchirError: A637, it is missing or damaged.
        """
        state = self._stored(stage, folder)
        self._networks[stage] = state.network
        self.lines = _logged(folder)[:stage]
        return self._live(state, live)

    def graph(self, stage: int, folder: Path | None) -> Graph:
        """The graph after so many growths.

        Raises:
            ArchirError: A637, it is missing or damaged.
        """
        return self.network(stage, folder).graph

    def network(self, stage: int, folder: Path | None) -> Network:
        """The network as it was right after so many growths, with its certificate.

        Raises:
            ArchirError: A637, it is missing or damaged.
        """
        if stage not in self._networks:
            assert folder is not None, "what is not in memory was resumed from a folder"
            self._networks[stage] = self._stored(stage, folder).network
        return self._networks[stage]

    def since(self, stage: int) -> int:
        """The step before which the network grew for that time; 0 where it had not."""
        return self._dues[stage - 1] if stage else 0

    def _trained(self, live: Live, stage: int, step: int, folder: Path | None) -> Network:
        """The network of a stage with what it learned by a step, which its certificate says."""
        found, since = self.network(stage, folder), self.since(stage)
        if since == step:
            return found
        facts = train_facts(self.dataset, self.config, since, step)
        return found.with_weights(weights_of(live.module, live.graph), "train", facts)

    def _live(self, state: State, like: Live) -> Live:
        """A state on the device of another one, with what is averaged there."""
        module, optimizer = state.to_torch(next(like.module.parameters()).device)
        if self.config.channels_last:
            module.to(memory_format=torch.channels_last)
            for parameter, held in optimizer.state.items():
                for slot, value in held.items():
                    if value.shape == parameter.shape:  # in memory as it is stepped through
                        held[slot] = torch.empty_like(parameter).copy_(value)
        ema = None
        if like.ema is not None and state.ema is not None:
            ema = Ema(module, like.ema.decay)
            own = {**dict(ema.module.named_parameters()), **dict(ema.module.named_buffers())}
            with torch.no_grad():
                for path, array in state.ema.items():
                    own[path].copy_(torch.from_numpy(array.copy()))
        return Live(state.network.graph, module, optimizer, ema, like.scaler)

    def _stored(self, stage: int, folder: Path) -> State:
        file = _kept(folder, stage)
        try:
            network = replace(load(file), library=self._networks[0].library)
            steps, text = network.certificate.steps, network.text
            if not steps or steps[-1].after != state_of(text, network.graph, network.weights):
                raise error("A637", "it is not what its certificate says")
            return State.load(file, network)
        except ArchirError as failure:
            found = failure.diagnostics[0].message
            raise error(
                "A637",
                f"{file}, the network after growth {stage}, cannot be used: {found}",
                hint=ANEW,
            ) from None


def _logged(folder: Path) -> list[dict[str, Any]]:
    """What the metrics of a run folder say of growths.

    Raises:
        ArchirError: A637, they are damaged.
    """
    file = folder / METRICS
    try:
        found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        grown = [line for line in found if line["event"] == "grow"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise error("A637", f"{file} is damaged", hint=ANEW) from None
    outside = ("event", "step", "epoch")
    return [{k: v for k, v in line.items() if k not in outside} for line in grown]


def _kept(folder: Path, stage: int) -> Path:
    return folder / NETWORKS / f"{stage}.arch"


def _line(stage: int, change: Change, done: Rewritten, fates: Mapping[str, Fate]) -> dict[str, Any]:
    """What the metrics say of a growth; equal runs have equal lines."""
    rules = [
        {
            "rule": use.plan.rule.name,
            "site": use.plan.site,
            "set": {
                k: list(v) if isinstance(v, tuple) else v for k, v in use.plan.arguments.items()
            },
        }
        for use in done.uses
    ]
    count = Counter(fate.what for fate in fates.values())
    zero = {path: fate.reason for path, fate in fates.items() if fate.what == "zero"}
    params, macs = [done.before.params, done.after.params], [done.before.macs, done.after.macs]
    assert done.drift is not None, "a network in training has weights"
    what = ", ".join(f"{r['rule']}@{r['site']}" for r in rules)
    note = (
        f"growth {stage} ({change.when}): {what}; parameters {params[0]:,} -> {params[1]:,}, "
        f"drift {done.drift.value:.1e}; optimizer state: {count['mapped']} parameters mapped, "
        f"{count['kept']} kept, {count['zero']} start at zero"
    )
    return {
        "stage": stage,
        "rules": rules,
        "params": params,
        "macs": macs,
        "drift": done.drift.value,
        "state": {"mapped": count["mapped"], "kept": count["kept"], "zero": zero},
        "note": note,
    }
