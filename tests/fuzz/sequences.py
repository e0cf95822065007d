"""Blocks over sequences: tokens on the last axis but one, features on the last."""

from __future__ import annotations

from archir.ir.dims import symbol
from archir.ir.graph import Value
from archir.ir.types import TensorType

from .sketch import Sketch, features, image, numbers


def sequence(type_: TensorType) -> bool:
    """Tokens with features, few enough."""
    return features(type_) and type_.rank in (3, 4) and numbers(type_) <= 400


def embed(s: Sketch) -> Value:
    """An input of whole numbers, each of which stands for a row of a table."""
    tokens = s.input(s.batch, s.choices.pick((5, 3, symbol("T"))), dtype="i64")
    return s.add("embedding", tokens, num=s.choices.pick((6, 5)), dim=s.choices.pick((4, 6, 8)))


def unembed(s: Sketch) -> None:
    """A linear layer whose weight is the table of an embedding."""
    for table in s.layers("embedding"):
        x = s.value(lambda t, dim=table.attrs["dim"]: features(t) and t.shape[-1] == dim)  # type: ignore[misc]
        if x is not None:
            weight = {"weight": table.params["weight"]}
            s.keep(s.add("linear", x, out=table.attrs["num"], params=weight, bias=s.flag()))
            return


def attention(s: Sketch) -> None:
    """Multi-head attention of a sequence to itself or to another one, packed or not."""
    x = s.value(sequence)
    if x is None:
        return
    shape = s.shape(x)
    width = shape[-1]
    heads, dim = s.choices.pick(((1, 2), (2, 1), (2, 2), (3, 2)))
    normed = s.add("layer_norm", x) if s.flag() else x
    kind = s.choices.pick(("packed", "split", "separate", "cross"))
    if kind in ("packed", "split"):
        packed = s.add("linear", normed, out=3 * heads * dim, label="in_proj")
        if kind == "packed":
            q, k, v = s.several("chunk", packed, chunks=3, axis=-1)
        else:
            q, k, v = s.several("split", packed, sizes=(heads * dim,) * 3, axis=-1)
    else:
        other = normed
        if kind == "cross":
            found = s.value(lambda t: sequence(t) and t.shape[:-2] == shape[:-2])
            other = normed if found is None else found
        q = s.add("linear", normed, out=heads * dim, label="q")
        k = s.add("linear", other, out=heads * dim, label="k")
        v = s.add("linear", other, out=heads * s.choices.pick((dim, 1, 3)), label="v")
    operands = [q, k, v]
    rows, columns = s.shape(q)[-2], s.shape(k)[-2]
    if isinstance(rows, int) and isinstance(columns, int) and s.rarely():
        operands.append(s.add("parameter", shape=(rows, columns), init=0.0, buffer=s.flag()))
    y = s.add("attention", *operands, heads=heads, causal=rows == columns and s.rarely())
    y = s.add("linear", y, out=width, label="out_proj") if isinstance(width, int) else y
    s.keep(s.add("add", x, y) if s.flag() else y)


def by_hand(s: Sketch) -> None:
    """Attention spelled out: reshape, permute, two products and a softmax between them."""
    x = s.value(lambda t: sequence(t) and t.rank == 3 and isinstance(t.shape[1], int))
    if x is None:
        return
    tokens, width = s.sizes(x)
    heads, dim = s.choices.pick(((2, 2), (1, 3), (3, 2)))
    turned = []
    for label, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        y = s.add("linear", x, out=heads * dim, label=label)
        y = s.add("reshape", y, shape=(0, tokens, heads, dim))
        turned.append(s.add("permute", y, order=order))
    q, k, v = turned
    weights = s.add("softmax", s.add("matmul", q, k), axis=-1)
    y = s.add("permute", s.add("matmul", weights, v), order=(0, 2, 1, 3))
    y = s.add("reshape", y, shape=(0, tokens, heads * dim))
    y = s.add("linear", y, out=width, label="out")
    s.keep(s.add("add", x, y))


def mlp(s: Sketch) -> None:
    """Normalise, widen, bend, narrow, add: the other half of a transformer's layer."""
    x = s.value(sequence)
    if x is None:
        return
    width = s.shape(x)[-1]
    assert isinstance(width, int)
    y = s.add(s.choices.pick(("layer_norm", "rms_norm")), x)
    wide = s.add("linear", y, out=s.choices.pick((4, 6)), label="fc1")
    if s.rarely():
        gate = s.add("linear", y, out=s.shape(wide)[-1], label="gate")  # type: ignore[arg-type]
        wide = s.add("mul", s.add("silu", wide), gate)
    else:
        wide = s.add("gelu", wide)
    s.keep(s.add("add", x, s.add("linear", wide, out=width, label="fc2")))


def patches(s: Sketch) -> None:
    """An image as a sequence of patches, perhaps with a class token and positions."""
    x = s.value(lambda t: image(t) and t.rank == 4 and min(map(int, map(str, t.shape[2:]))) >= 2)
    if x is None:
        return
    y = s.add("conv", x, out=s.choices.pick((4, 6)), kernel=2, stride=2, padding=0)
    channels, *space = s.sizes(y)
    tokens = space[0] * space[1]
    if s.flag():
        y = s.add("flatten", y, start=2)
    else:
        y = s.add("reshape", y, shape=(0, channels, tokens))
    y = s.add("transpose", y, a=1, b=2) if s.flag() else s.add("permute", y, order=(0, 2, 1))
    if s.flag():
        token = s.add("parameter", label="class_token", shape=(1, 1, channels), init=0.5)
        y = s.add("concat", s.add("expand", token, y, axis=0), y, axis=1)
        tokens += 1
    if s.flag():
        y = s.add("add", y, s.add("parameter", label="position", shape=(1, tokens, channels)))
    s.keep(y)


def first_token(s: Sketch) -> None:
    """The features of the first token."""
    x = s.value(lambda t: sequence(t) and isinstance(t.shape[-2], int))
    if x is not None:
        s.keep(s.add("select", x, index=0, axis=s.type(x).rank - 2))
