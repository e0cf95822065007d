"""What the heads of terms mean: how uses of operators become terms, and how terms are evaluated.

A use of an operator is its name over operands, attributes and parameters, in the record's
order. Attributes that follow from the parameters' shapes (the channels a convolution makes) or
say whether a parameter is there are left out; an absent parameter is ``none``. Sums, products
and concatenations of many tensors are folds of binary ones, and share their head with the
weight function of the same meaning. An operator's new buffer is ``OPERATOR.ROLE``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array, balance
from archir.ops.infer import Instance, OpError, bind_attrs, equations_of, instance
from archir.ops.record import Attr, Mode, Op, OpSet
from archir.ops.signature import Axis, Star, measure, parse_signature
from archir.proof.terms import Application, Constant, Formula, Variable, apply
from archir.proof.windows import WINDOWS
from archir.weights.functions import FUNCTIONS, WeightError
from archir.weights.making import filled
from archir.weights.terms import IndexMap

FOLDED = {"add": "add", "mul": "multiply", "concat": "concat"}
"""Operators over any number of tensors, and the binary head that they are folds of."""


class UndefinedError(Exception):
    """A term has no value: shapes do not fit, an index is out of range."""


@dataclass(frozen=True)
class Layout:
    """The order of what stands in an operator's term after its operands."""

    attrs: tuple[Attr, ...]
    derived: tuple[tuple[str, str, int], ...]
    """Attributes left out, each the size of a parameter's axis: name, role, axis."""
    roles: tuple[str, ...]
    several: bool
    """Whether uses may have several results: then each is a ``port`` of the whole."""


@lru_cache(maxsize=1024)
def layout(op: Op) -> Layout:
    """The layout of an operator's terms."""
    flags = {p.when for p in op.params}
    derived: list[tuple[str, str, int]] = []
    flowing: set[str] = set()
    counts = {1}
    for sample in op.samples:
        attrs = bind_attrs(op, sample.attrs, sample.inputs)
        counts.add(len(instance(op, attrs, sample.inputs).types))
    if isinstance(op.signature, str):
        signature = parse_signature(op.signature)
        shapes = {name: shape for name, _, shape in signature.tensors}
        for left, attr in equations_of(op):
            for param in op.params:
                places = [i for i, axis in enumerate(shapes.get(param.role, ())) if axis == left]
                told = places and param.when is None and all(a != attr for a, _, _ in derived)
                if isinstance(left, Axis) and told:
                    derived.append((attr, param.role, places[0]))
                if isinstance(left, Star) and places and left in signature.results[0]:
                    flowing.add(attr)
    out = flags | flowing | {name for name, _, _ in derived}
    return Layout(
        tuple(a for a in op.attrs if a.name not in out),
        tuple(derived),
        tuple(p.role for p in op.params if p.dtype is None),
        len(counts) > 1,
    )


def head_of(op: Op) -> str:
    """The head of an operator's terms: its name, marked where a weight function has that too."""
    return f"operator {op.name}" if op.name in (*FUNCTIONS, *PROOF_FUNCTIONS) else op.name


def use(
    op: Op,
    operands: Sequence[Formula],
    attrs: Mapping[str, Formula],
    params: Mapping[str, Formula],
    *,
    results: int = 1,
) -> tuple[Formula, ...]:
    """The outputs of a use of an operator, as terms; ``params`` leaves out absent parameters."""
    if op.name in FOLDED and operands:
        rest = (attrs["axis"],) if op.name == "concat" else ()
        return (reduce(lambda a, b: apply(FOLDED[op.name], a, b, *rest), operands),)
    held = layout(op)
    whole = Application(head_of(op), (*operands, *_tail(held, attrs, params)))
    if not held.several:
        return (whole,)
    return tuple(apply("port", whole, number) for number in range(results))


def _tail(
    held: Layout, attrs: Mapping[str, Formula], params: Mapping[str, Formula]
) -> tuple[Formula, ...]:
    return (
        *(attrs[a.name] for a in held.attrs),
        *(params.get(role, Constant(None)) for role in held.roles),
    )


def buffers(
    op: Op,
    operands: Sequence[Formula],
    attrs: Mapping[str, Formula],
    params: Mapping[str, Formula],
) -> dict[str, Formula]:
    """The operator's buffers after a step of training, by role, as terms."""
    if op.update is None:
        return {}
    tail = (*operands, *_tail(layout(op), attrs, params))
    return {
        p.role: Application(f"{op.name}.{p.role}", tail)
        for p in op.params
        if p.buffer and p.dtype is None and p.role in params
    }


# --- evaluation -----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Where terms are evaluated: a number system, a mode, the operators, and the variables."""

    arithmetic: Arithmetic
    mode: Mode
    ops: OpSet
    values: Mapping[str, Any]


def evaluate(term: Formula, world: World) -> Any:
    """The value of a term: an array, an index map, an attribute, or None (absent).

    Raises:
        UndefinedError: it has none.
    """
    try:
        return _evaluate(term, world, {})
    except UndefinedError:
        raise
    except Exception as reason:  # any failure of a reference means the term is ill-formed
        raise UndefinedError(f"{type(reason).__name__}: {reason}") from reason


def _evaluate(term: Formula, world: World, known: dict[Formula, Any]) -> Any:
    if isinstance(term, Variable):
        return world.values[term.name]
    if isinstance(term, Constant):
        return term.value
    if term not in known:
        args = [_evaluate(a, world, known) for a in term.args]
        known[term] = _call(term.head, args, world)
    return known[term]


def _call(head: str, args: list[Any], world: World) -> Any:
    k = world.arithmetic
    if head in PROOF_FUNCTIONS:
        return PROOF_FUNCTIONS[head](k, *args)
    if head in FUNCTIONS:
        return _function(head, args, k)
    name, _, role = head.rpartition(".")
    if name in world.ops:
        return _reference(world.ops[name], role, args, world)
    return _reference(world.ops[head.removeprefix("operator ")], "", args, world)


def _function(head: str, args: list[Any], k: Arithmetic) -> Any:
    if head == "take" and args[0] is None:
        return None
    shapes = [a.shape if isinstance(a, np.ndarray) else a for a in args]
    if head in ("add", "subtract", "multiply", "divide"):
        args = [a if isinstance(a, np.ndarray) else k.array(a) for a in args]
    else:
        FUNCTIONS[head].shape(*shapes)
    return FUNCTIONS[head].value(k, *args)


def _reference(op: Op, role: str, args: list[Any], world: World) -> Any:
    held = layout(op)
    many = len(args) - len(held.attrs) - len(held.roles)
    x = tuple(args[:many])
    stated = dict(zip((a.name for a in held.attrs), args[many:], strict=False))
    # An attribute that is none is what the operator makes of its operands.
    given = {name: value for name, value in stated.items() if value is not None}
    roles = dict(zip(held.roles, args[many + len(held.attrs) :], strict=True))
    params = {r: v for r, v in roles.items() if v is not None}
    for param in op.params:
        if param.when is not None and param.dtype is None:
            there = param.role in params
            if given.setdefault(param.when, there) != there:
                raise UndefinedError(f"{op.name}: parameters of `{param.when}` come together")
    for name, source, axis in held.derived:
        given[name] = params[source].shape[axis]
    for left, attr in equations_of(op):
        if isinstance(left, Star) and attr not in given:
            given[attr] = params[op.params[0].role].shape
    attrs, wanted = _bound(op, given, x)
    for name, value in params.items():
        if wanted.params[name].shape != value.shape:
            right = wanted.params[name].shape
            raise UndefinedError(f"{op.name}: {name} is {value.shape}, not {right}")
    if role:
        if op.update is None:
            raise UndefinedError(f"{op.name} has no buffers")
        return op.update(world.arithmetic, x, params, attrs)[role]
    results = op.reference(world.arithmetic, x, params, attrs, world.mode)
    return results if held.several else results[0]


def _bound(
    op: Op, given: Mapping[str, AttrValue], x: Sequence[Array]
) -> tuple[Mapping[str, AttrValue], Instance]:
    """What a use means; numbers have no element type, so that the first that fit are taken."""
    failure = OpError("A110", f"`{op.name}` has no sample")
    for dtypes in dict.fromkeys(tuple(t.dtype for t in sample.inputs) for sample in op.samples):
        types = tuple(TensorType(dtypes[min(j, len(dtypes) - 1)], v.shape) for j, v in enumerate(x))
        try:
            attrs = bind_attrs(op, given, types)
            return attrs, instance(op, attrs, types)
        except OpError as reason:
            failure = reason
    raise failure


# --- functions of proofs alone ---------------------------------------------------------------


def _along_axis(name: str, axis: int) -> Callable[..., Array]:
    def compute(k: Arithmetic, x: Array, v: Array | None) -> Array:
        if v is None:
            return x
        _need(v.ndim == 1 and v.shape[0] == x.shape[axis], f"{name}: a vector of the axis's size")
        shape = [1] * x.ndim
        shape[axis] = -1
        result: Array = getattr(k, name)(x, v.reshape(shape))
        return result

    return compute


def _moments(k: Arithmetic, x: Array) -> tuple[Array, Array, int]:
    over = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    share = k.number(Fraction(1, count))
    mean = k.multiply(k.sum(x, over), share)
    square = k.multiply(k.sum(k.multiply(x, x), over), share)
    return mean, k.subtract(square, k.multiply(mean, mean)), count


def _unbiased(k: Arithmetic, x: Array) -> Array:
    _, variance, count = _moments(k, x)
    return k.multiply(variance, k.number(Fraction(count, max(count - 1, 1))))


def _blend(k: Arithmetic, old: Array, new: Array, share: float) -> Array:
    kept = k.subtract(k.array(1), k.array(share))
    return k.add(k.multiply(old, kept), k.multiply(new, k.number(share)))


def _repeat(k: Arithmetic, g: IndexMap, before: int, after: int) -> IndexMap:
    outer = np.arange(before)[:, None, None] * g.source + g.entries[None, :, None]
    entries = outer * after + np.arange(after)[None, None, :]
    return IndexMap(entries.reshape(-1), before * g.source * after)


def _join(k: Arithmetic, g: IndexMap, h: IndexMap) -> IndexMap:
    return IndexMap(np.concatenate([g.entries, h.entries + g.source]), g.source + h.source)


def _same(k: Arithmetic, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    _need(all(e % 2 for e in kernel), "an even kernel has no same padding")
    return tuple(d * (e - 1) // 2 for e, d in zip(kernel, dilation, strict=True))


def _swap(k: Arithmetic, a: int, b: int, rank: int) -> tuple[int, ...]:
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _zeros_along(k: Arithmetic, w: Array, amount: int, axis: int) -> Array:
    axis %= w.ndim
    return k.array(np.zeros((*w.shape[:axis], amount, *w.shape[axis + 1 :]), np.int64))


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise WeightError(text)


PROOF_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "channel_add": _along_axis("add", 1),
    "channel_subtract": _along_axis("subtract", 1),
    "channel_multiply": _along_axis("multiply", 1),
    "channel_divide": _along_axis("divide", 1),
    "last_add": _along_axis("add", -1),
    "batch_mean": lambda k, x: _moments(k, x)[0],
    "batch_variance": lambda k, x: _moments(k, x)[1],
    "batch_unbiased": _unbiased,
    "blend": _blend,
    "every": lambda k, n: IndexMap(np.arange(n), n),
    "repeat": _repeat,
    "join": _join,
    "length": lambda k, g: len(g.entries),
    "source": lambda k, g: g.source,
    "same": _same,
    "spatial": lambda k, value, rank: (value,) * rank,
    "tuple": lambda k, *entries: entries,
    "list": lambda k, *entries: entries,
    "fill": lambda k, value, sizes: filled(value)(k, sizes),
    "kernel_identity": lambda k, n, kernel: FUNCTIONS["identity"].value(k, n, *kernel),
    "spatial_rank": lambda k, x: x.ndim - 2,
    "channels": lambda k, x: x.shape[1],
    "size": lambda k, x, axis: x.shape[axis],
    "entry": lambda k, values, place: values[place],
    "operands": lambda k, *tensors: tensors,
    "shared": lambda k, value, g: value * g.source / len(g.entries),
    "port": lambda k, outputs, number: outputs[number],
    **WINDOWS,
    "shape": lambda k, x: x.shape,
    "zeros_along": _zeros_along,
    "rank": lambda k, x: x.ndim,
    "still": lambda k, rank: tuple(range(rank)),
    "swap": _swap,
    "after": lambda k, first, second: tuple(first[j] for j in second),
    "turned": lambda k, x, order: x.transpose(order),
    "laid": lambda k, x, sizes: x.reshape(sizes),
    "stretch": lambda k, x, shape: np.broadcast_to(x, shape),
}
"""Functions that proofs speak of beside operators and weight functions."""

CHANNELWISE = ("channel_add", "channel_subtract", "channel_multiply", "channel_divide")
MOVING = ("take", "place")
MERGING = ("first", "fibre_sum")
"""Weight functions that act along one axis with a map: entry by entry, several onto one."""


# --- relations ------------------------------------------------------------------------------


def _times(g: IndexMap) -> npt.NDArray[np.int64]:
    """How often a map takes each entry."""
    return np.bincount(g.entries, minlength=g.source)


def _signed(text: str, operands: Sequence[Array]) -> bool:
    """Whether operands have the axes that a signature names."""
    shapes = [shape for _, _, shape in parse_signature(text).tensors]
    if [len(s) for s in shapes] != [x.ndim for x in operands]:
        return False
    return all(
        x.shape[j] == measure(axis, {})
        for x, shape in zip(operands, shapes, strict=True)
        for j, axis in enumerate(shape)
        if isinstance(axis, Axis) and not axis.names()
    )


def _zero(value: Any) -> bool:
    """Whether a tensor is there and holds nothing but zeros."""
    if not isinstance(value, np.ndarray):
        return False
    return not (value if value.dtype == object else balance(value)).any()


CONDITIONS: Mapping[str, Callable[[IndexMap], bool]] = {
    "onto": lambda g: bool((_times(g) > 0).all()),
    "one_to_one": lambda g: bool((_times(g) < 2).all()),
    "bijective": lambda g: bool((_times(g) == 1).all()),
    "even": lambda g: bool((_times(g) == _times(g)[0]).all() and _times(g)[0] > 0),
}
"""What can be known of a map: it takes every entry; none twice; each once; each equally often."""

RELATIONS: Mapping[str, Callable[..., bool]] = {
    **CONDITIONS,
    "signed": _signed,
    "odd": lambda kernel: (
        all(e % 2 for e in kernel) if isinstance(kernel, tuple) else bool(kernel % 2)
    ),
    "differ": lambda a, b: a != b and (a < 0) == (b < 0),
    "given": lambda v: v is not None,
    "flat": lambda x: x.ndim == 2,
    "zero": _zero,
    "one": lambda v: isinstance(v, np.ndarray) and not (v != 1).any(),
}
"""Side conditions, by their meaning over values. ``equal`` holds where two terms have one value."""
