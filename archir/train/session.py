"""Training a :class:`archir.api.Network`: what the command line and Python users call.

Importing this module needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archir.api import Network, no_weights
from archir.diag import error
from archir.train.checkpoint import Live
from archir.train.data import Dataset
from archir.train.growing import Growing
from archir.train.loop import TrainResult, train
from archir.train.recipe import TrainConfig, train_facts
from archir.train.state import State, fill
from archir.train.timetable import Change


@dataclass(frozen=True)
class Trained:
    """A network that was trained, and how that went."""

    network: Network
    """With its weights, and one more step of its certificate (more, where it grew)."""
    result: TrainResult
    facts: Mapping[str, Any]
    """What that step says, as JSON values."""
    growths: Sequence[Mapping[str, Any]]
    """What the metrics say of each growth."""
    earlier: int
    """Steps that the optimizer took before."""

    @property
    def state(self) -> State:
        """The network with its optimizer, to save or go on with."""
        live = self.result.live
        assert live is not None, "a result of training holds what was trained"
        scaler: dict[str, Any] = live.scaler.state_dict()
        return State.of(
            self.network,
            live.optimizer,
            module=live.module,
            step=self.earlier + self.result.steps,
            scaler=scaler or None,
        )


def train_network(
    network: Network,
    dataset: Dataset,
    config: TrainConfig,
    *,
    changes: Sequence[Change] = (),
    state: State | None = None,
    teacher: Network | None = None,
    run_dir: Path | None = None,
    **how: Any,
) -> Trained:
    """Train a network from its weights, which stay as they are.

    Args:
        network: It, with weights.
        dataset: What to train on.
        config: The recipe.
        changes: Growths on the way; see :func:`archir.train.timetable.read_timetable`.
        state: Its optimizer's state to go on with; rates, decay and groups are the recipe's.
        teacher: A network whose outputs are learned too, with weights.
        run_dir: The run folder.
        **how: Further arguments of :func:`archir.train.loop.train`.

    Raises:
        ArchirError: A600, there are no weights; A655, the state is that of another optimizer; those
            of :func:`archir.train.loop.train` and :class:`archir.train.growing.Growing`.
    """
    if network.weights is None:
        raise no_weights(network.path)
    if teacher is not None and teacher.weights is None:
        raise no_weights(teacher.path)
    earlier = 0 if state is None else state.step
    growing = Growing(network, changes, dataset, config, earlier=earlier) if changes else None
    taught = None if teacher is None else (teacher.graph, dict(teacher.weights or {}))
    done = train(
        network.graph,
        dict(network.weights),
        dataset,
        config,
        run_dir=run_dir,
        growth=growing,
        teacher=taught,
        prepare=lambda live: None if state is None else _take_up(state, live),
        **how,
    )
    since = 0 if growing is None else growing.since(done.stage)
    facts = {
        **train_facts(dataset, config, since, done.end),
        "device": done.device,
        "validation": {"accuracy": done.validation.accuracy, "loss": done.validation.loss},
    }
    start = network if growing is None else growing.network(done.stage, run_dir)
    made = start.with_weights(done.weights, "train", facts)
    return Trained(made, done, facts, [] if growing is None else growing.lines, earlier)


def _take_up(state: State, live: Live) -> None:
    """Put an optimizer's state into a network that is about to be trained.

    Raises:
        ArchirError: A655, the state is that of another optimizer.
    """
    kind = type(live.optimizer).__name__
    if kind != state.optimizer.kind:
        raise error(
            "A655",
            f"the optimizer's state is that of {state.optimizer.kind}, the recipe says {kind}",
            hint="`--optimizer` says which; without --with-optimizer its state starts at zero",
        )
    names = {id(parameter): path for path, parameter in live.module.named_parameters()}
    held = [p for group in live.optimizer.param_groups for p in group["params"]]
    fill(live.optimizer, [names[id(p)] for p in held], state.optimizer)
    if state.scaler and live.scaler.is_enabled():
        live.scaler.load_state_dict(dict(state.scaler))
