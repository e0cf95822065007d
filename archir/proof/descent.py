"""Whether one network came from another, or both from a third, as their certificates tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from archir.diag import ArchirError, Source
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.lang import load
from archir.lang.program import Program
from archir.ops.record import OpSet
from archir.proof.certificate import Certificate, State, Step, broken_link, text_hash
from archir.proof.lineage import Lineage
from archir.rewrite.correspond import by_names, by_number, correspond


@dataclass(frozen=True)
class Member:
    """A network as it is compared: its program, and its certificate if it has one."""

    program: Program
    certificate: Certificate
    lineage: Lineage

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self.program.graph

    def certified(self, graph: str) -> tuple[Step, ...]:
        """The steps that lead to this network; none where its text or its graph is another."""
        steps = self.certificate.steps
        if not steps or broken_link(self.certificate) is not None:
            return ()
        end = steps[-1].after
        same = end.text == text_hash(self.program.source.text) and end.graph == graph
        return steps if same else ()


@dataclass(frozen=True)
class Relation:
    """How two networks belong together.

    ``steps`` lead from the first to the second where that descends from it (``down``), or back
    (``up``); ``siblings`` have a common beginning, and ``others`` leads from there to the first.
    """

    kind: Literal["down", "up", "siblings", "none"]
    pairs: Mapping[str, str]
    steps: tuple[tuple[int, Step], ...] = ()
    others: tuple[tuple[int, Step], ...] = ()


def relation(a: Member, b: Member, ops: OpSet, *, use_lineage: bool = True) -> Relation:
    """How two networks belong together, and which node of one is which of the other.

    By their names where the certificates tell that one came from the other, for a rewrite keeps
    the names of what it leaves alone; by structure otherwise.
    """
    hashes = graph_hash(a.graph), graph_hash(b.graph)
    if use_lineage:
        chains = a.certified(hashes[0]), b.certified(hashes[1])
        down = _since(a, hashes[0], b, chains[1], ops)
        if down is not None:
            return Relation("down", down[1], down[0])
        up = _since(b, hashes[1], a, chains[0], ops)
        if up is not None:
            return Relation("up", {y: x for x, y in up[1].items()}, up[0])
        shared = _shared(*chains)
        if shared:
            rest = [tuple(enumerate(c[shared:], shared + 1)) for c in chains]
            return Relation("siblings", by_names(a.graph, b.graph), rest[1], rest[0])
    if hashes[0] == hashes[1]:
        return Relation("none", by_number(a.graph, b.graph))
    return Relation("none", correspond(a.graph, b.graph, ops))


def _since(
    old: Member, digest: str, new: Member, chain: tuple[Step, ...], ops: OpSet
) -> tuple[tuple[tuple[int, Step], ...], dict[str, str]] | None:
    """The steps of a chain since it was at a network, and the nodes that are the same."""
    text = text_hash(old.program.source.text)
    for exact in (True, False):
        for number in range(len(chain), 0, -1):
            state = chain[number - 1].after
            if state.graph != digest or (exact and state.text != text):
                continue
            pairs = by_names(old.graph, new.graph) if exact else _through(old, state, new, ops)
            if pairs is not None:
                return tuple(enumerate(chain[number:], number + 1)), pairs
    return None


def _through(old: Member, state: State, new: Member, ops: OpSet) -> dict[str, str] | None:
    """Pairs by way of an ancestor that is the old network under other names."""
    lineage = replace(new.lineage, texts={**new.lineage.texts, **_own(new)})
    try:
        text = lineage.text(state.text)
        ancestor = load(Source("parent.arch", text), ops, new.certificate.params).graph
    except ArchirError:
        return None
    kept = by_names(ancestor, new.graph)
    same = by_number(old.graph, ancestor)
    return {x: kept[y] for x, y in same.items() if y in kept}


def _own(member: Member) -> dict[str, str]:
    text = member.program.source.text
    return {text_hash(text): text}


def _shared(a: tuple[Step, ...], b: tuple[Step, ...]) -> int:
    """How many steps two chains begin with in common."""
    number = 0
    for x, y in zip(a, b, strict=False):
        if x.digest != y.digest:
            break
        number += 1
    return number
