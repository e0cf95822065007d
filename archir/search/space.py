"""A search space: a start network, and the moves that may change it.

A move is a rule and the values that its arguments are drawn from. Moves are drawn on graphs alone:
no weight is touched, so that a child costs nothing before somebody trains it. Importing this
module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from typing import Any

import numpy as np

from archir.api import Application, Network
from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Value
from archir.ir.types import AttrValue
from archir.ops import installed_ops
from archir.ops.record import OpSet
from archir.rewrite.library import Library, find_rule, installed
from archir.rewrite.match import Match, Matcher
from archir.rewrite.plan import Plan
from archir.rewrite.rule import Reshaping, Rule, RuleParameter
from archir.rewrite.sites import Planner, looks_at_weights
from archir.rewrite.sources import paths_of

Allows = Callable[[Graph], bool]

MERGING = frozenset({"add", "concat", "max_pool", "mul", "sub"})
"""What one tensor goes through before it is joined to another by a skip."""

MOST_REFUSED = 100
"""A move of which so many networks are not allowed is taken to offer nothing: on a large network
it has thousands of sites and paths."""


@dataclass(frozen=True)
class Move:
    """A rule that a search may apply, and what its arguments are drawn from.

    A path (such as the ``source`` of a skip) that has no choices is drawn from all tensors that
    fit, and a parameter that is not named here keeps its default.
    """

    rule: str
    family: str = ""
    """Families are drawn with equal chances, then what is in them; ``/`` nests: ``skip/add``.
    By default the rule's name up to its first dot."""
    arguments: Mapping[str, tuple[AttrValue, ...]] = field(default_factory=dict)
    """Choices by parameter."""
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By parameter of a rule over a class: factors of the class's size."""
    levels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By parameter of a rule over a class: the smallest of these above the class's size."""
    most: int = 0
    """The most channels that a layer may have afterwards, where it gets more; 0: no limit."""
    tensors: tuple[str, ...] = ()
    """Only tensors that these operators make are joined; of a rule with a path."""

    def record(self) -> dict[str, Any]:
        """Its entries as JSON values, those that say nothing left out."""
        tables = {
            name: {key: list(values) for key, values in getattr(self, name).items()}
            for name in ("arguments", "times", "levels")
        }
        found = {"rule": self.rule, "family": self.kind, **tables, "most": self.most}
        found["tensors"] = list(self.tensors)
        return {name: value for name, value in found.items() if value}

    @property
    def kind(self) -> str:
        """Its family."""
        return self.family or self.rule.partition(".")[0]


@dataclass(frozen=True)
class Space:
    """All networks that moves make of a start network."""

    start: Network
    moves: tuple[Move, ...]

    def draw(
        self,
        network: Network,
        generator: np.random.Generator,
        count: int,
        allows: Allows = lambda graph: True,
    ) -> list[Application]:
        """Random moves of a network of this space; see :func:`draw_applications`."""
        ops, library = self.start.ops, self.start.library
        return draw_applications(network.graph, ops, library, self.moves, generator, count, allows)


def draw_applications(
    graph: Graph,
    ops: OpSet,
    library: Library,
    moves: Sequence[Move],
    generator: np.random.Generator,
    count: int,
    allows: Allows = lambda graph: True,
) -> list[Application]:
    """Draw moves one after the other, each on what the ones before it made.

    Each is drawn in steps, uniformly at each: a family, a family within it where they nest, a move,
    a site with arguments, a path. What does not apply, or makes a network that is not allowed, is
    left out and its step drawn again; a family that offers nothing is left out as a whole, and the
    others keep equal chances.

    Args:
        graph: The network to begin with.
        ops: The operators.
        library: The rules.
        moves: What to draw from.
        generator: All randomness comes from it.
        count: How many.
        allows: Whether a network is small enough.

    Returns:
        What :func:`archir.api.rewrite` takes; fewer than ``count`` only where nothing is left
        (see :data:`MOST_REFUSED`).

    Raises:
        ArchirError: A604, there is no rule of a move's name.
    """
    rules = {move.rule: find_rule(move.rule, library, ops) for move in moves}
    tree = _tree(moves)
    done: list[Application] = []
    while len(done) < count:
        drawn = _drawn(tree, rules, Planner(graph, ops), generator, allows)
        if drawn is None:
            break
        application, graph = drawn
        done.append(application)
    return done


def use_record(use: Application) -> dict[str, Any]:
    """A use of a rule as a journal keeps it: JSON values."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in use.arguments.items()}
    return {"rule": use.rule, "at": use.at, "arguments": plain}


_Tree = Move | list["_Tree"]


def _tree(moves: Sequence[Move], depth: int = 0) -> list[_Tree]:
    """Moves by family, a list for each; families within a family are lists in its list."""
    found: dict[str, list[Move]] = {}
    for move in moves:
        parts = move.kind.split("/")
        found.setdefault(parts[depth] if depth < len(parts) else "", []).append(move)
    if list(found) == [""]:
        return list(moves)
    return [_tree(held, depth + 1) if name else list(held) for name, held in found.items()]


def _drawn(
    tree: _Tree,
    rules: Mapping[str, Rule],
    planner: Planner,
    generator: np.random.Generator,
    allows: Allows,
) -> tuple[Application, Graph] | None:
    """A move that applies and is allowed, with the graph that it makes; None if there is none."""
    if isinstance(tree, list):
        for index in generator.permutation(len(tree)):
            found = _drawn(tree[index], rules, planner, generator, allows)
            if found is not None:
                return found
        return None
    rule, refused = rules[tree.rule], 0
    for at, arguments in _options(tree, rule, planner, generator):
        try:
            plan = planner.plan(rule, at, arguments)
        except ArchirError:
            continue
        if not _too_wide(plan, tree.most) and allows(plan.after):
            return Application(tree.rule, at, arguments), plan.after
        refused += 1
        if refused == MOST_REFUSED:
            break
    return None


def _too_wide(plan: Plan, most: int) -> bool:
    """Whether a layer grows beyond a number of channels: its class may be a part of them only."""
    for path in plan.terms if most else ():
        before = plan.before.parameters.get(path)
        after = plan.after.parameters[path].type.shape
        size, had = after[:1], before.type.shape[:1] if before else ()
        if size != had and size and isinstance(size[0], int) and size[0] > most:
            return True
    return False


def _options(
    move: Move, rule: Rule, planner: Planner, generator: np.random.Generator
) -> Iterator[tuple[str, dict[str, AttrValue]]]:
    """The sites of a move with its arguments, in an order drawn at random."""
    graph, ops = planner.graph, planner.ops
    given = {p.name: p.default for p in rule.parameters if p.default is not None}
    if isinstance(rule.body, Reshaping):
        sites = [(site.at, site.size) for site in planner.sites(rule) if site.size is not None]
        places = [(at, values) for at, size in sites for values in _valued(move, size)]
    else:
        places = [
            (match.root, values)
            for values in _valued(move)
            for match in Matcher(rule, graph, ops, {**given, **values}).all()
        ]
    for index in generator.permutation(len(places)):
        at, values = places[index]
        paths = [name for name in paths_of(rule) if name not in values]
        if not paths:
            yield at, values
        for chosen in _tensors(move, graph, at, paths, generator):
            arguments = {**values, **chosen}
            found = Matcher(rule, graph, ops, {**given, **arguments}).at(graph.node(at))
            if isinstance(found, Match) and _joinable(move, graph, found, paths):
                yield at, arguments


def _valued(move: Move, size: int = 0) -> list[dict[str, AttrValue]]:
    """All choices of arguments but paths, for a class of a size."""
    choices: dict[str, list[AttrValue]] = {n: list(v) for n, v in move.arguments.items()}
    for name, factors in move.times.items():
        sizes = [round(size * factor) for factor in factors]
        choices[name] = [*(n for n in sizes if not move.most or n <= move.most)]
    for name, levels in move.levels.items():
        choices[name] = [*sorted(level for level in levels if level > size)[:1]]
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _tensors(
    move: Move, graph: Graph, at: str, paths: Sequence[str], generator: np.random.Generator
) -> Iterator[dict[str, AttrValue]]:
    """Tensors made before a site for each path, in an order drawn at random.

    They are of numbers, and have the first axis of the site's result: samples of one batch.
    """
    if not paths:
        return
    batch = graph.node(at).types[0].shape[:1]
    earlier: list[str] = []
    for node in graph:
        if node.name == at:
            break
        if not move.tensors or node.op in move.tensors:
            types = enumerate(node.types)
            fitting = [p for p, t in types if "f" in t.dtype and t.shape[:1] == batch]
            earlier += [str(Value(node.name, port)) for port in fitting]
    orders = [[earlier[i] for i in generator.permutation(len(earlier))] for _ in paths]
    for values in product(*orders):
        yield dict(zip(paths, values, strict=True))


def _joinable(move: Move, graph: Graph, match: Match, paths: Sequence[str]) -> bool:
    """Whether the tensors of a skip may be joined, and are not joined already."""
    sources = [match.variables[name] for name in paths]
    targets = [value for name, value in match.variables.items() if name not in paths]
    if move.tensors and any(graph.node(v.node).op not in move.tensors for v in targets):
        return False
    for value in targets:
        readers = [Value(reader.name) for reader, _, _ in graph.readers(value.node)]
        ends = [v for v in readers if graph.node(v.node).op in MERGING]
        if any(source in _joined(graph, end) for end in [value, *ends] for source in sources):
            return False
    return True


def _joined(graph: Graph, value: Value) -> set[Value]:
    """A tensor and those that it was joined from."""
    found, stack = {value}, [value]
    while stack:
        node = graph.node(stack.pop().node)
        more = [v for v in node.inputs if v not in found] if node.op in MERGING else []
        found.update(more)
        stack += more
    return found


def read_moves(
    tables: Sequence[Mapping[str, Any]], where: str, library: Library | None = None
) -> tuple[Move, ...]:
    """The moves of a settings file: its tables ``[[moves]]``.

    Args:
        tables: Them, with ``rule`` and, where wanted, the other entries of :class:`Move`; an
            entry of ``arguments`` may be a list of choices or a single one.
        where: What stands before a message, such as the name of the file.
        library: The rules; by default the installed ones.

    Raises:
        ArchirError: A720, what is wrong with a table; A604 and A607, of the rule that it names.
    """
    ops = installed_ops()
    known = installed(ops) if library is None else library
    if not isinstance(tables, list | tuple) or not all(isinstance(t, Mapping) for t in tables):
        raise error("A720", f"{where}moves should be tables `[[moves]]`")
    return tuple(
        _read(table, f"{where}move {number}: ", known, ops)
        for number, table in enumerate(tables, start=1)
    )


def _read(table: Mapping[str, Any], where: str, library: Library, ops: OpSet) -> Move:
    entries = ["rule", "family", "arguments", "times", "levels", "most", "tensors"]
    for name in table:
        if name not in entries:
            raise error("A720", f"{where}a move has no entry `{name}`", hint=_near(name, entries))
    for name in ("rule", "family"):
        if not isinstance(table.get(name, ""), str):
            raise error("A720", f"{where}{name} is {table[name]!r}, it should be a name")
    if not table.get("rule"):
        raise error("A720", f"{where}it names no rule", hint='rule = "widen"')
    most, tensors = table.get("most", 0), _listed(table.get("tensors", []))
    if type(most) is not int or most < 0:
        raise error("A720", f"{where}most is {most!r}, it should be a whole number")
    for name in tensors:
        if name not in ops:
            raise error("A720", f"{where}there is no operator `{name}`", hint=_near(name, [*ops]))
    rule = find_rule(table["rule"], library, ops)
    choices = {
        name: _choices(table, name, rule, where) for name in ("arguments", "times", "levels")
    }
    move = Move(rule=table["rule"], family=table.get("family", ""), most=most, tensors=tensors)
    move = Move(**{**move.__dict__, **choices})
    check_move(move, rule, where)
    return move


def _listed(value: Any) -> tuple[Any, ...]:
    """A list, or a single entry, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _near(name: object, known: Sequence[str]) -> str:
    close = get_close_matches(str(name), known, 1)
    return f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(known)}"


def _choices(
    table: Mapping[str, Any], entry: str, rule: Rule, where: str
) -> dict[str, tuple[Any, ...]]:
    """The values by parameter that a table states.

    Raises:
        ArchirError: A720, a parameter is unknown, or does not take such a value.
    """
    given = table.get(entry, {})
    if not isinstance(given, Mapping):
        shown = f"{{ width = {[2, 4] if entry == 'times' else [16, 32]} }}"
        raise error("A720", f"{where}{entry} is {given!r}, it should be a table: {shown}")
    parameters = {p.name: p for p in rule.parameters}
    found: dict[str, tuple[Any, ...]] = {}
    for name, stated in given.items():
        if name not in parameters:
            hint = _near(name, list(parameters)) if parameters else ""
            raise error("A720", f"{where}`{rule.name}` has no parameter `{name}`", hint=hint)
        values = _listed(stated)
        if not values:
            raise error("A720", f"{where}{entry}.{name} offers nothing")
        for value in values:
            if entry == "times":
                fits = type(value) in (int, float) and 0 < value <= 2**20
            else:
                fits = _fits(parameters[name], value)
            if not fits:
                raise error("A720", f"{where}`{rule.name}` takes no {value!r} in {entry}.{name}")
        found[name] = tuple(_listed(v) if isinstance(v, list) else v for v in values)
    return found


def _fits(parameter: RuleParameter, value: Any) -> bool:
    try:
        parameter.fit(tuple(value) if isinstance(value, list) else value)
    except ValueError:
        return False
    return True


def check_move(move: Move, rule: Rule, where: str = "") -> None:
    """Make sure that a move can be drawn.

    Raises:
        ArchirError: A720, nothing says what a parameter is to be, a size is drawn for a rule that
            is not over a class, or the rule looks at weights.
    """
    said = [*move.arguments, *move.times, *move.levels]
    twice = next((name for name in said if said.count(name) > 1), None)
    if twice is not None:
        raise error("A720", f"{where}`{twice}` is stated twice")
    if looks_at_weights(rule):
        hint = "a search draws its moves before there are weights"
        raise error("A720", f"{where}where `{rule.name}` applies depends on weights", hint=hint)
    if (move.times or move.levels) and not isinstance(rule.body, Reshaping):
        raise error(
            "A720",
            f"{where}`{rule.name}` is not over a class of channels, so that there is no size",
            hint="`arguments` states values as they are",
        )
    for parameter in rule.parameters:
        if parameter.default is None and parameter.kind != "path" and parameter.name not in said:
            sized = isinstance(rule.body, Reshaping) and parameter.kind == "int"
            example = "times = { %s = [2] }" if sized else "arguments = { %s = [...] }"
            raise error(
                "A720",
                f"{where}nothing says what `{parameter.name}` of `{rule.name}` is to be",
                hint=example % parameter.name,
            )
