"""Layers that exporters spell out, found again among what was raised so far.

The pieces that a layer makes superfluous stay where they are: nothing reads them, and they are
left out at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from archir.ir.types import AttrValue
from archir.ops.arithmetic import Array

from .site import Draft, RefusedError, Site, Tensor
from .values import Known, Made


def _draft(at: Site, x: Made, *ops: str) -> Draft | None:
    """The draft that makes a value, if it is a use of one of these operators."""
    found = at.net.drafts[x.draft]
    return found if found.op in ops else None


def constant(at: Site, x: Made) -> float | None:
    """The number that a value is, if it is a constant of one entry."""
    found = _draft(at, x, "constant", "parameter")
    if found is None:
        return None
    if found.op == "constant":
        flat = np.asarray(found.attrs["value"]).reshape(-1)
    else:
        flat = found.params["value"].array.reshape(-1)[:2]
    return float(flat[0]) if flat.size == 1 else None


def _unscaled(at: Site, x: Made) -> tuple[Made, float]:
    """A value without the number that it is multiplied or divided by, and that number."""
    found = _draft(at, x, "mul", "div")
    if found is not None and len(found.inputs) == 2:
        for place in (1, 0) if found.op == "mul" else (1,):
            factor = constant(at, found.inputs[place])
            if factor is not None and factor != 0:
                rest = found.inputs[1 - place]
                return rest, factor if found.op == "mul" else 1 / factor
    return x, 1.0


def attention(at: Site, scores: Made, axis: int) -> bool:
    """Raise a softmax of products, and the product after it, as attention.

    softmax(s * q k^T + mask) v, the form in which exporters write it; the factor may be shared
    out between queries and keys.
    """
    after = at.follower()
    if after is None or after.op_type != "MatMul" or after.input[0] != at.node.output[0]:
        return False
    values = at.net.values.get(after.input[1])
    rank = scores.type.rank
    if axis != rank - 1 or rank < 3 or not isinstance(values, Made) or values.type.rank != rank:
        return False
    found = _scores(at, scores)
    if found is None:
        return False
    queries, keys, scale, mask = found
    if scale <= 0 or any(x.type.rank != rank for x in (queries, keys)):
        return False
    turned = _draft(at, keys, "transpose")
    if turned is not None and {turned.attrs["a"], turned.attrs["b"]} == {rank - 2, rank - 1}:
        keys = turned.inputs[0]
    else:
        keys = at.put("transpose", keys, a=rank - 2, b=rank - 1)
    operands = [queries, keys, values] + ([mask] if mask is not None else [])
    width = queries.type.shape[-1]
    given: dict[str, AttrValue] = {}
    if not isinstance(width, int) or not math.isclose(scale, width**-0.5, rel_tol=1e-6):
        given["scale"] = scale
    try:
        result = at.put("scaled_dot_product_attention", *operands, **given)
    except RefusedError:
        return False
    at.take(after, result)
    return True


def _scores(at: Site, scores: Made) -> tuple[Made, Made, float, Made | None] | None:
    """Queries, keys (turned), the factor and the mask of the scores."""
    mask: Made | None = None
    product, outer = _unscaled(at, scores)
    summed = _draft(at, product, "add")
    if outer == 1 and summed is not None and len(summed.inputs) == 2:
        for place in (0, 1):
            inner, factor = _unscaled(at, summed.inputs[place])
            if _draft(at, inner, "matmul") is not None:
                product, outer, mask = inner, factor, summed.inputs[1 - place]
                break
    found = _draft(at, product, "matmul")
    if found is None:
        return None
    if mask is not None and (mask.type.rank < 2 or mask.type.dtype != scores.type.dtype):
        return None
    queries, first = _unscaled(at, found.inputs[0])
    keys, second = _unscaled(at, found.inputs[1])
    return queries, keys, outer * first * second, mask


def turned(at: Site, x: Made, shape: Sequence[object]) -> bool:
    """Raise a transpose between two reshapes, which make batch axes one and several again."""
    inner = _draft(at, x, "transpose")
    flat = _draft(at, inner.inputs[0], "reshape") if inner is not None else None
    if inner is None or flat is None or {inner.attrs["a"], inner.attrs["b"]} != {1, 2}:
        return False
    before = flat.inputs[0]
    sizes, merged = before.type.shape, flat.types[0].shape
    if len(merged) != 3 or len(sizes) < 3 or sizes[-2:] != merged[-2:]:
        return False
    if list(shape) != [*sizes[:-2], sizes[-1], sizes[-2]]:
        return False
    at.give(at.put("transpose", before, a=before.type.rank - 2, b=before.type.rank - 1))
    return True


def layer_norm(at: Site, top: Made, bottom: Made) -> bool:
    """Raise (x - mean) / sqrt(var + eps) over the last axes, and an affine map after it."""
    root = _draft(at, bottom, "sqrt")
    plus = _draft(at, root.inputs[0], "add") if root is not None else None
    less = _draft(at, top, "sub")
    if plus is None or less is None or len(plus.inputs) != 2:
        return False
    places = [j for j in (0, 1) if constant(at, plus.inputs[j]) is not None]
    if not places:
        return False
    eps = constant(at, plus.inputs[places[0]])
    spread = _draft(at, plus.inputs[1 - places[0]], "mean")
    middle = _draft(at, less.inputs[1], "mean")
    if spread is None or middle is None or eps is None or eps < 0:
        return False
    square = _draft(at, spread.inputs[0], "mul")
    x, rank = less.inputs[0], less.inputs[0].type.rank
    axes = middle.attrs["axes"]
    if middle.inputs[0] != x or spread.attrs != middle.attrs or not middle.attrs["keep"]:
        return False
    if square is None or not _same(at, square.inputs, less):
        return False
    if not isinstance(axes, tuple) or list(axes) != list(range(rank - len(axes), rank)):
        return False
    shape = [size for size in x.type.shape[rank - len(axes) :] if isinstance(size, int)]
    if len(shape) != len(axes):
        return False
    # The statistics of float32, as a short decimal where it is one.
    short = float(str(np.float32(eps)))
    _affine(at, "layer_norm", x, shape, {"axes": len(axes), "eps": short})
    return True


def _same(at: Site, inputs: Sequence[Made], less: Draft) -> bool:
    """Whether all operands are this difference, computed once or several times."""
    found = [at.net.drafts[x.draft] for x in inputs]
    return len(found) == 2 and all(f.op == "sub" and f.inputs == less.inputs for f in found)


def group_norm(at: Site, x: Made, shape: Sequence[object]) -> bool:
    """Raise an instance normalisation between two reshapes as one of groups of channels."""
    inner = _draft(at, x, "instance_norm")
    apart = _draft(at, inner.inputs[0], "reshape") if inner is not None else None
    if inner is None or apart is None or x.type.rank != 3:
        return False
    image = apart.inputs[0]
    channels, groups = image.type.shape[1], x.type.shape[1]
    if list(shape) != list(image.type.shape) or image.type.shape[0] != x.type.shape[0]:
        return False
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
        return False
    ones = inner.params.get("weight"), inner.params.get("bias")
    if ones[0] is not None and not (ones[0].array == 1).all():
        return False
    if ones[1] is not None and ones[1].array.any():
        return False
    wide = [channels, *[1] * (image.type.rank - 2)]
    _affine(at, "group_norm", image, wide, {"groups": groups, "eps": inner.attrs["eps"]})
    return True


def _affine(at: Site, op: str, x: Made, shape: Sequence[int], attrs: dict[str, AttrValue]) -> None:
    """A normalisation with the product and sum after it, if they are with constants."""
    scale = at.follower()
    weight = _beside(at, scale, "Mul", at.node.output[0], shape)
    if weight is None or scale is None:
        at.give(at.layer(op, x, {}, affine=False, **attrs))
        return
    shift = at.follower(scale.output[0])
    bias = _beside(at, shift, "Add", scale.output[0], shape)
    if bias is None or shift is None:
        normal = at.layer(op, x, {}, affine=False, **attrs)
        if op == "layer_norm":
            normal = at.layer(op, x, {"weight": weight}, bias=False, **attrs)
            at.take(scale, normal)
        else:
            at.give(normal)
        return
    at.net.done.add(scale.output[0])
    at.take(shift, at.layer(op, x, {"weight": weight, "bias": bias}, **attrs))


def _beside(
    at: Site, node: NodeProto | None, kind: str, name: str, shape: Sequence[int]
) -> Tensor | None:
    """The constant that a node multiplies or adds, one entry for each of a shape."""
    if node is None or node.op_type != kind or len(node.input) != 2:
        return None
    rest = [other for other in node.input if other != name]
    known = at.net.known(rest[0]) if len(rest) == 1 else None
    if known is None or known.symbolic:
        return None
    array = known.array
    trimmed = [size for size in array.shape if size != 1] or [1]
    if trimmed != [size for size in shape if size != 1] and array.size != 1:
        return None
    if array.ndim and array.ndim < len(shape) and array.size != 1:
        return None
    if array.ndim > len(shape) and set(array.shape[: array.ndim - len(shape)]) != {1}:
        return None
    return _flat(known, array, shape)


def _flat(known: Known, array: Array, shape: Sequence[int]) -> Tensor | None:
    wanted = [size for size in shape if size != 1] or [1]
    if array.size == 1:
        return Tensor(np.broadcast_to(array.reshape(-1)[0], wanted))
    flat = array.reshape(wanted)
    form = "" if flat.shape == array.shape else "flat"
    return Tensor(flat, known.base, form) if known.base else Tensor(flat)
