"""The difference of two graphs in terms of a text editor: changed, inserted, removed nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from archir.ir.graph import Graph, Node, Value


class CannotEdit(Exception):  # noqa: N818 - it is a decision, not an error
    """The change has no small form in the text; the whole network is printed instead."""


@dataclass
class Insertion:
    """New nodes, each reading the one before, behind a value that was there."""

    value: Value
    nodes: list[Node]
    moved: list[tuple[str, int]] = field(default_factory=list)
    """Who reads the last of them instead of the value: node and operand."""
    outputs: list[str] = field(default_factory=list)
    """Which outputs of the network do."""
    all_moved: bool = False

    @property
    def result(self) -> Value:
        """What the chain gives."""
        return Value(self.nodes[-1].name)


@dataclass
class Difference:
    """How one graph becomes the other, apart from attributes."""

    insertions: list[Insertion] = field(default_factory=list)
    removals: list[Node] = field(default_factory=list)


def compare(before: Graph, after: Graph) -> Difference:
    """What changes from one graph to the other.

    Raises:
        CannotEdit: more changes than attributes, chains put in and nodes taken out.
    """
    same_interface(before, after)
    found = Difference()
    skip = _removals(before, after, found)
    ends = _insertions(before, after, found)
    _moves(before, after, skip, ends)
    for insertion in found.insertions:
        old = before.readers(insertion.value.node)
        reads = sum(port == insertion.value.port for _, _, port in old)
        exported = sum(o.value == insertion.value for o in before.outputs)
        insertion.all_moved = len(insertion.moved) == reads and len(insertion.outputs) == exported
    return found


def _removals(before: Graph, after: Graph, found: Difference) -> dict[Value, Value]:
    """Removed nodes; what their values become for whoever read them."""
    skip: dict[Value, Value] = {}
    for node in before:
        if node.name in after:
            continue
        if len(node.inputs) != 1 or len(node.types) != 1:
            raise CannotEdit(f"{node.name} goes and is no stage of a pipeline")
        value = node.inputs[0]
        skip[Value(node.name)] = skip.get(value, value)
        found.removals.append(node)
    return skip


def _insertions(before: Graph, after: Graph, found: Difference) -> dict[Value, Insertion]:
    """Chains of new nodes; by the value that each gives."""
    ends: dict[Value, Insertion] = {}
    for node in after:
        if node.name in before:
            continue
        if not node.inputs or len(node.types) != 1:
            raise CannotEdit(f"{node.name} is no stage of a pipeline")
        piped = node.inputs[0]
        if any(value.node not in before for value in node.inputs[1:]):
            raise CannotEdit(f"{node.name} joins new nodes")
        chain = ends.pop(piped, None)
        if chain is None:
            if piped.node not in before:
                raise CannotEdit("new nodes branch")
            chain = Insertion(piped, [])
            found.insertions.append(chain)
        chain.nodes.append(node)
        ends[Value(node.name)] = chain
    return ends


def same_interface(before: Graph, after: Graph) -> None:
    """Raises :class:`CannotEdit` where inputs, preprocessing or the outputs' names change."""
    if before.inputs != after.inputs or before.meta != after.meta:
        raise CannotEdit("inputs or preprocessing change")
    if [o.name for o in before.outputs] != [o.name for o in after.outputs]:
        raise CannotEdit("outputs change")


def same_paths(old: Node, new: Node) -> bool:
    """Whether no parameter of a node is another: an attribute may add one, or take one away."""
    both = old.params.keys() & new.params.keys()
    return all(old.params[role] == new.params[role] for role in both)


def _moves(
    before: Graph,
    after: Graph,
    skip: dict[Value, Value],
    ends: dict[Value, Insertion],
) -> None:
    """Who reads new values instead of old ones; all else must read what it read."""
    for new in after:
        if new.name not in before:
            continue
        old = before.node(new.name)
        if old.op != new.op or len(old.inputs) != len(new.inputs):
            raise CannotEdit(f"{new.name} becomes another operator")
        if not same_paths(old, new):
            raise CannotEdit(f"the parameters of {new.name} change their paths")
        for index, (was, now) in enumerate(zip(old.inputs, new.inputs, strict=True)):
            chain = ends.get(now)
            if now == skip.get(was, was):
                continue
            if chain is None or chain.value != skip.get(was, was):
                raise CannotEdit(f"{new.name} reads {now} instead of {was}")
            chain.moved.append((new.name, index))
    for old_output, new_output in zip(before.outputs, after.outputs, strict=True):
        was, now = skip.get(old_output.value, old_output.value), new_output.value
        if was == now:
            continue
        chain = ends.get(now)
        if chain is None or chain.value != was:
            raise CannotEdit(f"the output {new_output.name} changes")
        chain.outputs.append(new_output.name)
