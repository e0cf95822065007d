"""Layers of torch: convolutions, normalisation, pooling, resampling, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from archir.ir.dims import Size
from archir.ir.graph import Value

from .site import Site
from .values import CannotRaiseError, Entry, Held

Raise = Callable[[Site], Entry]

ROLES = ("weight", "bias", "running_mean", "running_var")


def _conv(at: Site) -> Entry:
    x, weight = at.value("input"), at.entry("weight")
    spatial = at.type(x).rank - 2
    stride, dilation = at.ints("stride", spatial), at.ints("dilation", spatial)
    own = _trained(weight) and (at.entry("bias") is None or _trained(at.entry("bias")))
    operand = None if own else at.value("weight")
    kernel = tuple(
        int(str(size)) for size in (at.type(operand).shape if operand else _shape(weight))[2:]
    )
    given = at.args["padding"]
    if isinstance(given, str):
        padding, x = _named_padding(at, x, given, kernel, dilation)
    else:
        padding = at.ints("padding", spatial)
    attrs: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": int(at.args["groups"]),
    }
    if operand is None:
        params = {"weight": at.held("weight"), "bias": at.held("bias")}
        out = _shape(weight)[0]
        biased = params["bias"] is not None
        return at.put("conv", x, params=params, out=out, kernel=kernel, bias=biased, **attrs)
    operands = [x, operand, *_given(at, "bias")]
    return at.put("dynamic_conv", *operands, **attrs)


def _trained(entry: Entry) -> bool:
    """Whether a tensor is a layer's own parameter; a fixed filter is none."""
    return isinstance(entry, Held) and not entry.buffer


def _shape(entry: Entry) -> tuple[int, ...]:
    assert isinstance(entry, Held)
    return tuple(entry.tensor.shape)


def _given(at: Site, *names: str) -> list[Value]:
    return [at.value(name) for name in names if at.entry(name) is not None]


def _named_padding(
    at: Site, x: Value, given: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], Value]:
    """`valid` or `same`; where `same` is one more behind than before, a padding of its own."""
    if given == "valid":
        return (0,) * len(kernel), x
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return tuple(total // 2 for total in totals), x
    before = (0, 0, *(total // 2 for total in totals))
    after = (0, 0, *(total - total // 2 for total in totals))
    return (0,) * len(kernel), at.put("pad", x, before=before, after=after)


def _conv_transpose(at: Site) -> Entry:
    x, weight = at.value("input"), at.held("weight")
    assert weight is not None
    spatial, groups = at.type(x).rank - 2, int(at.args["groups"])
    bias = at.held("bias")
    return at.put(
        "conv_transpose",
        x,
        params={"weight": weight, "bias": bias},
        out=weight.tensor.shape[1] * groups,
        kernel=tuple(weight.tensor.shape[2:]),
        groups=groups,
        bias=bias is not None,
        **{n: at.ints(n, spatial) for n in ("stride", "padding", "output_padding", "dilation")},
    )


def _linear(at: Site) -> Entry:
    x, weight = at.value("input"), at.entry("weight")
    bias = at.entry("bias")
    if _trained(weight) and (bias is None or _trained(bias)):
        params = {"weight": at.held("weight"), "bias": at.held("bias")}
        return at.put("linear", x, params=params, out=_shape(weight)[0], bias=bias is not None)
    return at.put("dynamic_linear", x, at.value("weight"), *_given(at, "bias"))


def _batch_norm(at: Site) -> Entry:
    x = at.value("input")
    entries = {role: at.entry(role) for role in ROLES}
    held = all(entry is None or isinstance(entry, Held) for entry in entries.values())
    held &= entries["weight"] is None or _trained(entries["weight"])  # frozen ones are buffers
    training = bool(at.args["training"])
    tracked = entries["running_mean"] is not None
    eps, momentum = float(at.args["eps"]), at.args["momentum"]
    affine = entries["weight"] is not None
    frozen = not training and tracked and at.walk.train
    if held and affine == (entries["bias"] is not None) and not frozen:
        params: dict[str, Held | None] = {role: at.held(role) for role in ROLES}
        if tracked:
            params["num_batches_tracked"] = _counter(at, params["running_mean"])
        return at.put(
            "batch_norm",
            x,
            params=params,
            eps=eps,
            momentum=0.1 if momentum is None else float(momentum),
            affine=affine,
            track=tracked,
        )
    if training and tracked:
        raise CannotRaiseError("its running statistics belong to tensors that are computed")
    operands = _given(at, *ROLES)
    there: dict[str, Any] = {
        "scale": affine,
        "shift": entries["bias"] is not None,
        "track": tracked,
    }
    return at.put("dynamic_batch_norm", x, *operands, eps=eps, **there)


def _counter(at: Site, mean: Held | None) -> Held:
    """The number of batches beside a running mean; a module without one gets zero."""
    assert mean is not None
    path = f"{mean.path.rpartition('.')[0]}.num_batches_tracked".lstrip(".")
    state = at.walk.program.state_dict
    if path not in state:
        raise CannotRaiseError(f"there is no `{path}` beside its running statistics")
    return Held(path, state[path], buffer=True)


def _layer_norm(at: Site) -> Entry:
    weight, bias = at.entry("weight"), at.entry("bias")
    x = at.value("input")
    axes = len(at.args["normalized_shape"])
    params = {"weight": at.held("weight"), "bias": at.held("bias")}
    return at.put(
        "layer_norm",
        x,
        params=params,
        axes=axes,
        eps=float(at.args["eps"]),
        affine=weight is not None,
        bias=bias is not None,
    )


def _rms_norm(at: Site) -> Entry:
    eps = at.args["eps"]
    weight = at.held("weight")
    return at.put(
        "rms_norm",
        at.value("input"),
        params={"weight": weight},
        axes=len(at.args["normalized_shape"]),
        eps=2.0**-23 if eps is None else float(eps),
        affine=weight is not None,
    )


def _group_norm(at: Site) -> Entry:
    params = {"weight": at.held("weight"), "bias": at.held("bias")}
    return at.put(
        "group_norm",
        at.value("input"),
        params=params,
        groups=int(at.args["num_groups"]),
        eps=float(at.args["eps"]),
        affine=params["weight"] is not None,
        bias=params["bias"] is not None,
    )


def _instance_norm(at: Site) -> Entry:
    if at.entry("running_mean") is not None:
        raise CannotRaiseError("it keeps running statistics")
    params = {"weight": at.held("weight"), "bias": at.held("bias")}
    affine = params["weight"] is not None
    return at.put(
        "instance_norm", at.value("input"), params=params, eps=float(at.args["eps"]), affine=affine
    )


def _pool(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        spatial = at.type(x).rank - 2
        kernel = at.ints("kernel_size", spatial)
        stride = at.ints("stride", spatial) if at.args["stride"] else kernel
        padding = at.ints("padding", spatial)
        attrs: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
        if op == "max_pool":
            attrs["dilation"] = at.ints("dilation", spatial)
        else:
            attrs["count_include_pad"] = bool(at.args["count_include_pad"])
        if at.args.get("divisor_override") is not None:
            raise CannotRaiseError("it divides by a number of its own")
        if at.args["ceil_mode"] and not _fits(at.type(x).shape[2:], attrs):
            attrs["ceil_mode"] = True
        return _alone(at, at.put(op, x, **attrs))

    return raise_


def _alone(at: Site, found: Value) -> Entry:
    """The largest entries, where torch gives their places too.

    Raises:
        CannotRaiseError: somebody reads the places.
    """
    if not isinstance(at.node.meta["val"], tuple | list):
        return found
    if any(reader.args[1] == 1 and reader.users for reader in at.node.users):
        raise CannotRaiseError("the places of its largest entries are read")
    return [found, None]


def _fits(extents: tuple[Size, ...], attrs: Mapping[str, Any]) -> bool:
    """Whether windows end with the tensor, so that rounding up or down is one."""
    dilation = attrs.get("dilation", (1,) * len(extents))
    rows = zip(extents, attrs["kernel"], attrs["stride"], attrs["padding"], dilation, strict=True)
    return all(
        isinstance(size, int) and (size + 2 * p - d * (k - 1) - 1) % step == 0
        for size, k, step, p, d in rows
    )


def _adaptive(op: str) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("self")
        size = at.ints("output_size", at.type(x).rank - 2)
        return _alone(at, at.put(op, x, size=size))

    return raise_


def _attention(at: Site) -> Entry:
    if at.args["dropout_p"]:
        raise CannotRaiseError("it drops entries inside of the attention")
    if at.args.get("enable_gqa"):
        raise CannotRaiseError("its keys have fewer heads than its queries")
    operands = [at.value(name) for name in ("query", "key", "value")]
    operands += _given(at, "attn_mask")
    attrs: dict[str, Any] = {"causal": bool(at.args["is_causal"])}
    scale = at.args["scale"]
    if scale is not None:
        attrs["scale"] = float(scale)
    return at.put("scaled_dot_product_attention", *operands, **attrs)


def _interpolate(mode: str, *, smooth: bool = False) -> Raise:
    def raise_(at: Site) -> Entry:
        x = at.value("input")
        out = at.result.shape[2:]
        corners = bool(at.args.get("align_corners"))
        attrs: dict[str, Any] = {"mode": mode, "align_corners": corners, "antialias": smooth}
        scales = at.args.get("scale_factors")
        old = at.type(x).shape[2:]
        if scales is not None and mode in ("nearest", "bilinear") and not smooth:
            times = [int(scale) for scale in scales]
            fits = all(
                isinstance(o, int) and o * w == n for o, w, n in zip(old, times, out, strict=True)
            )
            if fits and all(w == s for w, s in zip(times, scales, strict=True)) and len(old) == 2:
                return at.put("upsample", x, scale=tuple(times), mode=mode, align_corners=corners)
        if scales is not None:
            return at.put("interpolate", x, scale=tuple(map(float, scales)), **attrs)
        whole = tuple(size for size in out if isinstance(size, int))
        if len(whole) < len(out):
            raise CannotRaiseError("the size of its result is symbolic")
        return at.put("interpolate", x, size=whole, **attrs)

    return raise_


def _embedding(at: Site) -> Entry:
    weight = at.held("weight")
    assert weight is not None
    num, dim = weight.tensor.shape
    return at.put("embedding", at.value("indices"), params={"weight": weight}, num=num, dim=dim)


def _unfold(at: Site) -> Entry:
    names = (("kernel_size", "kernel"), ("stride", "stride"), ("padding", "padding"))
    attrs: dict[str, Any] = {
        new: at.ints(old, 2) for old, new in (*names, ("dilation", "dilation"))
    }
    return at.put("unfold", at.value("self"), **attrs)


def _fold(at: Site) -> Entry:
    names = (("kernel_size", "kernel"), ("stride", "stride"), ("padding", "padding"))
    attrs: dict[str, Any] = {
        new: at.ints(old, 2) for old, new in (*names, ("dilation", "dilation"))
    }
    return at.put("fold", at.value("self"), size=at.ints("output_size", 2), **attrs)


FROM_TORCH: Mapping[str, Raise] = MappingProxyType(
    {
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
        **dict.fromkeys(
            ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose
        ),
        "linear": _linear,
        "batch_norm": _batch_norm,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
        **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _pool("max_pool")),
        **dict.fromkeys((f"max_pool{n}d_with_indices" for n in (1, 2, 3)), _pool("max_pool")),
        **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool("avg_pool")),
        **dict.fromkeys(
            ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            _adaptive("adaptive_avg_pool"),
        ),
        **dict.fromkeys(
            ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            _adaptive("adaptive_max_pool"),
        ),
        "scaled_dot_product_attention": _attention,
        "upsample_nearest2d": _interpolate("nearest"),
        "upsample_bilinear2d": _interpolate("bilinear"),
        "upsample_bicubic2d": _interpolate("bicubic"),
        **dict.fromkeys(("upsample_nearest1d", "upsample_nearest3d"), _interpolate("nearest")),
        **dict.fromkeys(
            (f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)), _interpolate("nearest-exact")
        ),
        "upsample_linear1d": _interpolate("linear"),
        "upsample_trilinear3d": _interpolate("trilinear"),
        "_upsample_bilinear2d_aa": _interpolate("bilinear", smooth=True),
        "_upsample_bicubic2d_aa": _interpolate("bicubic", smooth=True),
        "embedding": _embedding,
        "im2col": _unfold,
        "col2im": _fold,
    }
)
"""How these operators of torch are raised."""
