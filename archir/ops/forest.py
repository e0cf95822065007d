"""Classes of axes under union-find, with cuts.

Where two structures meet, their classes are joined; where they are cut differently, or an
operator cuts an axis itself (into groups and what is inside, into the parts of a split), a
class is replaced by what it is made of, everywhere at once. What stops a class is inherited by
its parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from archir.ir.dims import Size, total
from archir.ops.structure import (
    FIXED,
    Factor,
    Segment,
    Structure,
    leaves,
    segment_size,
    structure_size,
)

DEEPEST = 24
"""How often a class may be cut: an axis added to itself shifted by one would never end."""
UNROLLED = 16
"""Copies of a part that are written out one by one where a cut falls inside of one."""

Condition = Literal["even", "bijective", "copies", "alike"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a class cannot change, and the node that is to blame."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a node asks of every map of a class.

    ``even``: each entry is taken equally often; ``bijective``: exactly once;
    ``copies``: every new entry is an old one; ``alike``: what is done to the weights that make it
    is what is done to those that read it.
    """

    node: str
    condition: Condition
    reason: str


@dataclass
class Record:
    """A class in the making. ``label`` says which part of its origin's axis it is."""

    size: Size
    origin: str
    label: str = ""
    depth: int = 0
    obstacles: dict[Obstacle, None] = field(default_factory=dict)
    needs: dict[Need, None] = field(default_factory=dict)


class Forest:
    """Union-find over classes that can be cut."""

    def __init__(self) -> None:
        self.node = ""
        """The node at hand, to blame for what stops a class."""
        self.records: list[Record] = []
        self._parent: list[int] = []
        self._parts: dict[int, Structure] = {}

    def find(self, number: int) -> int:
        """The representative of a class."""
        root = number
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[number] != root:
            self._parent[number], number = root, self._parent[number]
        return root

    def is_class(self, number: int) -> bool:
        """Whether a number stands for a class of its own that has not been cut."""
        return self._parent[number] == number and number not in self._parts

    def fresh(self, size: Size, origin: str) -> Structure:
        """An axis of a new class."""
        return ((self._new(Record(size, origin)),),)

    def _new(self, record: Record) -> Factor:
        self._parent.append(len(self.records))
        self.records.append(record)
        return Factor(len(self.records) - 1, record.size)

    def composite(self, structure: Structure, origin: str) -> Factor:
        """One factor that stands for a sum."""
        size = structure_size(structure)
        assert size is not None
        factor = self._new(Record(size, origin))
        self._parts[factor.number] = structure
        return factor

    # --- what a structure is, now -----------------------------------------------------------

    def resolve(self, structure: Structure) -> Structure:
        """Representatives in place of classes, and parts in place of what has been cut."""
        if len(structure) == 1 and len(structure[0]) == 1:  # what nearly all axes are
            (factor,) = structure[0]
            if factor.number < 0 or (not factor.inner and self.is_class(factor.number)):
                return structure
        out: list[Segment] = []
        for segment in structure:
            out.extend(self._resolve(segment))
        return tuple(out)

    def _resolve(self, segment: Segment) -> list[Segment]:
        spread: list[Segment] = [()]
        for place, factor in enumerate(segment):
            if factor.number < 0:
                spread = [(*s, factor) for s in spread]
                continue
            root = self.find(factor.number)
            parts = self._parts.get(root)
            if parts is None:
                spread = [(*s, Factor(root, factor.size)) for s in spread]
                continue
            inner = self.resolve(parts)
            if len(inner) == 1:
                spread = [s + inner[0] for s in spread]
            elif place == 0:
                spread = list(inner)
            else:
                spread = [(*s, Factor(root, factor.size, inner)) for s in spread]
        return spread

    # --- what stops a change ------------------------------------------------------------------

    def block(self, structure: Structure, why: Obstacle) -> None:
        """No class of a structure may change."""
        for number in leaves(self.resolve(structure)):
            self.records[number].obstacles[why] = None

    def require(self, structure: Structure, need: Need) -> None:
        """Every map of a class of a structure must meet a condition.

        An axis of several segments is even only as a whole, which no one class can do (unless
        all are copies of one): there maps must be bijective.
        """
        found = self.resolve(structure)
        alone = len(set(found)) == 1 and not any(f.inner for f in found[0])
        if need.condition == "even" and not alone:
            need = _exactly(need)
        for number in leaves(found):
            self.records[number].needs[need] = None

    # --- cuts -----------------------------------------------------------------------------------

    def _refine(self, factor: Factor, sizes: tuple[int, int], labels: tuple[str, str]) -> bool:
        """Make a class a product (of labelled parts) or, without labels, a sum of two."""
        assert self.is_class(factor.number), "only what is whole can be cut"
        record = self.records[factor.number]
        if record.depth >= DEEPEST:
            return False
        made = []
        for size, label in zip(sizes, labels, strict=True):
            part = Record(size, record.origin, label or record.label or "part", record.depth + 1)
            part.obstacles.update(record.obstacles)
            part.needs.update(record.needs)
            made.append(self._new(part))
        one, two = made
        if labels[0]:
            self._parts[factor.number] = ((one, two),)
            return True
        for number in (one.number, two.number):
            needs = self.records[number].needs
            self.records[number].needs = dict.fromkeys(map(_exactly, needs))
        self._parts[factor.number] = ((one,), (two,))
        return True

    def _split(self, factor: Factor, at: int) -> tuple[Segment, Segment] | None:
        """A first factor as a sum of two."""
        assert isinstance(factor.size, int)
        sizes = (at, factor.size - at)
        if factor.number < 0:
            return (Factor(FIXED, sizes[0]),), (Factor(FIXED, sizes[1]),)
        if not self._refine(factor, sizes, ("", "")):
            return None
        one, two = self._parts[factor.number]
        return one, two

    def _factors(self, factor: Factor, inner: int, labels: tuple[str, str]) -> Segment | None:
        """A factor as a product of two."""
        assert isinstance(factor.size, int)
        sizes = (factor.size // inner, inner)
        if factor.number < 0:
            return Factor(FIXED, sizes[0]), Factor(FIXED, sizes[1])
        if factor.inner or not self._refine(factor, sizes, labels):
            return None
        return self._parts[factor.number][0]

    def cut(self, structure: Structure, at: int) -> tuple[Structure, Structure] | None:
        """The first ``at`` entries of an axis and the rest; None where it cannot be cut there."""
        left: list[Segment] = []
        rest = deque(self.resolve(structure))
        reached = 0
        while reached < at and rest:
            if not self._settle(rest):
                continue
            segment = rest.popleft()
            size = segment_size(segment)
            if not isinstance(size, int):
                return None
            if reached + size <= at:
                left.append(segment)
                reached += size
                continue
            halves = self._cut_segment(segment, at - reached)
            if halves is None:
                return None
            left.extend(halves[0])
            rest.extendleft(reversed(halves[1]))
            reached = at
        return (tuple(left), tuple(rest)) if reached == at else None

    def _cut_segment(self, segment: Segment, at: int) -> tuple[Structure, Structure] | None:
        first, *others = segment
        tail = tuple(others)
        inner = segment_size(tail) if tail else 1
        if not isinstance(first.size, int) or not isinstance(inner, int):
            return None
        if first.size == 1 and tail:
            self.block(
                ((first,),), Obstacle(self.node, "a cut there falls inside of one of its entries")
            )
            return self.cut((tail,), at)
        whole, part = divmod(at, inner)
        if not part:
            halves = self._split(first, whole)
            if halves is None:
                return None
            return ((*halves[0], *tail),), ((*halves[1], *tail),)
        return self._cut_inside(first, tail, whole, part)

    def _cut_inside(
        self, first: Factor, tail: Segment, whole: int, part: int
    ) -> tuple[Structure, Structure] | None:
        """The cut falls inside of one copy of the tail: that copy is written out."""
        assert isinstance(first.size, int)
        if first.number < 0 and first.size > UNROLLED:
            return None
        left: list[Segment] = []
        if whole:
            halves = self._split(first, whole)
            if halves is None:
                return None
            left.append((*halves[0], *tail))
            (first,) = halves[1]
        right: list[Segment] = []
        assert isinstance(first.size, int)
        if first.size > 1:
            halves = self._split(first, 1)
            if halves is None:
                return None
            right.append((*halves[1], *tail))
            (first,) = halves[0]
        self.block(
            ((first,),), Obstacle(self.node, "a cut there falls inside of one of its entries")
        )
        pieces = self.cut((tail,), part)
        if pieces is None:
            return None
        return (*left, *pieces[0]), (*pieces[1], *right)

    def partition(self, structure: Structure, sizes: list[Size]) -> list[Structure] | None:
        """Cut an axis into consecutive parts of given sizes."""
        found = self.resolve(structure)
        if [segment_size(s) for s in found] == sizes:
            return [(s,) for s in found]
        if len(sizes) == 1:
            return [found] if structure_size(found) == sizes[0] else None
        middle = len(sizes) // 2  # halves of halves: a class is cut no deeper than need be
        at = total(sizes[:middle])
        halves = self.cut(found, at) if isinstance(at, int) else None
        if halves is None:
            return None
        left = self.partition(halves[0], sizes[:middle])
        right = self.partition(halves[1], sizes[middle:])
        return [*left, *right] if left is not None and right is not None else None

    def factorise(
        self, structure: Structure, inner: int, labels: tuple[str, str]
    ) -> tuple[Structure, Structure] | None:
        """Read an axis as a product whose fast part has ``inner`` entries."""
        outer: list[Segment] = []
        inside: Structure | None = None
        rest = deque(self.resolve(structure))
        while rest:
            if not self._settle(rest):
                continue
            segment = rest.popleft()
            size = segment_size(segment)
            if not isinstance(size, int):  # a batch times heads: the heads alone are cut off
                return None if outer or rest else self._factor_alone(segment, inner, labels)
            if size % inner == 0:
                found = self._factor_segment(segment, inner, labels)
                if found is None:
                    return None
                outer.append(found[0])
                part: Structure = (found[1],)
            else:
                halves = self.cut((segment, *rest), max(size - size % inner, inner))
                if halves is None:
                    return None
                part, remaining = halves
                if size > inner:
                    rest = deque((*part, *remaining))
                    continue
                outer.append((Factor(FIXED, 1),))
                rest = deque(remaining)
            if inside is None:
                inside = part
            else:
                self.unify(inside, part)
        assert inside is not None
        return self.resolve(tuple(outer)), self.resolve(inside)

    def _factor_alone(
        self, segment: Segment, inner: int, labels: tuple[str, str]
    ) -> tuple[Structure, Structure] | None:
        """The only segment of an axis, whose size is a symbol times a number."""
        found = self._factor_segment(segment, inner, labels)
        return None if found is None else (self.resolve((found[0],)), self.resolve((found[1],)))

    def _factor_segment(
        self, segment: Segment, inner: int, labels: tuple[str, str]
    ) -> tuple[Segment, Segment] | None:
        rest = list(segment)
        taken: list[Factor] = []
        need = inner
        while need > 1 and rest:
            factor = rest.pop()
            if factor.number >= 0 and not factor.inner and not self.is_class(factor.number):
                (again,) = self._resolve((Factor(FIXED, 1), factor))
                rest.extend(again[1:])
                continue
            if not isinstance(factor.size, int):
                return None
            if need % factor.size == 0:
                taken.insert(0, factor)
                need //= factor.size
                continue
            if factor.size % need:
                return None
            halves = self._factors(factor, need, labels)
            if halves is None:
                return None
            rest.append(halves[0])
            taken.insert(0, halves[1])
            need = 1
        one = (Factor(FIXED, 1),)
        return tuple(rest) or one, tuple(taken) or one

    # --- meetings -------------------------------------------------------------------------------

    def unify(self, a: Structure, b: Structure) -> None:
        """Two axes are one: their classes are joined, cut where need be, or blocked."""
        if a == b:
            return
        left, right = deque(self.resolve(a)), deque(self.resolve(b))
        while left and right:
            if not (self._settle(left) and self._settle(right)):
                continue
            sizes = segment_size(left[0]), segment_size(right[0])
            if sizes[0] == sizes[1]:
                if not self._unify_segments(left.popleft(), right.popleft()):
                    break
                continue
            longer, other = (left, right) if _larger(*sizes) else (right, left)
            at = _seam(longer[0], other)
            halves = self._cut_segment(longer.popleft(), at) if at else None
            if halves is None:
                break
            longer.extendleft(reversed((*halves[0], *halves[1])))
        else:
            if not left and not right:
                return
        why = Obstacle(self.node, "two axes meet there whose parts do not line up")
        self.block(a, why)
        self.block(b, why)

    def _settle(self, segments: deque[Segment]) -> bool:
        """Bring the first segment up to date; False if it has become another."""
        again = self._resolve(segments[0])
        if len(again) == 1 and again[0] == segments[0]:
            return True
        segments.popleft()
        segments.extendleft(reversed(again))
        return False

    def _unify_segments(self, one: Segment, two: Segment) -> bool:
        left, right = list(one), list(two)
        while left or right:
            self._refresh(left)
            self._refresh(right)
            if left and right and left[0].size == right[0].size:
                self.join(left.pop(0), right.pop(0))
                continue
            if left and left[0].size == 1:
                self._meets_nothing(left.pop(0))
                continue
            if right and right[0].size == 1:
                self._meets_nothing(right.pop(0))
                continue
            if not left or not right or not _whole((left[0].size, right[0].size)):
                return False
            longer, other = (left, right) if _larger(left[0].size, right[0].size) else (right, left)
            first, step = longer[0].size, other[0].size
            assert isinstance(first, int)
            assert isinstance(step, int)
            if first % step:
                return False
            halves = self._factors(longer.pop(0), first // step, ("outer", "inner"))
            if halves is None:
                return False
            longer[:0] = halves
        return True

    def _refresh(self, factors: list[Factor]) -> None:
        """Bring a first factor up to date."""
        if factors and factors[0].number >= 0:
            again = self._resolve((factors[0],))
            if len(again) == 1:
                factors[:1] = again[0]
            else:
                root = self.find(factors[0].number)
                factors[0] = Factor(root, factors[0].size, tuple(again))

    def _meets_nothing(self, factor: Factor) -> None:
        self.block(
            ((factor,),), Obstacle(self.node, "it meets an axis there that has no such part")
        )

    def join(self, f: Factor, g: Factor) -> None:
        """Make two factors of one size one class."""
        if f.number < 0 or g.number < 0:
            if f.number >= 0 or g.number >= 0:
                self.block(
                    ((f,), (g,)), Obstacle(self.node, "it meets an axis there whose size is fixed")
                )
            return
        a, b = self.find(f.number), self.find(g.number)
        if a == b:
            return
        first, second = min(a, b), max(a, b)
        if first in self._parts and second in self._parts:
            self.unify(self._parts[first], self._parts[second])
            return
        if second in self._parts:
            first, second = second, first
        self._parent[second] = first
        kept = self.records[first]
        kept.label = kept.label or self.records[second].label
        kept.depth = max(kept.depth, self.records[second].depth)
        whole = ((Factor(first, f.size),),)
        for why in self.records[second].obstacles:
            self.block(whole, why)
        for need in self.records[second].needs:
            self.require(whole, need)


def _seam(long: Segment, others: Iterable[Segment]) -> int:
    """Where segments that stand beside a longer one cut it: the middle of their seams, or 0."""
    seams = [0]
    size = segment_size(long)
    for each in others:
        part = segment_size(each)
        if not isinstance(part, int) or not isinstance(size, int) or seams[-1] + part >= size:
            break
        seams.append(seams[-1] + part)
    return seams[len(seams) // 2]


def _exactly(need: Need) -> Need:
    """What is asked of the parts of a sum, where the whole is to be even."""
    return replace(need, condition="bijective") if need.condition == "even" else need


def _whole(sizes: tuple[Size, Size]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _larger(a: Size, b: Size) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a > b
