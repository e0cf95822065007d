"""What moves entries: cuts, pads, other shapes and orders, reductions, products of tensors."""

from __future__ import annotations

from archir.ir.graph import Value
from archir.ir.types import AttrValue, TensorType

from .sketch import Sketch, image, numbers, real, whole


def known(type_: TensorType) -> bool:
    """Floats whose axes behind the batch are all numbers."""
    return real(type_) and whole(type_.shape[1:]) is not None


def cuttable(type_: TensorType) -> bool:
    """Known, with an axis of more than one entry behind the batch."""
    return known(type_) and any(isinstance(z, int) and z > 1 for z in type_.shape[1:])


def _axis(s: Sketch, x: Value) -> tuple[int, int]:
    """An axis of more than one entry, and its size; axis 1 is the simplest."""
    sizes = s.sizes(x)
    return s.choices.pick([(j, size) for j, size in enumerate(sizes, 1) if size > 1])


def chunk(s: Sketch) -> None:
    """Equal parts; of two, one may be the gate of the other."""
    x = s.value(cuttable)
    if x is None:
        return
    axis, size = _axis(s, x)
    chunks = s.choices.pick([c for c in range(2, size + 1) if size % c == 0][:2])
    parts = s.several("chunk", x, chunks=chunks, axis=axis)
    if chunks == 2 and s.flag():
        s.keep(s.add("mul", parts[0], s.add("sigmoid", parts[1])))
    else:
        s.keep(*parts[:3])


def cut(s: Sketch) -> None:
    """A slice, or one entry, of an axis."""
    x = s.value(cuttable)
    if x is None:
        return
    axis, size = _axis(s, x)
    start = s.choices.integer(0, size - 1)
    if len(s.shape(x)) > 2 and s.rarely():
        s.keep(s.add("select", x, index=start, axis=axis))
        return
    step = 1 + s.rarely()
    length = s.choices.integer(1, (size - start - 1) // step + 1)
    s.keep(s.add("slice", x, start=start, length=length, axis=axis, step=step))


def roll(s: Sketch) -> None:
    """An axis rolled, or gathered by a constant index."""
    x = s.value(cuttable)
    if x is None:
        return
    axis, size = _axis(s, x)
    if s.flag():
        s.keep(s.add("roll", x, shift=s.choices.pick((1, -1, 2)), axis=axis))
        return
    places = tuple(s.choices.integer(0, size - 1) for _ in range(s.choices.integer(2, 3)))
    index = s.add("constant", value=places, dtype="i64")
    s.keep(s.add("gather", x, index, axis=axis))


def pad(s: Sketch) -> None:
    """Entries put before and after axes, in every mode."""
    x = s.value(cuttable)
    if x is None:
        return
    mode = s.choices.pick(("constant", "reflect", "replicate", "circular"))
    first = 1 if mode == "constant" else 2
    rank = len(s.shape(x))
    before, after = [0] * rank, [0] * rank
    for axis in range(first, rank):
        most = min(2, s.sizes(x)[axis - 1] - 1)
        before[axis], after[axis] = s.choices.integer(0, most), s.choices.integer(0, most)
    given: dict[str, AttrValue] = {"before": tuple(before), "after": tuple(after), "mode": mode}
    if mode == "constant" and s.rarely():
        given["value"] = 0.5
    s.keep(s.add("pad", x, **given))


def upsample(s: Sketch) -> None:
    """Space made larger."""
    x = s.value(lambda t: image(t) and t.rank < 5 and numbers(t) <= 256)
    if x is None:
        return
    mode = s.choices.pick(("nearest", "bilinear"))
    corners = mode == "bilinear" and s.rarely()
    s.keep(s.add("upsample", x, scale=2, mode=mode, align_corners=corners))


def reshape(s: Sketch) -> None:
    """An axis cut in two, or two axes made one; the batch stays."""
    x = s.value(known)
    if x is None:
        return
    sizes = list(s.sizes(x))
    at = s.choices.integer(0, len(sizes) - 1)
    factors = [f for f in (2, 3) if sizes[at] % f == 0 and sizes[at] > f]
    if len(sizes) > 1 and (not factors or s.flag()):
        at = min(at, len(sizes) - 2)
        sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
    elif factors and len(sizes) < 4:
        factor = s.choices.pick(factors)
        pair = [factor, sizes[at] // factor]
        sizes[at : at + 1] = pair if not s.flag() else pair[::-1]
    shape = [0, *sizes]
    if s.rarely():
        shape[1 + s.choices.integer(0, len(sizes) - 1)] = -1
    s.keep(s.add("reshape", x, shape=tuple(shape)))


def permute(s: Sketch) -> None:
    """The axes behind the batch in another order."""
    x = s.value(lambda t: real(t) and t.rank > 2)
    if x is None:
        return
    rank = len(s.shape(x))
    if s.flag():
        axes = list(range(1, rank))
        order = [axes.pop(s.choices.integer(0, len(axes) - 1)) for _ in range(rank - 1)]
        s.keep(s.add("permute", x, order=(0, *order)))
    else:
        a = s.choices.integer(1, rank - 1)
        s.keep(s.add("transpose", x, a=a, b=s.choices.integer(1, rank - 1)))


def unsqueeze(s: Sketch) -> None:
    """An axis of extent 1 taken away, or put in."""
    x = s.value(lambda t: real(t) and 1 in t.shape[1:] and t.rank > 2)
    if x is not None and s.flag():
        s.keep(s.add("squeeze", x, axis=s.shape(x).index(1, 1)))
        return
    x = s.value(lambda t: real(t) and t.rank < 5)
    if x is not None:
        s.keep(s.add("unsqueeze", x, axis=s.choices.integer(1, len(s.shape(x)))))


def pixels(s: Sketch) -> None:
    """Channels spread over space."""
    x = s.value(lambda t: image(t) and t.rank == 4 and int(str(t.shape[1])) % 4 == 0)
    if x is not None:
        s.keep(s.add("pixel_shuffle", x, factor=2))


def reduction(s: Sketch) -> None:
    """A mean, sum or maximum over one or two axes."""
    x = s.value(lambda t: known(t) and t.rank > 2)
    if x is None:
        return
    rank = len(s.shape(x))
    first = s.choices.integer(1, rank - 1)
    axes = {first} | ({s.choices.integer(1, rank - 1)} if s.rarely() and rank > 3 else set())
    op = s.choices.pick(("mean", "sum", "max"))
    s.keep(s.add(op, x, axes=tuple(sorted(axes)), keep=s.flag()))


def product(s: Sketch) -> None:
    """A matrix product of two values, or with a tensor of the network's own."""
    x = s.value(lambda t: known(t) and t.rank > 2)
    if x is None:
        return
    shape = s.shape(x)
    if s.flag():
        inner = int(str(shape[-1]))
        held = s.add("parameter", shape=(inner, s.choices.pick((3, 1, 4))), init=0.25)
        if s.flag():
            letters = "abcde"[: len(shape)]
            equation = f"{letters},{letters[-1]}z->{letters[:-1]}z"
            s.keep(s.add("einsum", x, held, equation=equation))
        else:
            s.keep(s.add("matmul", x, held))
        return
    y = s.value(lambda t: real(t) and t.rank == len(shape) and t.shape[:-2] == shape[:-2])
    assert y is not None
    if s.shape(y)[-1] == shape[-1]:
        rank = len(shape)
        s.keep(s.add("matmul", x, s.add("transpose", y, a=rank - 2, b=rank - 1)))
    elif s.shape(y)[-2] == shape[-1]:
        s.keep(s.add("matmul", x, y))
