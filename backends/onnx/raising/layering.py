"""Layers: convolutions, affine maps, normalisations, tables of rows.

A layer's tensors are initializers, or were made of them; where the network computes them, the
operator whose tensors are operands is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from onnx import NodeProto

from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array

from .site import RefusedError, Site, Tensor
from .values import Known, Made

Raise = Callable[[Site], None]


def tensor(known: Known, form: str = "") -> Tensor:
    """What is known as a layer's tensor, entry for entry."""
    if known.symbolic:
        raise RefusedError("it has the size of its input as a weight")
    return Tensor(known.array, known.name, form) if known.name else Tensor(known.array)


def remade(known: Known, array: Array, form: str) -> Tensor:
    """A layer's tensor that was laid out anew; its initializer gives the layer its name."""
    if known.base and not known.name and form == "turned":
        return Tensor(array, known.base)  # turned there and back
    return Tensor(array, known.name, form) if known.name else Tensor(array)


# -- convolutions


def pads_of(at: Site, x: Made, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What a window is padded by: all that stands before, then all that stands behind.

    Raises:
        RefusedError: it follows from sizes that are symbols.
    """
    count = len(kernel)
    auto = at.attr("auto_pad", "NOTSET")
    pads = [int(p) for p in at.attr("pads", [0] * 2 * count)]
    if auto in ("NOTSET", ""):
        if len(pads) != 2 * count:
            raise RefusedError(f"it has {len(pads)} paddings for {count} spatial axes")
        if min(pads, default=0) < 0:
            raise RefusedError("it has a negative padding")
        return pads
    if auto == "VALID":
        return [0] * 2 * count
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise RefusedError(f"its auto_pad is {auto}")
    before, after = [], []
    strides = at.attr("strides", [1] * count)
    for size, k, d, s in zip(x.type.shape[2:], kernel, dilation, strides, strict=True):
        reach = d * (k - 1) + 1
        if s == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // s) - 1) * s + reach - size, 0)
        else:
            raise RefusedError(f"its padding depends on the size {size}")
        less = total // 2
        before.append(less if auto == "SAME_UPPER" else total - less)
        after.append(total - before[-1])
    return before + after


def even(at: Site, x: Made, pads: Sequence[int], value: float = 0.0) -> tuple[Made, list[int]]:
    """The same padding on both sides; what is uneven becomes an operator of its own."""
    count = len(pads) // 2
    if list(pads[:count]) == list(pads[count:]):
        return x, list(pads[:count])
    before, after = (0, 0, *pads[:count]), (0, 0, *pads[count:])
    return at.put("pad", x, before=before, after=after, value=value), [0] * count


def window(at: Site, kernel: Sequence[int]) -> dict[str, AttrValue]:
    """Strides and dilations, one an axis."""
    count = len(kernel)
    found: dict[str, AttrValue] = {}
    for ours, theirs in (("stride", "strides"), ("dilation", "dilations")):
        given = at.attr(theirs, [1] * count)
        if len(given) != count or min(given) < 1:
            raise RefusedError(f"its {theirs} are {given} for {count} spatial axes")
        found[ours] = tuple(given)
    return found


def _conv(at: Site) -> None:
    x = at.x()
    groups = int(at.attr("group", 1))
    known = at.known(1)
    if known is None or (at.has(2) and at.known(2) is None):
        _dynamic_conv(at, x, groups)
        return
    kernel = known.array.shape[2:]
    _checked_kernel(at, kernel, x)
    attrs = window(at, kernel)
    dilation = [int(d) for d in _tuple(attrs["dilation"])]
    x, padding = even(at, x, pads_of(at, x, kernel, dilation))
    params = {"weight": tensor(known)} | _bias(at, 2)
    result = at.layer(
        "conv",
        x,
        params,
        out=known.array.shape[0],
        kernel=kernel,
        padding=tuple(padding),
        groups=groups,
        bias="bias" in params,
        **attrs,
    )
    at.give(result)


def _tuple(value: AttrValue) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    return tuple(int(entry) for entry in value if isinstance(entry, int))


def _checked_kernel(at: Site, kernel: Sequence[int], x: Made) -> None:
    given = at.attr("kernel_shape")
    if given is not None and list(given) != list(kernel):
        raise RefusedError(f"its kernel_shape is {list(given)}, its weights say {list(kernel)}")
    if x.type.rank != len(kernel) + 2:
        raise RefusedError(f"its input is {x.type}, its weights have {len(kernel)} spatial axes")


def _bias(at: Site, place: int) -> dict[str, Tensor]:
    known = at.known(place)
    return {} if known is None else {"bias": tensor(known)}


def _dynamic_conv(at: Site, x: Made, groups: int) -> None:
    weight = at.x(1)
    kernel = [size for size in weight.type.shape[2:] if isinstance(size, int)]
    if len(kernel) != weight.type.rank - 2:
        raise RefusedError("the sizes of its kernel are symbols")
    _checked_kernel(at, kernel, x)
    attrs = window(at, kernel)
    x, padding = even(at, x, pads_of(at, x, kernel, _tuple(attrs["dilation"])))
    more = (at.x(2),) if at.has(2) else ()
    given: dict[str, AttrValue] = {**attrs, "padding": tuple(padding), "groups": groups}
    at.give(at.put("dynamic_conv", x, weight, *more, **given))


def _conv_transpose(at: Site) -> None:
    x, known = at.x(), at.known(1)
    if known is None or (at.has(2) and at.known(2) is None):
        raise RefusedError("the network computes its weights")
    kernel = known.array.shape[2:]
    _checked_kernel(at, kernel, x)
    attrs = window(at, kernel)
    count, groups = len(kernel), int(at.attr("group", 1))
    more = [int(e) for e in at.attr("output_padding") or [0] * count]
    pads = _transposed_pads(at, x, kernel, attrs, more)
    params = {"weight": tensor(known)} | _bias(at, 2)
    before, after = pads[:count], pads[count:]
    low = [min(b, a) for b, a in zip(before, after, strict=True)]
    # What is padded less in front or behind is computed and cut off, or was never padded.
    result = at.layer(
        "conv_transpose",
        x,
        params,
        out=known.array.shape[1] * groups,
        kernel=kernel,
        padding=tuple(low),
        output_padding=tuple(more),
        groups=groups,
        bias="bias" in params,
        **attrs,
    )
    for axis in range(count):
        less, rest = before[axis] - low[axis], after[axis] - low[axis]
        size = result.type.shape[axis + 2]
        if less or rest:
            if not isinstance(size, int) or size <= less + rest:
                raise RefusedError(f"it cuts {less + rest} off an axis of {size}")
            length = size - less - rest
            result = at.put("slice", result, start=less, length=length, axis=axis + 2)
    at.give(result)


def _transposed_pads(
    at: Site, x: Made, kernel: Sequence[int], attrs: Mapping[str, AttrValue], more: Sequence[int]
) -> list[int]:
    wanted = at.attr("output_shape")
    auto = at.attr("auto_pad", "NOTSET")
    if not wanted and auto in ("NOTSET", "", "VALID"):
        return pads_of(at, x, kernel, _tuple(attrs["dilation"]))
    strides, dilations = _tuple(attrs["stride"]), _tuple(attrs["dilation"])
    before, after = [], []
    for axis, k in enumerate(kernel):
        size, s, d = x.type.shape[axis + 2], strides[axis], dilations[axis]
        if not isinstance(size, int):
            raise RefusedError(f"its padding depends on the size {size}")
        goal = int(wanted[len(wanted) - len(kernel) + axis]) if wanted else size * s
        total = s * (size - 1) + more[axis] + (k - 1) * d + 1 - goal
        if total < 0:
            raise RefusedError("it pads its result")
        small = total // 2
        before.append(total - small if auto == "SAME_LOWER" else small)
        after.append(total - before[-1])
    return before + after


# -- affine maps


def _gemm(at: Site) -> None:
    a, known = at.x(), at.known(1)
    alpha, beta = float(at.attr("alpha", 1.0)), float(at.attr("beta", 1.0))
    if at.attr("transA", 0):
        a = at.put("transpose", a, a=0, b=1)
    shift = at.known(2)
    if known is None or a.type.rank != 2 or known.array.ndim != 2:
        _product(at, a, alpha, beta)
        return
    turned = bool(at.attr("transB", 0))
    weight = tensor(known) if turned else remade(known, known.array.T, "turned")
    if alpha != 1:
        weight = Tensor((weight.array * np.asarray(alpha, weight.array.dtype)), weight.base, "")
        weight = Tensor(weight.array)
    out = weight.array.shape[0]
    bias = _shift(shift, out, beta) if shift is not None and beta else None
    fits = bias is not None or not at.has(2) or beta == 0
    params = {"weight": weight} | ({"bias": bias} if bias is not None else {})
    if bias is None and fits:
        _finish_linear(at, a, params)
        return
    result = at.layer("linear", a, params, out=out, bias=bias is not None)
    at.give(result if fits else _added(at, result, beta))


def _shift(known: Known, out: int, beta: float) -> Tensor | None:
    """What is added to all rows as a bias; None where it is not the same for all."""
    array = known.array
    if array.ndim > 1 and set(array.shape[:-1]) != {1}:
        return None
    if array.shape[-1:] not in ((), (1,), (out,)):
        return None
    if array.shape == (out,) and beta == 1:
        return tensor(known)
    wide = np.broadcast_to(array.reshape(array.shape[-1:]), (out,))
    return remade(known, np.asarray(wide * np.asarray(beta, array.dtype)), "wide")


def _added(at: Site, result: Made, beta: float) -> Made:
    other = at.x(2)
    if beta != 1:
        other = at.put("mul", other, at.number(beta, other))
    return at.put("add", result, other)


def _product(at: Site, a: Made, alpha: float, beta: float) -> None:
    """A Gemm of two computed matrices."""
    b = at.x(1)
    if at.attr("transB", 0):
        b = at.put("transpose", b, a=0, b=1)
    result = at.put("matmul", a, b)
    if alpha != 1:
        result = at.put("mul", result, at.number(alpha, result))
    at.give(_added(at, result, beta) if at.has(2) and beta else result)


def _matmul(at: Site) -> None:
    left, right = at.entry(0), at.known(1)
    if isinstance(left, Made) and right is not None and right.array.ndim == 2:
        weight = remade(right, right.array.T, "turned")
        _finish_linear(at, left, {"weight": weight})
        return
    x, y = at.x(0), at.x(1)
    flat = (x.type.rank == 1, y.type.rank == 1)
    if flat[0]:
        x = at.put("unsqueeze", x, axis=0)
    if flat[1]:
        y = at.put("unsqueeze", y, axis=1)
    result = at.put("matmul", x, y)
    if flat[1]:
        result = at.put("squeeze", result, axis=result.type.rank - 1)
    if flat[0]:
        result = at.put("squeeze", result, axis=result.type.rank - (1 if flat[1] else 2))
    at.give(result)


def _finish_linear(at: Site, x: Made, params: Mapping[str, Tensor]) -> None:
    """An affine map; the Add of a constant after it, and nowhere else, is its bias."""
    out = params["weight"].array.shape[0]
    after = at.follower()
    bias = _constant_beside(at, after, out) if after is not None and at.node.output[0] else None
    if bias is None or after is None:
        at.give(at.layer("linear", x, params, out=out, bias=False))
        return
    held = {**params, "bias": bias}
    at.take(after, at.layer("linear", x, held, out=out, bias=True))


def _constant_beside(at: Site, node: NodeProto, out: int) -> Tensor | None:
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    others = [name for name in node.input if name != at.node.output[0]]
    known = at.net.known(others[0]) if len(others) == 1 else None
    if known is None or known.symbolic or known.array.ndim != 1 or known.array.shape != (out,):
        return None
    return tensor(known)


# -- normalisation


def _batch_norm(at: Site) -> None:
    if at.attr("training_mode", 0) or at.attr("spatial", 1) == 0:
        raise RefusedError("it normalises in training mode, or each place by its own")
    x = at.x()
    found = [at.known(place) for place in range(1, 5)]
    eps, momentum = float(at.attr("epsilon", 1e-5)), float(at.attr("momentum", 0.9))
    if any(known is None for known in found):
        mean, var = at.x(3), at.x(4)
        at.give(at.put("dynamic_batch_norm", x, at.x(1), at.x(2), mean, var, eps=eps))
        return
    roles = ("weight", "bias", "running_mean", "running_var")
    held = zip(roles, found, strict=True)
    params = {role: tensor(known) for role, known in held if known is not None}
    keep = max(float(f"{1 - momentum:.6g}"), 0.0)
    at.give(at.layer("batch_norm", x, params, eps=eps, momentum=keep))


def _affine(at: Site, roles: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a normalisation; none where the network computes one of them."""
    known = {role: at.known(place) for role, place in roles.items() if at.has(place)}
    held = {role: tensor(found) for role, found in known.items() if found is not None}
    return held if len(held) == len(known) else {}


def _scaled(at: Site, x: Made, shape: Sequence[int] | None = None) -> Made:
    """A normal tensor times and plus what the network computes, laid out as the channels."""
    for place, op in ((1, "mul"), (2, "add")):
        if at.has(place):
            other = at.x(place)
            x = at.put(op, x, at.reshape(other, shape) if shape is not None else other)
    return x


def _layer_norm(at: Site) -> None:
    x = at.x()
    axis = int(at.attr("axis", -1)) % max(x.type.rank, 1)
    params = _affine(at, {"weight": 1, "bias": 2})
    eps = float(at.attr("epsilon", 1e-5))
    wanted = x.type.shape[axis:]
    if not params:
        normal = at.layer("layer_norm", x, {}, axes=x.type.rank - axis, eps=eps, affine=False)
        at.give(_scaled(at, normal))
        return
    for role, held in params.items():
        if held.array.shape != wanted:
            wide = _wide(held, wanted)
            if wide is None:
                raise RefusedError(f"its {role} has the shape {list(held.array.shape)}")
            params[role] = wide
    result = at.layer(
        "layer_norm",
        x,
        params,
        axes=x.type.rank - axis,
        eps=eps,
        affine="weight" in params,
        bias="bias" in params,
    )
    at.give(result)


def _wide(held: Tensor, shape: Sequence[object]) -> Tensor | None:
    sizes = [size for size in shape if isinstance(size, int)]
    try:
        return Tensor(np.broadcast_to(held.array, sizes))
    except ValueError:
        return None


def _rms_norm(at: Site) -> None:
    x = at.x()
    axis = int(at.attr("axis", -1)) % max(x.type.rank, 1)
    params = _affine(at, {"weight": 1})
    eps = float(at.attr("epsilon", 1e-5))
    if not params or params["weight"].array.shape != x.type.shape[axis:]:
        normal = at.layer("rms_norm", x, {}, axes=x.type.rank - axis, eps=eps, affine=False)
        at.give(_scaled(at, normal))
        return
    at.give(at.layer("rms_norm", x, params, axes=x.type.rank - axis, eps=eps))


def _instance_norm(at: Site) -> None:
    eps = float(at.attr("epsilon", 1e-5))
    params = _affine(at, {"weight": 1, "bias": 2})
    x = at.x()
    result = at.layer("instance_norm", x, params, eps=eps, affine=bool(params))
    wide = [-1 if j == 0 else 1 for j in range(x.type.rank - 1)]
    at.give(result if params else _scaled(at, result, _channels(x, wide)))


def _channels(x: Made, wide: Sequence[int]) -> list[int]:
    channels = x.type.shape[1]
    if not isinstance(channels, int):
        raise RefusedError(f"its input has {channels} channels")
    return [channels, *wide[1:]]


def _group_norm(at: Site) -> None:
    x, groups = at.x(), int(at.attr("num_groups", 1))
    params = _affine(at, {"weight": 1, "bias": 2})
    channels = x.type.shape[1]
    if not params:
        raise RefusedError("the network computes its weight")
    if at.opset < 21 and isinstance(channels, int) and channels % groups == 0:
        # One weight a group, in these opsets.
        params = {
            role: held
            if held.array.shape == (channels,) and groups != channels
            else Tensor(np.repeat(held.array, channels // groups))
            for role, held in params.items()
        }
    eps = float(at.attr("epsilon", 1e-5))
    at.give(at.layer("group_norm", x, params, groups=groups, eps=eps))


def _lrn(at: Site) -> None:
    size = int(at.attr("size", 1))
    if size % 2 == 0:
        raise RefusedError(f"it looks at {size} channels, an even number")
    given: dict[str, AttrValue] = {"alpha": float(at.attr("alpha")), "beta": float(at.attr("beta"))}
    k = float(at.attr("bias", 1.0))
    at.give(at.put("local_response_norm", at.x(), size=size, k=k, **given))


LAYERS: Mapping[str, Raise] = MappingProxyType(
    {
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "RMSNormalization": _rms_norm,
        "InstanceNormalization": _instance_norm,
        "GroupNormalization": _group_norm,
        "LRN": _lrn,
    }
)
"""How these operators are raised."""
