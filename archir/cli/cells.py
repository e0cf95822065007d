"""What ``archir rewrite --rule nat`` does: a policy chooses operations for a network's cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from archir.diag import error

if TYPE_CHECKING:
    from archir.api import Application, Network
    from archir.search.reading_cells import FoundCell

NAT = "nat"
"""The word that stands for NAT's rules, of which a policy chooses."""


@dataclass(frozen=True)
class Chosen:
    """What a policy chose, and the rules that make it of the network."""

    uses: list[Application]
    cells: list[dict[str, Any]]
    """For each kind of cell what changes, as JSON values."""

    def lines(self) -> list[str]:
        """For users."""
        found = []
        for cell in self.cells:
            places, edges = cell["places"], cell["edges"]
            more = ", ..." if len(places) > 1 else ""
            number = f"{len(places)} cells ({places[0]}{more})" if more else places[0]
            changes = [f"{e['source']}->{e['target']} {e['from']} -> {e['to']}" for e in edges]
            found += [f"{number}: {', '.join(changes) if changes else 'as it was'}"]
        return found


def check_words(
    rules: tuple[str, ...],
    policy: str | None,
    others: Mapping[str, object],
    *,
    sample: bool,
) -> bool:
    """Whether a policy chooses the rules.

    Args:
        rules: What ``--rule`` says.
        policy: What ``--policy`` says.
        others: What else names rules or their settings, by the flag's name.
        sample: Whether ``--sample`` is there.

    Raises:
        ArchirError: A609, these do not go together.
    """
    if NAT not in rules:
        if policy is not None:
            raise error("A609", "--policy is for NAT's rules", hint="--rule nat --policy FILE")
        if sample:
            raise error("A609", "--sample draws from a policy", hint="--rule nat --policy FILE")
        return False
    if policy is None:
        hint = "--policy FILE, which `archir search --strategy nat` makes; or one rule, such as "
        raise error("A609", "a policy chooses among NAT's rules", hint=f"{hint}nat.conv_to_skip")
    given = [name for name, value in others.items() if value]
    if len(rules) > 1 or given:
        what = given[0] if given else "another rule"
        raise error("A609", f"{what} and --policy exclude each other: a policy says what and where")
    return True


def chosen_by(network: Network, path: str, *, sample: bool, seed: int) -> Chosen:
    """What a policy makes of a network's cells, and the clean-ups that this allows.

    Args:
        network: Any network.
        path: The policy's file.
        sample: Whether operations are drawn, again where a cell would hand on nothing; else the
            most likely ones are taken.
        seed: Of the draw.

    Raises:
        ArchirError: A601, A610, A775, it is no policy; A777, the network has no cells; A772, the
            policy leaves all as it is; A773, a cell would hand on nothing.
    """
    from archir.search.cells import is_alive, with_ops
    from archir.search.nat_policy import load_policy
    from archir.search.reading_cells import cleaning, read_cells, rewriting, settled

    policy = load_policy(path)
    found = read_cells(network.graph)
    if not found:
        raise error("A777", f"{network.graph.name} has no cells that NAT could change")
    generator = np.random.Generator(np.random.PCG64(seed))
    ops = []
    other = "another --seed" if sample else "--sample --seed N"
    for f in found:
        drawn = policy.sample(f.cell, generator, living=True) if sample else policy.choose(f.cell)
        if is_alive(f.cell) and not is_alive(with_ops(f.cell, drawn)):
            told = f"with what the policy chooses {f.names[0]} would hand on nothing but zeros"
            raise error("A773", told, hint=f"{other} may do better", status=1)
        ops.append(settled(f.cell, drawn))
    uses = rewriting(found, ops)
    if not uses:
        hint = f"{other} draws others"
        raise error("A772", "the policy leaves every edge as it is", hint=hint, status=1)
    return Chosen(
        [*uses, *cleaning(network, uses)],
        [_facts(cell, chosen) for cell, chosen in zip(found, ops, strict=True)],
    )


def _facts(found: FoundCell, ops: list[str]) -> dict[str, Any]:
    from archir.search.reading_cells import applications

    edges = [
        {"source": edge.source, "target": edge.target, "from": edge.op, "to": op}
        for number, (edge, op) in enumerate(zip(found.cell.edges, ops, strict=True))
        if applications(found, number, op)  # there may be no rule, where it would cost more
    ]
    return {"places": list(found.names), "edges": edges}
