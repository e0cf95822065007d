"""Going back in a network's past: rewrites taken back, ancestors brought back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from archir.diag import error
from archir.proof.certificate import state_of
from archir.proof.drift import Drift, Forward, measure
from archir.proof.history import History, Moment
from archir.proof.undo import Undone, history, recheck, refusal
from archir.proof.undo import undo as take_back

if TYPE_CHECKING:
    from archir.api import Network


@dataclass(frozen=True)
class Reverted:
    """What taking rewrites back did."""

    network: Network
    undone: Undone
    modes: tuple[str, ...]
    """In which the rewrites are equalities; none where the lineage was gone back."""
    drift: Drift | None
    """How far the outputs are from those of the network there was."""


def undo(
    network: Network,
    forward: Forward | None,
    *,
    steps: int = 1,
    approximate: bool = False,
    to_parent: bool = False,
) -> Reverted:
    """Take back a network's last rewrites.

    Args:
        network: The network, with a certificate that ends in it.
        forward: A backend's ``forward``, to measure the drift.
        steps: How many rewrites.
        approximate: Whether the function may change, where the weights have moved since.
        to_parent: Go back to the weights there were, whatever was trained since.

    Raises:
        ArchirError: A404 (the lineage), A420 (not exact), A421 (nothing to take back), A422 (no
            inverse), A403 (the outputs differ though it is exact).
    """
    found, past = nearest(network, steps=steps, to_parent=to_parent)
    if not (approximate or to_parent or found.exact):
        raise refusal(found)
    modes = recheck(found, past)
    weights = found.moment.weights
    drift = None
    if weights is not None and network.weights is not None:
        sides = (network.graph, network.weights), (found.moment.program.graph, weights)
        drift = measure(*sides, network.ops, forward)
        inverted = all(part.how == "inverse" for part in found.parts)
        if inverted and found.exact and not drift.fine:
            raise error(
                "A403",
                f"with these weights the outputs differ by {drift.value:.3g} of their largest, "
                "though taking the rewrite back is exact: they are too badly scaled for float32"
                if drift.finite
                else "with these weights the outputs are not finite",
            )
    end = network.certificate.steps[-1].after.weights
    made = replace(
        network,
        program=found.moment.program,
        weights=weights,
        lineage=network.lineage.with_parent(network.text, network.weights, end),
        path=None,
    )
    facts = {
        **found.facts(approximate=approximate),
        "drift": None if drift is None else asdict(drift),
    }
    return Reverted(made.stepped("undo", facts), found, tuple(modes), drift)


def nearest(network: Network, *, steps: int = 1, to_parent: bool = False) -> tuple[Undone, History]:
    """The network before its last rewrites, and how far it is from exact; nothing is refused.

    Raises:
        ArchirError: A404, A421 and A422, as :func:`undo`.
    """
    chain = network.certificate.steps
    state = state_of(network.text, network.graph, network.weights)
    if not chain:
        raise error("A421", "there is nothing to take back: the network has no certificate")
    if chain[-1].after != state:
        raise error(
            "A421",
            "there is nothing to take back: the network was edited since its certificate was "
            "written",
            hint="`archir lineage FILE --step N` brings back an ancestor",
        )
    present = Moment(network.program, network.weights)
    found = take_back(
        network.certificate, present, network.lineage, network.ops, steps=steps, to_parent=to_parent
    )
    return found, history(network.certificate, network.lineage, network.ops)


def ancestor(network: Network, number: int) -> Network:
    """The network as it was after a step of its certificate, which then ends there.

    Raises:
        ArchirError: A404, the lineage folder lacks what is needed; A421, there is no such step.
    """
    chain = network.certificate
    if not 1 <= number <= len(chain.steps):
        raise error("A421", f"there is no step {number}: the certificate has {len(chain.steps)}")
    past = history(chain, network.lineage, network.ops)
    past.known[len(chain.steps)] = Moment(network.program, network.weights)
    moment = past.at(number)
    made = replace(network, program=moment.program, weights=moment.weights, path=None)
    return replace(made, certificate=chain.cut(number, moment.program.graph))
