"""Blocks of several layers, as the well-known families of networks have them."""

from __future__ import annotations

from archir.ir.graph import Value

from .pieces import WIDTHS, convolve
from .sketch import Sketch, image, numbers


def residual(s: Sketch) -> None:
    """One to three residual blocks of one kind, named as a repeated block is."""
    x = s.value(lambda t: image(t) and numbers(t) <= 400)
    if x is None:
        return
    channels, *_ = s.sizes(x)
    inner, kernel = s.choices.pick(WIDTHS), s.choices.pick((3, 1))
    normed = s.flag()
    repeats = s.choices.integer(1, 2)
    with s.scope(s.name("stage")):
        for number in range(repeats):
            with s.scope(str(number)):
                y = s.add("conv", x, label="conv1", out=inner, kernel=kernel, padding=kernel // 2)
                y = s.add("batch_norm", y) if normed else y
                y = s.add("relu", y)
                y = s.add("conv", y, label="conv2", out=channels, kernel=1)
                x = s.add("add", x, y)
    s.keep(x)


def dense(s: Sketch) -> None:
    """Layers that each read all before them, by nested concatenations."""
    x = s.value(lambda t: image(t) and numbers(t) <= 300)
    if x is None:
        return
    flat = s.flag()
    parts = [x]
    for _ in range(s.choices.integer(1, 2)):
        y = s.add("conv", x, out=s.choices.pick((2, 1, 3)), kernel=3, padding=1)
        y = s.add("relu", y)
        parts.append(y)
        x = s.add("concat", *parts) if flat else s.add("concat", x, y)
    s.keep(x)


def bottleneck(s: Sketch) -> None:
    """Pointwise, depthwise, pointwise: an inverted residual."""
    x = s.value(lambda t: image(t) and numbers(t) <= 300)
    if x is None:
        return
    channels, *_ = s.sizes(x)
    wide = channels * s.choices.integer(1, 2)
    y = s.add("relu", s.add("conv", x, out=wide))
    y = s.add("conv", y, out=wide, kernel=3, padding=1, groups=wide)
    y = s.add("batch_norm", y)
    y = s.add("conv", s.add("relu", y), out=channels, bias=False)
    s.keep(s.add("add", y, x) if s.flag() else y)


def branches(s: Sketch) -> None:
    """Convolutions side by side, joined or added; perhaps one that nothing reads."""
    x = s.value(lambda t: image(t) and numbers(t) <= 400)
    if x is None:
        return
    out = s.choices.pick((2, 3, 4))
    sides: list[Value] = [convolve(s, x, out, same=True) for _ in range(2)]
    if {s.shape(side) for side in sides} != {s.shape(sides[0])}:
        s.keep(*sides)
    else:
        s.keep(s.add(s.choices.pick(("add", "concat", "mul")), *sides))


def gate(s: Sketch) -> None:
    """Squeeze and excite: a gate for each channel from a mean over space."""
    x = s.value(image)
    if x is None:
        return
    channels, *space = s.sizes(x)
    kind = s.choices.pick(("adaptive", "mean", "window"))
    if kind == "adaptive":
        y = s.add("adaptive_avg_pool", x, size=1)
    elif kind == "mean":
        y = s.add("mean", x, axes=tuple(range(2, 2 + len(space))), keep=True)
    else:
        y = s.add("avg_pool", x, kernel=tuple(space), stride=1, padding=0)
    y = s.add("relu", s.add("conv", y, out=s.choices.pick((2, 1, 3)), label="reduce"))
    y = s.add("conv", y, out=channels, label="expand")
    y = s.add(s.choices.pick(("sigmoid", "hardsigmoid")), y)
    s.keep(s.add("mul", x, y) if s.flag() else s.add("mul", y, x))


def shuffle(s: Sketch) -> None:
    """Grouped convolutions with a shuffle of the channels between them."""
    x = s.value(lambda t: image(t) and t.rank == 4 and numbers(t) <= 300)
    if x is None:
        return
    groups, width = s.choices.pick(((2, 2), (2, 3), (3, 2)))
    channels = groups * width
    y = s.add("conv", x, out=channels, bias=False)
    _, *space = s.sizes(y)
    y = s.add("reshape", y, shape=(0, groups, width, *space))
    y = s.add("permute", y, order=(0, 2, 1, 3, 4))
    y = s.add("reshape", y, shape=(0, channels, *space))
    s.keep(s.add("conv", y, out=channels, groups=groups, kernel=3))


def hourglass(s: Sketch) -> None:
    """Down, up, and joined with what came before."""
    x = s.value(lambda t: image(t) and t.rank == 4 and numbers(t) <= 300)
    if x is None or any(size % 2 for size in s.sizes(x)[1:]):
        return
    y = s.add("relu", s.add("conv", s.add("max_pool", x, kernel=2), out=4, kernel=3))
    if s.flag():
        y = s.add("upsample", y, scale=2)
    else:
        y = s.add("conv_transpose", y, out=3, kernel=2, stride=2)
    s.keep(s.add("concat", y, x))


def head(s: Sketch, value: Value) -> Value:
    """A classifier, or the value as it is: how a network ends."""
    type_ = s.type(value)
    kind = s.choices.pick(("as it is", *("pool", "flatten") * 4))
    if kind == "as it is" or type_.rank < 2:
        return value
    if image(type_) and kind == "pool":
        value = s.add("global_avg_pool", value)
    elif image(type_) and numbers(type_) <= 256:
        value = s.add("flatten", value)
    if not isinstance(s.shape(value)[-1], int):
        return value
    return s.add("linear", value, out=s.choices.integer(1, 5), label="fc")
