"""Fitting the tensors of a foreign checkpoint to the parameters of a network.

Each parameter ends in one place: loaded, drawn anew, set to zero, kept, missing, or of another
shape or element type. Nothing is read before all is known to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from math import isqrt
from typing import Literal

import numpy as np

from archir.diag import ArchirError, error
from archir.ir.graph import Graph, Node
from archir.ir.types import TensorType
from archir.ops.arithmetic import Array
from archir.ops.record import OpSet
from archir.weights.checkpoint import StateDict, Stored
from archir.weights.init import constants_of, drawn, initial
from archir.weights.keys import Matching, Rename, match, match_order, natural, renamed
from archir.weights.store import Weights, numpy_dtype

FLOATS = ("f16", "bf16", "f32", "f64")
INTEGERS = ("i8", "u8", "i16", "i32", "i64")
HINTED = 20
"""For how many missing parameters a near key is looked for."""
MAX_PREFIX = 8
"""The most rows that stand before the grid of a table of positions (class tokens)."""

Resample = Callable[[Array, int, int, tuple[int, int], tuple[int, int]], Array]
"""Resamples the grid along an axis behind a number of rows: (array, axis, rows, old, new)."""


@dataclass(frozen=True)
class Choice:
    """What a user says about how a checkpoint is to be taken in."""

    entry: str | None = None
    """Which of the mappings of the file."""
    renames: tuple[Rename, ...] = ()
    match: Literal["name", "shape"] = "name"
    partial: bool = False
    """Whether the two sides may have a part in common only: what is missing is drawn instead."""
    ignore: tuple[str, ...] = ()
    """Globs of keys that are left out."""
    seed: int = 0
    """For what is drawn."""
    replace_head: bool = False
    """Whether the layers nearest the outputs are drawn anew."""
    fresh: tuple[str, ...] = ()
    """Globs of parameters that are drawn anew."""
    interpolate: tuple[str, ...] = ()
    """Globs of tables of positions that may be resampled."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A parameter and a tensor that belong together and do not fit."""

    path: str
    key: str
    network: str
    checkpoint: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of positions: how many rows stand before its grid, and the grid's extents."""

    axis: int
    rows: int
    old: tuple[int, int]
    new: tuple[int, int]

    def __str__(self) -> str:
        (h, w), (a, b) = self.old, self.new
        behind = f" behind {self.rows} row{'s' * (self.rows != 1)}" if self.rows else ""
        return f"{h} x {w} to {a} x {b}{behind}"


@dataclass
class Fitting:
    """Where each parameter of a network ends."""

    matching: Matching
    counts: Sequence[int]
    """How many keys each line of the key map changed."""
    pairs: dict[str, str] = field(default_factory=dict)
    """The key that each parameter is loaded from, as the file has it."""
    by_order: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Parameters without a tensor, with what is near."""
    unexpected: list[str] = field(default_factory=list)
    """Keys that no parameter has."""
    ignored: list[str] = field(default_factory=list)
    """Such keys that are left out because that was asked for."""
    wrong_shape: list[Misfit] = field(default_factory=list)
    wrong_dtype: list[Misfit] = field(default_factory=list)
    cast: dict[str, list[str]] = field(default_factory=dict)
    """Parameters whose element type changes, by ``from -> to``."""
    zeroed: list[str] = field(default_factory=list)
    """Counters of batches that the checkpoint is too old to have."""
    drawn: list[str] = field(default_factory=list)
    """Parameters drawn anew because that was asked for."""
    initialised: list[str] = field(default_factory=list)
    """Parameters drawn because the checkpoint lacks them."""
    kept: list[str] = field(default_factory=list)
    """Constants of the network, which no checkpoint holds."""
    interpolated: dict[str, Grid] = field(default_factory=dict)
    offer: int = 0
    """How many of the missing ones matching in order of equal shapes would find."""

    @property
    def fits(self) -> bool:
        """Whether each parameter has a tensor, and each tensor a parameter."""
        wrong = self.missing or self.unexpected or self.wrong_shape or self.wrong_dtype
        return bool(self.pairs) and not wrong


class Fitter:
    """Fits one state dict to one network."""

    def __init__(self, graph: Graph, ops: OpSet, stored: StateDict, choice: Choice) -> None:
        self.graph, self.ops, self.choice = graph, ops, choice
        new_keys, counts = renamed(list(stored), choice.renames)
        self.old_key = new_keys
        self.stored = {key: stored[old] for key, old in new_keys.items()}
        self.constants = set(constants_of(graph))
        self.wanted = [path for path in graph.parameters if path not in self.constants]
        self.found = Fitting(match(self.wanted, self.stored), counts)

    @cached_property
    def owner(self) -> dict[str, tuple[Node, str]]:
        """The first node that has a parameter, and its role there."""
        owners: dict[str, tuple[Node, str]] = {}
        for node in self.graph:
            for role, path in node.params.items():
                owners.setdefault(path, (node, role))
        return owners

    def run(self, *, ordered: bool = True) -> Fitting:
        """Decide about every parameter; ``ordered`` tells that the keys are in the network's order.

        Raises:
            ArchirError: A609, a glob fits no parameter; A629, two prefixes fit equally well;
                A635, a table of positions cannot be resampled.
        """
        found, matching = self.found, self.found.matching
        if matching.rivals and not matching.pairs:
            raise error(
                "A629",
                "the keys fit behind each of several prefixes: "
                + ", ".join(f"`{prefix}`" for prefix in matching.rivals),
                hint=f"take one of them away: --map '^{matching.rivals[0]}='",
            )
        fresh = self._fresh()
        keys = {path: key for path, (key, _) in matching.pairs.items() if path not in fresh}
        found.drawn = [path for path in self.wanted if path in fresh]
        self._match_order(keys, set(found.drawn), ordered=ordered)
        for path in self.wanted:
            if path in keys:
                self._compare(path, keys[path])
            elif path not in fresh:
                self._lacking(path)
        used = set(keys.values())
        skipped = {key for path, (key, _) in matching.pairs.items() if path in fresh}
        rest = [key for key in self.stored if key not in used and key not in skipped]
        rest = [key for key in rest if self._path(key) not in self.constants]
        ignore = self.choice.ignore
        for key in (self.old_key[key] for key in rest):
            left_out = any(fnmatchcase(key, glob) for glob in ignore) or self.choice.partial
            (found.ignored if left_out else found.unexpected).append(key)
        found.kept = [path for path in self.graph.parameters if path in self.constants]
        self._near(rest)
        if self.choice.partial:
            found.initialised, found.missing = list(found.missing), {}
        return found

    def _path(self, key: str) -> str:
        """The path that a key stands for, by the prefix that was found."""
        matching = self.found.matching
        return matching.added + key.removeprefix(matching.removed)

    def _fresh(self) -> set[str]:
        globs = dict.fromkeys((*self.choice.fresh, *self.choice.interpolate), False)
        out = set(self.head()) if self.choice.replace_head else set[str]()
        for path in self.wanted:
            for glob in globs:
                if fnmatchcase(path, glob):
                    globs[glob] = True
                    out |= {path} if glob in self.choice.fresh else set()
        for glob, fits in globs.items():
            if not fits:
                close = get_close_matches(glob, self.wanted, 1)
                raise error(
                    "A609",
                    f"no parameter of {self.graph.name} is named `{glob}`",
                    hint=f"did you mean `{close[0]}`?" if close else "",
                )
        return out

    def head(self) -> list[str]:
        """The parameters of the layers nearest the outputs, which no other layer shares."""
        users: dict[str, list[str]] = {}
        for node in self.graph:
            for path in node.params.values():
                users.setdefault(path, []).append(node.name)
        waiting, seen = [output.value.node for output in self.graph.outputs], set[str]()
        layers: set[str] = set()
        while waiting:
            node = self.graph.node(waiting.pop())
            if node.name in seen:
                continue
            seen.add(node.name)
            if node.params:
                layers.add(node.name)
            else:
                waiting += [value.node for value in node.inputs]
        return [path for path in self.wanted if set(users.get(path, [""])) <= layers]

    def _match_order(self, keys: dict[str, str], fresh: set[str], *, ordered: bool) -> None:
        """Pair what names do not; where that was not asked for, only count what it would find."""
        used = set(keys.values())
        ours = {
            path: self._shape(path)
            for path in self.wanted
            if path not in keys and path not in fresh and not self._counts_batches(path)
        }
        names = [key for key in self.stored if key not in used]
        if not ordered:
            names.sort(key=natural)
        found = match_order(ours, {key: self.stored[key].shape for key in names})
        if self.choice.match == "shape":
            keys |= found
            self.found.by_order = {path: self.old_key[key] for path, key in found.items()}
        else:
            self.found.offer = len(found)

    def _shape(self, path: str) -> tuple[int, ...]:
        shape = self.graph.parameters[path].type.shape
        return tuple(size for size in shape if isinstance(size, int))

    def _counts_batches(self, path: str) -> bool:
        return self.owner[path][1] == "num_batches_tracked"

    def _lacking(self, path: str) -> None:
        if self._counts_batches(path):
            self.found.zeroed.append(path)
        else:
            self.found.missing[path] = ""

    def _compare(self, path: str, key: str) -> None:
        type_, has = self.graph.parameters[path].type, self.stored[key]
        old = self.old_key[key]
        if has.shape != type_.shape:
            grid = grid_of(self._shape(path), has.shape)
            if any(fnmatchcase(path, glob) for glob in self.choice.interpolate):
                if grid is None or has.dtype not in FLOATS:
                    raise no_grid(path, type_, has)
                self.found.interpolated[path] = grid
            else:
                hint = self._hint(path, grid)
                self.found.wrong_shape.append(Misfit(path, old, str(type_), str(has), hint))
                return
        if has.dtype != type_.dtype:
            kinds = [k for k in (FLOATS, INTEGERS) if has.dtype in k and type_.dtype in k]
            if not kinds:
                self.found.wrong_dtype.append(Misfit(path, old, str(type_), str(has)))
                return
            self.found.cast.setdefault(f"{has.dtype} -> {type_.dtype}", []).append(path)
        self.found.pairs[path] = old

    def _hint(self, path: str, grid: Grid | None) -> str:
        if path in self.head():
            return "another number of classes? --param sets it, --replace-head draws the head anew"
        if grid is not None and self.owner[path][0].op in ("parameter", "embedding"):
            return (
                f"positions of a grid of {grid} (another input size)? "
                f"--interpolate {path} resamples them"
            )
        return ""

    def _near(self, rest: Sequence[str]) -> None:
        for path in list(self.found.missing)[:HINTED]:
            shape = self._shape(path)
            alike = [key for key in rest if self.stored[key].shape == shape]
            close = get_close_matches(path, alike or rest[:1000], 1, 0.75)
            self.found.missing[path] = self.old_key[close[0]] if close else ""


def grid_of(new: tuple[int, ...], old: tuple[int, ...]) -> Grid | None:
    """How a table of positions of one size becomes one of another, if that can be told.

    One axis differs, and is a few rows and a square grid on both sides.
    """
    if len(new) != len(old):
        return None
    differ = [axis for axis, (a, b) in enumerate(zip(new, old, strict=True)) if a != b]
    if len(differ) != 1:
        return None
    (axis,) = differ
    for rows in range(MAX_PREFIX + 1):
        a, b = (isqrt(max(side[axis] - rows, 0)) for side in (old, new))
        if a and b and (a * a, b * b) == (old[axis] - rows, new[axis] - rows):
            return Grid(axis, rows, (a, a), (b, b))
    return None


def no_grid(path: str, type_: TensorType, has: Stored) -> ArchirError:
    """The error for a table of positions that cannot be resampled."""
    return error(
        "A635",
        f"`{path}` is {type_}, the checkpoint has {has}: that is not one square grid of "
        "positions resampled to another",
        hint="--fresh draws it anew",
    )


def values(
    graph: Graph,
    ops: OpSet,
    stored: StateDict,
    fitting: Fitting,
    seed: int,
    constants: Mapping[str, Array],
    resample: Resample | None,
) -> Weights:
    """The weights that a fitting gives, in the graph's order.

    Raises:
        ArchirError: A140, a constant is missing; A613, a tensor cannot be read; A636, a value is
            beyond the parameter's element type.
    """
    owner: dict[str, tuple[Node, str]] = {}
    for node in graph:
        for role, path in node.params.items():
            owner.setdefault(path, (node, role))
    out: Weights = {}
    for path, parameter in graph.parameters.items():
        dtype = numpy_dtype(parameter.type.dtype)
        if path in fitting.pairs:
            array = stored[fitting.pairs[path]].read()
            grid = fitting.interpolated.get(path)
            if grid is not None:
                assert resample is not None
                array = resample(array, grid.axis, grid.rows, grid.old, grid.new)
            out[path] = _cast(path, array, dtype)
        elif path in constants:
            out[path] = constants[path]
        else:
            out[path] = drawn(initial(*owner[path], parameter, ops, seed)).astype(dtype, copy=False)
    return out


def _cast(path: str, array: Array, dtype: np.dtype[np.generic]) -> Array:
    """An own copy in an element type, whose values it can hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        made = np.array(array, dtype, order="C")
    if made.dtype == array.dtype:
        return made
    if dtype.kind in "iu":
        fine = bool((made.astype(array.dtype) == array).all())
    else:
        wide = made.astype(np.float64)
        fine = bool((np.isfinite(wide) == np.isfinite(array.astype(np.float64))).all())
    if not fine:
        raise error("A636", f"`{path}` holds values that {dtype} cannot hold")
    return made
