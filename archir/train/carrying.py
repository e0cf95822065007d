"""Training that goes on with an optimizer's state, and hands it on. Importing this needs torch."""

from __future__ import annotations

from typing import Any

from archir.api import Network
from archir.diag import error
from archir.train.checkpoint import Live
from archir.train.state import State, fill


def take_up(state: State, live: Live) -> None:
    """Put an optimizer's state into a network that is about to be trained.

    Rates, decay and groups are the recipe's; moments, step counts and the scale of the loss are
    the state's.

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


def handed_on(network: Network, live: Live, steps: int) -> State:
    """The state of a network that was trained, to save beside it.

    Args:
        network: It, with the weights that its optimizer steps, not their average.
        live: What was trained.
        steps: How many steps its optimizer took in all.
    """
    scaler: dict[str, Any] = live.scaler.state_dict()
    return State.of(network, live.optimizer, module=live.module, step=steps, scaler=scaler or None)
