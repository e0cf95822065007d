"""Single layers, as pieces of networks."""

from __future__ import annotations

from math import gcd

from archir.ir.dims import Size
from archir.ir.graph import Value
from archir.ir.types import AttrValue, TensorType

from .sketch import Sketch, features, image, numbers, real

WIDTHS = (4, 1, 2, 3, 6, 8, 12)


def conv(s: Sketch) -> None:
    """A convolution: plain, pointwise, grouped, depthwise, strided, dilated; or a tied one."""
    x = s.value(image)
    if x is None:
        return
    if s.rarely() and tied(s, x, "conv"):
        return
    s.keep(convolve(s, x))


def convolve(s: Sketch, x: Value, out: int = 0, *, same: bool = False) -> Value:
    """A convolution of a value; ``same`` keeps the spatial extents."""
    channels, *space = s.sizes(x)
    out = out or s.choices.pick(WIDTHS)
    shared = gcd(channels, out)
    groups = s.choices.pick([1, *(g for g in range(2, shared + 1) if shared % g == 0)])
    if s.rarely():
        out = groups = channels
        if not same:
            out = channels * s.choices.integer(1, 2)
    kernel = s.choices.pick((1, 3, 2, 5) if not same else (1, 3, 5))
    dilation = 1 + (kernel == 3 and s.rarely())
    reach = dilation * (kernel - 1) + 1
    least = [reach // 2] if kernel % 2 or kernel == 2 else []
    padding = s.choices.pick(least + [0] * (reach <= min(space) and not same))
    stride = 1 + (not same and s.rarely())
    return s.add(
        "conv",
        x,
        out=out,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=not s.rarely(),
    )


def tied(s: Sketch, x: Value, op: str) -> bool:
    """A layer that shares an earlier one's weight, or weight and bias, if one fits."""
    mine = s.shape(x)

    def fits(shape: tuple[Size, ...]) -> bool:
        return shape[1:] == mine[1:] if op == "conv" else shape[-1] == mine[-1]

    fitting = [node for node in s.layers(op) if fits(s.shape(node.inputs[0]))]
    if not fitting:
        return False
    other = s.choices.pick(fitting)
    roles = list(other.params)[: s.choices.integer(1, len(other.params))]
    params = {role: other.params[role] for role in roles}
    s.keep(s.add(op, x, params=params, **other.attrs))
    return True


def linear(s: Sketch) -> None:
    """An affine map of the last axis, perhaps a tied one."""
    x = s.value(features)
    if x is not None and not (s.rarely() and tied(s, x, "linear")):
        s.keep(s.add("linear", x, out=s.choices.pick(WIDTHS), bias=not s.rarely()))


def transposed(s: Sketch) -> None:
    """A transposed convolution."""
    x = s.value(lambda t: image(t) and numbers(t) <= 200)
    if x is None:
        return
    channels = s.sizes(x)[0]
    out = s.choices.pick((4, 1, 2, 3, 6))
    shared = gcd(channels, out)
    stride = s.choices.integer(1, 2)
    kernel = s.choices.integer(stride, 3)
    s.keep(
        s.add(
            "conv_transpose",
            x,
            out=out,
            kernel=kernel,
            stride=stride,
            padding=s.choices.integer(0, (kernel - 1) // 2),
            output_padding=stride - 1 if s.rarely() else 0,
            groups=s.choices.pick([1, *(g for g in range(2, shared + 1) if shared % g == 0)]),
            bias=not s.rarely(),
        )
    )


def norm(s: Sketch) -> None:
    """A normalisation."""
    op = s.choices.pick(
        ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "batch_norm")
    )
    x = s.value(features if op in ("layer_norm", "rms_norm") else image)
    if x is None or (op == "instance_norm" and set(s.sizes(x)[1:]) == {1}):
        return  # torch refuses to normalise a single number
    given: dict[str, AttrValue] = {"affine": not s.rarely()}
    if op == "batch_norm":
        given |= {"eps": s.choices.pick((1e-5, 1e-3)), "track": not s.rarely()}
    elif op in ("layer_norm", "rms_norm"):
        numbered = len(s.shape(x)) > 2 and isinstance(s.shape(x)[-2], int)
        given["axes"] = 1 + (numbered and s.rarely())
    elif op == "group_norm":
        channels = s.sizes(x)[0]
        given["groups"] = s.choices.pick([g for g in (1, 2, 3, 4) if channels % g == 0])
    s.keep(s.add(op, x, **given))


FUNCTIONS: tuple[tuple[str, dict[str, AttrValue]], ...] = (
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {"slope": 0.125}),
    ("elu", {}),
    ("selu", {}),
    ("celu", {"alpha": 0.5}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("softplus", {}),
    ("softsign", {}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("mish", {}),
    ("hardsigmoid", {}),
    ("hardswish", {}),
    ("hardtanh", {"low": -0.5, "high": 2.0}),
    ("abs", {}),
    ("neg", {}),
    ("prelu", {}),
    ("prelu", {"shared": True}),
    ("local_response_norm", {"size": 3, "alpha": 0.5}),
)


def activation(s: Sketch) -> None:
    """An elementwise function, a relu one time in three."""
    op, given = s.choices.pick(FUNCTIONS) if s.choices.integer(0, 2) else FUNCTIONS[0]
    x = s.value(image if op in ("prelu", "local_response_norm") else real)
    if x is not None:
        s.keep(s.add(op, x, **given))


def curve(s: Sketch) -> None:
    """A function that is kept away from where it is steep: exp(tanh x), sqrt(|x| + 1), a / b."""
    x = s.value(real)
    if x is None:
        return
    kind = s.choices.pick(("exp", "sqrt", "div"))
    if kind == "exp":
        s.keep(s.add("exp", s.add("tanh", x)))
        return
    lifted = s.add("add", s.add("abs", x), s.add("constant", value=1.0))
    if kind == "sqrt":
        s.keep(s.add("sqrt", lifted))
        return
    other = s.value(lambda t: t == s.type(x))
    assert other is not None
    s.keep(s.add("div", other, lifted))


def dropout(s: Sketch) -> None:
    """Dropout of entries, or of whole samples."""
    x = s.value(real)
    if x is None:
        return
    if s.rarely():
        s.keep(s.add("stochastic_depth", x, p=0.25, mode=s.choices.pick(("row", "batch"))))
    else:
        s.keep(s.add("dropout", x, p=0.25))


def nothing(s: Sketch) -> None:
    """Zeros that are added: an edge of a cell that hands over nothing."""
    x = s.value(image)
    if x is not None:
        s.keep(s.add("add", x, s.add("null", x)))


def softmax(s: Sketch) -> None:
    """A softmax, or its logarithm, over any axis but the first."""
    x = s.value(real)
    if x is not None:
        op = s.choices.pick(("softmax", "log_softmax"))
        s.keep(s.add(op, x, axis=s.choices.integer(1, s.type(x).rank - 1)))


def pool(s: Sketch) -> None:
    """A pooling over windows."""
    x = s.value(image)
    if x is None:
        return
    space = s.sizes(x)[1:]
    kernel = s.choices.pick([k for k in (2, 3, 1) if k <= min(space)])
    given = {"kernel": kernel, "stride": s.choices.pick((kernel, 1, 2))}
    given["padding"] = s.choices.integer(0, kernel // 2)
    if s.flag():
        s.keep(s.add("avg_pool", x, count_include_pad=not s.rarely(), **given))
    else:
        s.keep(s.add("max_pool", x, ceil_mode=s.rarely(), **given))


def adaptive(s: Sketch) -> None:
    """A pooling to a size."""
    x = s.value(image)
    if x is not None:
        op = s.choices.pick(("adaptive_avg_pool", "adaptive_max_pool"))
        s.keep(s.add(op, x, size=s.choices.pick((1, 2, 3))))


def global_pool(s: Sketch) -> None:
    """A pooling over all space."""
    x = s.value(image)
    if x is not None:
        s.keep(s.add(s.choices.pick(("global_avg_pool", "global_max_pool")), x))


def flatten(s: Sketch) -> None:
    """Some of the last axes made one."""
    x = s.value(lambda t: image(t) and numbers(t) <= 256)
    if x is not None:
        s.keep(s.add("flatten", x, start=1 + s.rarely()))


def join(s: Sketch) -> None:
    """A concatenation of two or three values, the same one twice among them."""
    x = s.value(real)
    if x is None:
        return
    rank = s.type(x).rank
    axis = s.choices.pick([1, *range(2, rank)])

    def beside(t: TensorType) -> bool:
        mine = s.shape(x)
        return (
            t.dtype == "f32"
            and t.rank == rank
            and all(j == axis or a == b for j, (a, b) in enumerate(zip(mine, t.shape, strict=True)))
        )

    parts = [x]
    for _ in range(s.choices.integer(1, 2)):
        other = s.value(beside)
        assert other is not None
        parts.append(other)
    if all(isinstance(s.shape(part)[axis], int) for part in parts):
        s.keep(s.add("concat", *parts, axis=axis))


def split(s: Sketch) -> None:
    """A value cut in two or three, on the channels or another axis."""
    x = s.value(lambda t: real(t) and any(isinstance(z, int) and z > 1 for z in t.shape[1:]))
    if x is None:
        return
    shape = s.shape(x)
    axis = s.choices.pick([j for j in range(1, len(shape)) if _cuttable(shape[j])])
    size = shape[axis]
    assert isinstance(size, int)
    first = s.choices.integer(1, size - 1)
    sizes = [first, size - first]
    if sizes[1] > 1 and s.rarely():
        second = s.choices.integer(1, sizes[1] - 1)
        sizes[1:] = [second, sizes[1] - second]
    s.keep(*s.several("split", x, sizes=tuple(sizes), axis=axis))


def _cuttable(size: object) -> bool:
    return isinstance(size, int) and size > 1


def combine(s: Sketch) -> None:
    """A sum or product of two or three values, of one shape or stretched."""
    x = s.value(real)
    if x is None:
        return

    def stretches(t: TensorType) -> bool:
        mine = s.shape(x)
        return (
            t.dtype == "f32"
            and t.rank == len(mine)
            and all(b in (a, 1) for a, b in zip(mine, t.shape, strict=True))
        )

    others = []
    for _ in range(s.choices.integer(1, 2)):
        other = s.value(stretches)
        assert other is not None
        others.append(other)
    operands = [x, *others] if not s.rarely() else [*others, x]
    op = s.choices.pick(("add", "mul", "sub"))
    s.keep(s.add(op, *(operands if op != "sub" else operands[:2])))


def free(s: Sketch) -> None:
    """A scale, shift or position of the network's own, trained or not, or a constant."""
    x = s.value(lambda t: image(t) or features(t))
    if x is None:
        return
    op = s.choices.pick(("mul", "add"))
    if s.rarely():
        s.keep(s.add(op, x, s.add("constant", value=0.75)))
        return
    sizes = [size if isinstance(size, int) else 1 for size in s.shape(x)[1:]]
    rank = len(sizes)
    full = tuple(sizes)
    channels = (sizes[0], *[1] * (rank - 1))
    shape = s.choices.pick((channels, full, (1, *full), (sizes[-1],)))
    held = s.add("parameter", shape=shape, init=0.5, buffer=s.rarely())
    s.keep(s.add(op, *((x, held) if not s.rarely() else (held, x))))
