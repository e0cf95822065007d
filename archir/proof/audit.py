"""The audit: every axiom, and every term of a proof, evaluated in exact arithmetic.

An axiom's instances satisfy its side conditions and have sizes that differ from each other; both
sides are evaluated by the operators' references in fractions and in GF(p) and compared with
``==``. Where the left side has a value the right side must have the same. An axiom of which no
instance can be made fails too: it could not be tested.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archir.diag import error
from archir.ops.arithmetic import PRIME, Arithmetic, Array, Rational, Residues, balance
from archir.ops.infer import equations_of
from archir.ops.record import Attr, Kind, Mode, Op, OpSet
from archir.ops.signature import Axis, Shape, Star, measure, parse_signature
from archir.proof.axioms import Declared, Lawful
from archir.proof.changes import MAP, Change
from archir.proof.terms import Application, Fact, Formula, Variable, apply, parts, variables
from archir.proof.vocabulary import RELATIONS, UndefinedError, World, evaluate
from archir.weights.terms import IndexMap

INSTANCES = 8
"""How many instances of a law are evaluated, in each mode and in each arithmetic."""
TRIES = 600


@dataclass(frozen=True)
class Finding:
    """A law that the audit refutes, or could not test."""

    law: str
    mode: Mode
    arithmetic: str
    text: str


def audit(laws: Iterable[Lawful], ops: OpSet, *, seed: int = 0) -> list[Finding]:
    """What is wrong with the laws; nothing, if they are as they should be."""
    found: list[Finding] = []
    for law in laws:
        for mode in law.modes:
            seen = law.changes and mode != law.modes[0]
            for arithmetic in (Residues(),) if seen else (Rational(), Residues()):
                finding = _audit(law, ops, mode, arithmetic, seed)
                if finding is not None:
                    found.append(finding)
                    break
    return found


def _audit(law: Lawful, ops: OpSet, mode: Mode, k: Arithmetic, seed: int) -> Finding | None:
    rng = np.random.Generator(np.random.PCG64([seed, *law.name.encode()]))
    done = 0
    wanted = len(law.changes) or INSTANCES
    draws = _examples(law, k, rng) if law.changes else _instances(law, ops, k, rng)
    for drawn in draws:
        world = World(k, mode, ops, drawn)
        try:
            left = evaluate(law.left, world)
            if not all(holds(fact, world) for fact in law.conditions):
                continue
        except UndefinedError:
            continue
        sizes = ", ".join(f"{n} {_shape(v)}" for n, v in drawn.items() if isinstance(v, np.ndarray))
        if law.conclusion is not None:
            if not holds(law.conclusion, world):
                return Finding(law.name, mode, k.name, f"it does not follow ({drawn})")
            done += 1
            if done == wanted:
                return None
            continue
        try:
            right = evaluate(law.right, world)
        except UndefinedError as reason:
            return Finding(
                law.name, mode, k.name, f"the right side has no value: {reason} ({sizes})"
            )
        if not equal(left, right):
            attrs = {n: v for n, v in drawn.items() if not isinstance(v, np.ndarray | IndexMap)}
            return Finding(law.name, mode, k.name, f"the sides differ at {sizes}, {attrs}")
        done += 1
        if done == wanted:
            return None
    return Finding(law.name, mode, k.name, f"only {done} instances could be made of it")


def _instances(
    law: Lawful, ops: OpSet, k: Arithmetic, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    for _ in range(TRIES):
        drawn = _Drawing(law, ops, k, rng).values()
        if drawn is not None:
            yield drawn


def _examples(law: Lawful, k: Arithmetic, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    conditions = known(law.conditions, MAP.name)
    for change in law.changes:
        yield values_of(change, k, rng, conditions, law.short)


def known(facts: Iterable[Fact], name: str) -> set[str]:
    """What facts say of a map."""
    return {f.relation for f in facts if f.args == (Variable(name),)}


def values_of(
    change: Change,
    k: Arithmetic,
    rng: np.random.Generator,
    conditions: Collection[str],
    short: Iterable[str] = (),
) -> dict[str, Any]:
    """Values for the variables of a change, of the sizes of its sample.

    ``short`` names the parameters that have the length of the map.
    """
    sizes = {name: size for name, size in change.use.sizes.items() if isinstance(size, int)}
    values: dict[str, Any] = {f"{change.op.name}.{n}": v for n, v in change.attrs.items()}
    values.update({f"size {name}": size for name, size in sizes.items()})
    for number, type_ in enumerate(change.sample.inputs):
        values[f"x{number}"] = draw(k, rng, _whole(type_.shape))
    g = draw_map(rng, conditions, source=sizes[change.name])
    values[MAP.name] = g
    other = {**sizes, change.name: len(g.entries)}
    for role in change.roles:
        shape = [
            measure(axis, other if role in short else sizes) for axis in change.axes.params[role]
        ]
        values[role] = draw(k, rng, _whole(shape))
    return values


def _whole(shape: Iterable[object]) -> tuple[int, ...]:
    return tuple(size for size in shape if isinstance(size, int))


def draw_map(
    rng: np.random.Generator,
    conditions: Collection[str],
    *,
    source: int | None = None,
    length: int | None = None,
) -> IndexMap:
    """A random map of which the conditions hold, and no more than they say where that can be."""
    if {"even", "bijective", "one_to_one"}.isdisjoint(conditions):
        source = source or max((length or 4) - 1, 1)
        length = length or source + int(rng.integers(1, 3))
        entries = rng.integers(0, source, length)
        if "onto" in conditions and length >= source:
            entries[:source] = np.arange(source)
        return IndexMap(rng.permutation(entries), source)
    if "bijective" in conditions or {"even", "one_to_one"} <= set(conditions):
        size = source or length or 4
        return IndexMap(rng.permutation(size), size)
    if "even" in conditions:
        source = source or (length // 2 if length and length % 2 == 0 else length) or 3
        times = length // source if length else 2 ** int(rng.integers(1, 3))
        return IndexMap(rng.permutation(np.repeat(np.arange(source), times)), source)
    source = source or (length or 3) + int(rng.integers(1, 3))
    kept = length or max(source - int(rng.integers(1, 3)), 1)
    return IndexMap(rng.permutation(source)[:kept], source)


def audit_terms(
    name: str, terms: Sequence[Formula], ops: OpSet, mode: Mode, values: Mapping[str, Any]
) -> int:
    """Evaluate the terms of one e-class in GF(p); returns how many have a value.

    Raises:
        ArchirError: A415, two of them differ: an axiom is unsound.
    """
    world = World(Residues(), mode, ops, values)
    first: Any = None
    count = 0
    for term in terms:
        if not variables(term) <= set(values):
            continue
        try:
            found = evaluate(term, world)
        except UndefinedError:
            continue
        count += 1
        if count > 1 and not equal(first, found):
            raise error(
                "A415",
                f"the proof of {name} merges terms that differ in GF(p): {terms[0]} and {term}",
                hint="an axiom is unsound, or an operator's record belies its reference",
            )
        first = found
    return count


def holds(fact: Fact, world: World) -> bool:
    """Whether a relation holds between the values of its terms."""
    args = [evaluate(a, world) for a in fact.args]
    if fact.relation == "equal":
        return equal(args[0], args[1])
    return bool(RELATIONS[fact.relation](*args))


def equal(a: Any, b: Any) -> bool:
    """Equality of values, exact."""
    if isinstance(a, IndexMap) and isinstance(b, IndexMap):
        return a.source == b.source and np.array_equal(a.entries, b.entries)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape:
            return False
        return bool((a == b).all()) if a.dtype == object else not balance(np.asarray(a - b)).any()
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return False
    return bool(a == b)


def draw(k: Arithmetic, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A random tensor without zeros."""
    if isinstance(k, Rational):
        return k.array(rng.choice([-7, -5, -4, -3, -2, -1, 1, 2, 3, 5, 6], shape))
    return balance(rng.integers(1, PRIME, shape).astype(np.float64))


def _shape(value: Array) -> list[int]:
    return list(value.shape)


class _Drawing:
    """One random choice of values for a law's variables."""

    def __init__(self, law: Lawful, ops: OpSet, k: Arithmetic, rng: np.random.Generator) -> None:
        self.law, self.ops, self.k, self.rng = law, ops, k, rng
        self.pool = [int(n) for n in rng.permutation([2, 3, 4, 5, 6, 7])]
        self.sizes: dict[str, int] = {}
        self.stars: dict[str, tuple[int, ...]] = {}
        self.spatial = int(rng.integers(1, 3))
        self.found: dict[str, Any] = {"spatial rank": self.spatial}

    def values(self) -> dict[str, Any] | None:
        """Values, or None where this choice of sizes does not go together."""
        try:
            self._attributes()
            for declared in self.law.declared:
                if declared.kind and declared.kind not in ("int", "shape"):
                    self.found[declared.name] = self._scalar(declared)
            for declared in self.law.declared:
                if declared.shape is not None:
                    self.found[declared.name] = self._tensor(declared)
            for declared in self.law.declared:
                if declared.kind == "int":
                    self.found[declared.name] = self._integer(declared.name)
                if declared.kind == "shape":
                    self.found[declared.name] = self._sizes()
            for declared in self.law.declared:
                if declared.map is not None:
                    self._map(declared)
        except (IndexError, UndefinedError):
            return None
        return self.found

    def _size(self, name: str) -> int:
        if name not in self.sizes:
            self.sizes[name] = self.pool.pop()
        return self.sizes[name]

    def _star(self, name: str, *, alone: bool) -> tuple[int, ...]:
        if name not in self.stars:
            if name == "k":
                self.stars[name] = tuple(int(n) for n in self.rng.integers(1, 4, self.spatial))
            elif name == "s":
                self.stars[name] = tuple(
                    int(n) for n in self.rng.permutation([4, 5, 6, 7])[: self.spatial]
                )
            else:
                length = int(self.rng.integers(1 if alone else 0, 4 if alone else 3))
                self.stars[name] = tuple(self.pool.pop() for _ in range(length))
        return self.stars[name]

    def _tensor(self, declared: Declared) -> Array | None:
        assert declared.shape is not None
        shape: list[int] = []
        for dimension in declared.shape:
            if dimension.star:
                shape += self._star(str(dimension.factors[0]), alone=len(declared.shape) == 1)
            else:
                sizes = [f if isinstance(f, int) else self._size(f) for f in dimension.factors]
                shape.append(int(np.prod(sizes)))
        free = len(declared.shape) == 1 and declared.shape[0].star
        earlier = any(
            d.shape == declared.shape
            for d in self.law.declared[: self.law.declared.index(declared)]
        )
        if free and earlier and self.rng.random() < 0.6:
            shape = shape[int(self.rng.integers(0, len(shape))) :]
            shape = [1 if self.rng.random() < 0.4 else n for n in shape]
        if len(declared.shape) == 1 and not free and self.rng.random() < 0.2:
            return None
        for number, relation in enumerate(("zero", "one")):
            if relation in known(self.law.conditions, declared.name):
                return self.k.array(np.full(shape, number))
        return draw(self.k, self.rng, tuple(shape))

    def _scalar(self, declared: Declared) -> Any:
        if declared.kind == "axis":
            return int(self.rng.integers(-3, 4))
        if declared.kind == "number":
            return float(self.rng.choice([0.125, 0.25, 0.5, 2.0]))
        low, high = {"kernel": (1, 5), "steps": (1, 3), "margin": (0, 3)}[declared.kind]
        return tuple(int(n) for n in self.rng.integers(low, high, self.spatial))

    def _integer(self, name: str) -> int:
        """A size: often one that a tensor has."""
        sizes = [n for v in self.found.values() if isinstance(v, np.ndarray) for n in v.shape]
        if name not in self.sizes and sizes and self.rng.random() < 0.7:
            self.sizes[name] = int(self.rng.choice(sizes))
        return self._size(name)

    def _sizes(self) -> tuple[int, ...]:
        """A shape: often that of a tensor, or one of as many entries."""
        shapes = [v.shape for v in self.found.values() if isinstance(v, np.ndarray)]
        if shapes and self.rng.random() < 0.7:
            held = tuple(shapes[int(self.rng.integers(len(shapes)))])
            return held if self.rng.random() < 0.5 else (int(np.prod(held[:2])), *held[2:], 1)
        return tuple(int(n) for n in self.rng.integers(1, 4, int(self.rng.integers(1, 4))))

    def _map(self, declared: Declared) -> None:
        assert declared.map is not None
        new, old = declared.map
        ends = self._ends(declared.name)
        source = self.sizes.get(old) or ends["source"]
        length = self.sizes.get(new) or ends["length"]
        conditions = known(self.law.conditions, declared.name)
        if source is None and length is None:
            source = self.pool.pop()
        g = draw_map(self.rng, conditions, source=source, length=length)
        self.sizes[old], self.sizes[new] = g.source, len(g.entries)
        self.found[declared.name] = g

    def _ends(self, name: str) -> dict[str, int | None]:
        """The sizes that a map must have, read off the tensors that the left side applies it to."""
        ends: dict[str, int | None] = {"source": None, "length": None}
        for part in parts(self.law.left):
            if not isinstance(part, Application) or len(part.args) < 3:
                continue
            if part.args[1] not in (Variable(name), apply("count", Variable(name))):
                continue
            if variables(part.args[0]) | variables(part.args[2]) <= set(self.found):
                world = World(self.k, "eval", self.ops, self.found)
                x, axis = evaluate(part.args[0], world), evaluate(part.args[2], world)
                if isinstance(x, np.ndarray) and -x.ndim <= axis < x.ndim:
                    end = "source" if part.head in ("take", "share_out") else "length"
                    ends[end] = int(x.shape[axis])
        return ends

    # --- attributes and parameters that the axiom leaves open ---------------------------------

    def _attributes(self) -> None:
        for op in self._ops():
            for attr in op.attrs:
                name = f"{op.name}.{attr.name}"
                if name in self._open():
                    self.found[name] = self._attribute(op, attr)
            shapes: dict[str, Shape] = {}
            if isinstance(op.signature, str):
                shapes = {n: s for n, _, s in parse_signature(op.signature).tensors}
            for param in op.params:
                name = f"{op.name}.{param.role}"
                if name in self._open():
                    self.found[name] = None
                    if self.rng.random() < 0.8:
                        self.found[name] = draw(self.k, self.rng, self._shape(shapes[param.role]))

    def _open(self) -> set[str]:
        return variables(self.law.left) | variables(self.law.right)

    def _ops(self) -> list[Op]:
        heads = {p.head for p in parts(self.law.left) if isinstance(p, Application)}
        return [
            self.ops[n]
            for n in dict.fromkeys(h.rpartition(".")[0] or h for h in sorted(heads))
            if n in self.ops
        ]

    def _shape(self, shape: Sequence[Axis | Star]) -> tuple[int, ...]:
        out: list[int] = []
        for axis in shape:
            if isinstance(axis, Star):
                out += self._star(axis.name, alone=False)
            else:
                out.append(
                    int(
                        np.prod([f if isinstance(f, int) else self._size(f) for f in axis.terms[0]])
                    )
                )
        return tuple(out)

    def _attribute(self, op: Op, attr: Attr) -> Any:
        stated = {name: left.name for left, name in equations_of(op) if isinstance(left, Star)}
        rng = self.rng
        if attr.kind is Kind.SPATIAL:
            if stated.get(attr.name) == "k":
                return self._star("k", alone=False)
            return tuple(int(n) for n in rng.integers(1, 3, self.spatial))
        if attr.kind is Kind.PADDING:
            kernel = self.found.get(f"{op.name}.kernel") or (1,) * self.spatial
            return tuple(int(rng.integers(0, n // 2 + 1)) for n in kernel)
        if attr.kind is Kind.INT:
            return int(rng.integers(1, 4))
        if attr.kind is Kind.FLOAT:
            return float(rng.choice([0.125, 0.25, 0.5]))
        if attr.kind is Kind.BOOL:
            return bool(rng.integers(0, 2))
        return "f32" if attr.kind is Kind.DTYPE else attr.default
