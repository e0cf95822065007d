"""Every use of a rule, checked with ``==``: both sides of the region in GF(p), at real size.

The region is what the plan touches. Both sides get the same random residues at the values
that enter it and the same random parent parameters, the weight terms are evaluated in the
field, and the values that leave must be equal entry by entry. In training mode the new
buffers must be the map of the old ones too, in the entries that stand for old ones. A wrong map
survives one check with a probability of about d / p for polynomials of degree d (Schwartz,
Zippel), p = 1048571.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from archir.diag import error
from archir.ir.dims import substitute, symbols_of
from archir.ir.graph import Node, Value
from archir.ir.types import TensorType
from archir.ops.arithmetic import PRIME, Arithmetic, Array, Floating, Rational, Residues, balance
from archir.ops.evaluate import run
from archir.ops.record import Mode, OpSet
from archir.rewrite.assumed import put_in_place
from archir.rewrite.plan import Plan, Region, as_assumed, region_of
from archir.weights.fibres import ALONG
from archir.weights.functions import evaluate, shape_of
from archir.weights.terms import Apply, Free, IndexMap, Term, free, references

T = TypeVar("T")
OTHER_SYMBOLS = 12
"""What a symbolic size other than the batch stands for in a check."""


@dataclass(frozen=True)
class Mismatch:
    """Where the two sides differ."""

    value: str
    index: tuple[int, ...]
    count: int
    total: int
    before: str = ""
    after: str = ""
    """The first two numbers that differ."""


@dataclass(frozen=True)
class ExactCheck:
    """The outcome of checking one use in one mode."""

    mode: Mode
    equal: bool
    field: str
    nodes: int
    numbers: int
    seconds: float
    mismatch: Mismatch | None = None


def shape_in_check(type_: TensorType, batch: int) -> tuple[int, ...]:
    """A type's shape with symbols replaced: the first axis's by the batch, others by a constant."""
    first = symbols_of(type_.shape[:1])
    values = {n: batch if n in first else OTHER_SYMBOLS for n in symbols_of(type_.shape)}
    out = tuple(substitute(size, values) for size in type_.shape)
    return tuple(size for size in out if isinstance(size, int))


@dataclass(frozen=True)
class Trial:
    """Random parameters for both sides of a plan; the modes of one use share them."""

    arithmetic: Arithmetic
    seed: int
    region: Region
    old: Mapping[str, Array]
    new: Mapping[str, Array]
    measured: Mapping[Free, Array]
    """Calibration and initial values may be anything: the map must be exact for all of it."""


def trial_of(plan: Plan, *, seed: int = 0, arithmetic: Arithmetic | None = None) -> Trial:
    """Draw the parent's parameters and evaluate the plan's terms on them."""
    k = arithmetic or Residues()
    region = region_of(plan)
    old = _parameters(plan, region, k, np.random.Generator(np.random.PCG64([seed, 0x5EED])))
    read = {p for n in region.before for p in n.params.values()}
    old.update({p: a for p, a in as_assumed(plan, old).items() if p in read})
    old.update(_as_assumed(plan, old, k))
    held = _paths(region.after, plan)
    rng = np.random.Generator(np.random.PCG64([seed, 0xCA11]))
    measured = {
        leaf: _draw(k, rng, shape_of(leaf, {})) for path in held for leaf in free(plan.terms[path])
    }
    new = {path: evaluate(plan.terms[path], k, old, measured) for path in held}
    new.update({path: array for path, array in old.items() if path not in new})
    return Trial(k, seed, region, old, new, measured)


def _as_assumed(plan: Plan, old: Mapping[str, Array], k: Arithmetic) -> dict[str, Array]:
    """What the rule assumes of weights, put in place; it must then hold."""
    due = put_in_place(plan.assumed, old, k)
    again = put_in_place(plan.assumed, {**old, **due}, k)
    for assumed in plan.assumed:
        if _compare(assumed.path, due[assumed.path], again[assumed.path]) is not None:
            raise error(
                "A405",
                f"`{plan.rule.name}` assumes {assumed.text}, which does not hold once the right "
                "side is put in place of the left",
                span=plan.rule.span,
                hint="the right side may read the weight itself only if doing it twice is doing it "
                "once",
            )
    return due


def check_use(
    plan: Plan,
    ops: OpSet,
    mode: Mode,
    *,
    seed: int = 0,
    arithmetic: Arithmetic | None = None,
    trial: Trial | None = None,
    compare: Callable[[str, Array, Array], Mismatch | None] | None = None,
) -> ExactCheck:
    """Compare both sides of a plan exactly, in GF(p) unless another arithmetic is given.

    ``compare`` says where two tensors differ, if not with ``==``.
    """
    start, compare = time.perf_counter(), compare or _compare
    trial = trial or trial_of(plan, seed=seed, arithmetic=arithmetic)
    k, region, old, new = trial.arithmetic, trial.region, trial.old, trial.new
    feeds = feeds_of(plan, trial, mode)
    wanted, other = [a for a, _ in region.checks], [b for _, b in region.checks]
    one = partial(run, plan.before, ops, k, feeds, old, wanted=wanted, mode=mode)
    two = partial(run, plan.after, ops, k, feeds, new, wanted=other, mode=mode)
    left, right = (one(), two()) if isinstance(k, Rational) else _together(one, two)
    mismatch = None
    for a, b in region.checks:
        mismatch = mismatch or compare(str(a), left.values[a], right.values[b])
    if mode == "train":
        mapped, measured = {**old, **left.buffers}, trial.measured
        for path, found in right.buffers.items():
            term = plan.terms.get(path)
            if term is not None and not _of_buffers(plan, term):
                continue  # a statistic that starts anew has nothing to agree with
            due = mapped[path] if term is None else evaluate(term, k, mapped, measured)
            own = found
            for axis, kept in ({} if term is None else _related(term)).items():
                due, own = due.compress(kept, axis), own.compress(kept, axis)
            mismatch = mismatch or compare(path, due, own)
    numbers = sum(int(np.size(x)) for x in (*left.values.values(), *old.values()))
    return ExactCheck(
        mode,
        mismatch is None,
        f"GF({PRIME})" if k.name == "gf" else k.name,
        len(region.before) + len(region.after),
        numbers,
        time.perf_counter() - start,
        mismatch,
    )


def _together(one: Callable[[], T], two: Callable[[], T]) -> tuple[T, T]:
    """Both at once: NumPy lets go of the interpreter in long operations on numbers.

    Two threads of BLAS would only wait for each other.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as beside:
        other = beside.submit(one)
        done = two()
        return other.result(), done


def _batch(region: Region, mode: Mode) -> int:
    """One sample; two where statistics are taken over the batch alone."""
    flat = any(t.rank <= 2 for node in (*region.before, *region.after) for t in node.types)
    return 2 if mode == "train" and flat else 1


def feeds_of(plan: Plan, trial: Trial, mode: Mode) -> dict[Value, Array]:
    """What enters the region; an input of the network that it reads is fed as well."""
    k, region, batch = trial.arithmetic, trial.region, _batch(trial.region, mode)
    rng = np.random.Generator(np.random.PCG64([trial.seed, 0xFEED]))
    values = dict.fromkeys(region.feeds)
    values.update({Value(name): None for name in plan.before.inputs if _reads(region, name)})
    return {v: _draw(k, rng, shape_in_check(plan.before.type_of(v), batch)) for v in values}


def _reads(region: Region, name: str) -> bool:
    return any(v.node == name for n in (*region.before, *region.after) for v in n.inputs)


def _draw(k: Arithmetic, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if isinstance(k, Rational):
        return k.array(rng.integers(-9, 10, shape))
    if isinstance(k, Floating):
        return k.array(rng.uniform(-1, 1, shape))
    values = rng.integers(-(PRIME // 2), PRIME // 2 + 1, shape, np.int32)
    return values.astype(np.float64)


def _sources(plan: Plan, path: str) -> list[str]:
    term = plan.terms.get(path)
    return [path] if term is None else list(references(term))


def _of_buffers(plan: Plan, term: Term) -> bool:
    return any(plan.before.parameters[path].buffer for path in references(term))


def _related(term: Term) -> dict[int, Array]:
    """By axis, which entries of a buffer stand for old ones; others begin with themselves."""
    marks: dict[int, Array] = {}
    chain: list[Apply] = []
    while isinstance(term, Apply) and term.function in ALONG:
        chain.append(term)
        inner = term.args[0]
        assert isinstance(inner, Term)
        term = inner
    for step in reversed(chain):
        _, g, axis, *_ = step.args
        assert isinstance(g, IndexMap)
        assert isinstance(axis, int)
        if step.function in ("place", "graft"):
            old = marks.get(axis, np.ones(len(g.entries), np.bool_))
            marks[axis] = np.zeros(g.source, np.bool_)
            marks[axis][g.entries] = old
        elif axis in marks and step.function == "take":
            marks[axis] = marks[axis][g.entries]
    return marks


def _paths(nodes: tuple[Node, ...], plan: Plan) -> list[str]:
    held = {p for n in nodes for p in n.params.values()}
    return [p for p in plan.terms if p in held]


def _parameters(
    plan: Plan, region: Region, k: Arithmetic, rng: np.random.Generator
) -> dict[str, Array]:
    """Random values for every parent parameter that either side reads."""
    paths = dict.fromkeys(p for n in region.before for p in n.params.values())
    paths.update(
        dict.fromkeys(
            p for n in region.after for own in n.params.values() for p in _sources(plan, own)
        )
    )
    out: dict[str, Array] = {}
    for path in paths:
        parameter = plan.before.parameters[path]
        shape = tuple(size for size in parameter.type.shape if isinstance(size, int))
        out[path] = _draw(k, rng, shape)
    return out


def _compare(name: str, a: Array, b: Array) -> Mismatch | None:
    if a.shape != b.shape:
        shapes = (f"of shape {list(a.shape)}", f"of shape {list(b.shape)}")
        return Mismatch(name, (), max(a.size, b.size), a.size, *shapes)
    differs = (a != b) if a.dtype == object else balance(np.asarray(a - b)) != 0
    if not differs.any():
        return None
    where = np.argwhere(differs)[0]
    index = tuple(int(i) for i in where)
    shown = (str(a[index]), str(b[index]))
    return Mismatch(name, index, int(differs.sum()), int(differs.size), *shown)
