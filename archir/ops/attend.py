"""Products of tensors: matmul, einsum, and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from archir.ir.types import AttrValue, TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Derived, Kind, Mode, Op, Sample
from archir.ops.window import ints


def _t(*shape: int) -> TensorType:
    return TensorType("f32", shape)


def _batch(types: Sequence[TensorType]) -> tuple[list[list[str]], list[str]]:
    """Names for all axes but the last two, aligned at the end, and for those of the result."""
    rank = max(t.rank for t in types) - 2
    found = []
    for type_ in types:
        own = [f"b{rank - (type_.rank - 2) + j}" for j in range(type_.rank - 2)]
        found.append(
            [
                "1" if size == 1 and _wide(types, j - type_.rank) else name
                for j, (name, size) in enumerate(zip(own, type_.shape, strict=False))
            ]
        )
    return found, [f"b{j}" for j in range(rank)]


def _wide(types: Sequence[TensorType], axis: int) -> bool:
    return any(t.rank >= -axis and t.shape[axis] != 1 for t in types)


def matmul_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The last two axes are multiplied, those before them stretch as in a sum."""
    if min(t.rank for t in types) < 2:
        shapes = " and ".join(map(str, types))
        raise OpError("A110", f"`matmul` needs at least 2 axes in each tensor: {shapes}")
    (left, right), out = _batch(types)
    parts = [*left, "t", "k"], [*right, "k", "u"], [*out, "t", "u"]
    x, y, z = (", ".join(names) for names in parts)
    return f"x[{x}] y[{y}] -> [{z}]"


def matmul_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    """One product: all axes of the result, and the one that is summed over."""
    return (" ".join([*_batch(types)[1], "t", "k", "u"]),)


def terms(equation: str, count: int) -> tuple[list[str], str]:
    """The letters of each operand of an einsum, and of its result.

    Raises:
        OpError: the equation is not of the form `ij,jk->ik`, or not for so many operands.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    words = [*operands, result]
    fine = bool(arrow) and all(w == "" or (w.isascii() and w.isalpha()) for w in words)
    fine = fine and all(len(set(w)) == len(w) for w in words) and set(result) <= set(left)
    if not fine or len(operands) != count:
        raise OpError(
            "A114",
            f"`{equation}` is no equation of `einsum` for {count} tensor{'s' * (count != 1)}",
            "for example `bij,bjk->bik`: a letter an axis, none twice in a tensor",
            "equation",
        )
    return operands, result


def _named(letter: str) -> str:
    return letter if letter.islower() else f"{letter.lower()}_upper"


def einsum_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """The equation; what is summed over in other than two operands is opaque."""
    operands, result = terms(str(attrs["equation"]), len(types))
    uses = {letter: sum(letter in word for word in operands) for letter in "".join(operands)}
    parts = []
    for number, word in enumerate(operands):
        names = [_named(x) + "!" * (x not in result and uses[x] != 2) for x in word]
        parts.append(f"x{number}[{', '.join(names)}]")
    return f"{' '.join(parts)} -> [{', '.join(map(_named, result))}]"


def einsum_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    """One product for each operand that is multiplied in, from left to right."""
    operands, result = terms(str(attrs["equation"]), len(types))
    held, out = operands[0], []
    for number, word in enumerate(operands[1:], 1):
        both = "".join(dict.fromkeys(held + word))
        out.append(" ".join(map(_named, both)))
        later = "".join([result, *operands[number + 1 :]])
        held = "".join(x for x in both if x in later)
    return tuple(out)


def default_scale(attrs: Attrs, types: tuple[TensorType, ...]) -> AttrValue:
    """1 / sqrt(d), with d the width of a head.

    Raises:
        OpError: the last axis is no multiple of the number of heads.
    """
    (heads,) = ints([attrs["heads"]])
    width = types[0].shape[-1] if types[0].shape else 0
    if not isinstance(width, int) or width % heads or not width:
        raise OpError("A110", f"`attention` cannot cut {width} channels into {heads} heads")
    return 1 / math.sqrt(width // heads)


def attention_signature(attrs: Attrs, types: tuple[TensorType, ...]) -> str:
    """Heads are the slow part of the last axis; keys, and causal queries, are opaque."""
    rank = types[0].rank
    if rank < 2 or any(t.rank != rank for t in types[:3]):
        shapes = " and ".join(map(str, types))
        raise OpError("A110", f"`attention` needs three tensors of one rank, at least 2: {shapes}")
    batch = [f"b{j}" for j in range(rank - 2)]
    t = "t!" if attrs["causal"] else "t"
    q, k, v, out = (
        ", ".join([*batch, *axes])
        for axes in ((t, "(h d)"), ("s!", "(h d)"), ("s!", "(h e)"), (t, "(h e)"))
    )
    mask = ""
    if len(types) > 3:
        full = [*batch, "h", t, "s!"]
        if types[3].rank > len(full):
            message = f"the mask of `attention` has more than {len(full)} axes: {types[3]}"
            raise OpError("A110", message)
        names = full[len(full) - types[3].rank :]
        sizes = types[3].shape
        names = ["1" if size == 1 else name for name, size in zip(names, sizes, strict=True)]
        mask = f" mask[{', '.join(names)}]"
    return f"q[{q}] k[{k}] v[{v}]{mask} -> [{out}]"


def attention_products(attrs: Attrs, types: tuple[TensorType, ...]) -> tuple[str, ...]:
    """Queries with keys, and weights with values."""
    shared = " ".join([*(f"b{j}" for j in range(types[0].rank - 2)), "h t s"])
    return f"{shared} d", f"{shared} e"


def _matmul(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    return (k.matmul(x[0], x[1]),)


def _einsum(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    operands, result = terms(str(a["equation"]), len(x))
    held, word = x[0], operands[0]
    for number, other in enumerate(operands[1:], 1):
        later = "".join([result, *operands[number + 1 :]])
        held, word = _pair(k, (held, x[number]), (word, other), later)
    held, word = _reduced(k, held, word, result)
    return (held.transpose([word.index(letter) for letter in result]),)


def _reduced(k: Arithmetic, x: Array, word: str, wanted: str) -> tuple[Array, str]:
    """Sum over the axes that nothing wants any more."""
    over = tuple(j for j, letter in enumerate(word) if letter not in wanted)
    return (k.sum(x, over) if over else x), "".join(c for c in word if c in wanted)


def _pair(
    k: Arithmetic, x: tuple[Array, Array], words: tuple[str, str], later: str
) -> tuple[Array, str]:
    """Multiply two operands as matrices, summing over what only they share."""
    (left, first), (right, second) = (
        _reduced(k, each, word, later + other)
        for each, word, other in zip(x, words, words[::-1], strict=True)
    )
    batch = [c for c in first if c in second and c in later]
    inner = [c for c in first if c in second and c not in later]
    rows = [c for c in first if c not in second]
    columns = [c for c in second if c not in first]
    sizes = dict(zip(first + second, left.shape + right.shape, strict=True))

    def flat(value: Array, word: str, *groups: list[str]) -> Array:
        turned = value.transpose([word.index(c) for c in (*batch, *groups[0], *groups[1])])
        shape = [math.prod(sizes[c] for c in group) for group in groups]
        return turned.reshape(*(sizes[c] for c in batch), *shape)

    product = k.matmul(flat(left, first, rows, inner), flat(right, second, inner, columns))
    word = "".join([*batch, *rows, *columns])
    return product.reshape([sizes[c] for c in word]), word


@lru_cache(maxsize=256)
def surd(value: float) -> tuple[Fraction, int]:
    """A fraction a and a whole number m without square factors: the value is a * sqrt(m).

    1 / sqrt(d), divided by whole numbers, keeps its m, so that exact numbers can tell what was
    divided. A float that is no such root of a fraction (of denominator 10**6 at most) is its own
    binary fraction.

    >>> surd(1 / math.sqrt(8)), surd(1 / math.sqrt(8) / 3)
    ((Fraction(1, 4), 2), (Fraction(1, 12), 2))
    """
    exact = Fraction(value)
    square = (exact**2).limit_denominator(10**6)
    if not square or abs(square / exact**2 - 1) > 8 * Fraction(2) ** -52:
        return exact, 1
    outside, inside, rest, factor = 1, 1, square.numerator * square.denominator, 2
    while factor**3 <= rest:
        while rest % factor**2 == 0:
            outside, rest = outside * factor, rest // factor**2
        if rest % factor == 0:
            inside, rest = inside * factor, rest // factor
        factor += 1
    root = math.isqrt(rest)  # of two primes at most, each larger than all before
    outside, inside = (outside * root, inside) if root**2 == rest else (outside, inside * rest)
    return Fraction(outside if value > 0 else -outside, square.denominator), inside


def scale_of(k: Arithmetic, a: Attrs) -> Array:
    """The attribute `scale` as a number: exact ones take the root in it for a function."""
    scale = a["scale"]
    assert isinstance(scale, float)
    if k.name.startswith("float"):
        return np.asarray(k.number(scale))
    outside, inside = surd(scale)
    factor = k.array(outside)  # type: ignore[arg-type]
    return factor if inside == 1 else k.multiply(factor, k.sqrt(k.array(inside)))


def _attention(
    k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
) -> tuple[Array, ...]:
    (heads,) = ints([a["heads"]])
    queries, keys, values = (
        each.reshape(*each.shape[:-1], heads, -1).swapaxes(-3, -2) for each in x[:3]
    )
    scores = k.multiply(k.matmul(queries, keys.swapaxes(-1, -2)), scale_of(k, a))
    if len(x) > 3:
        scores = k.add(scores, x[3])
    seen = np.ones(scores.shape[-2:], np.int64)
    if a["causal"]:
        seen = np.tril(seen)
    if k.name.startswith("float"):
        reach = np.where(seen, scores, -np.inf).max(axis=-1, keepdims=True)
        scores = k.subtract(scores, reach.astype(scores.dtype))
        scores = np.where(seen, scores, k.number(-math.inf))
    powers = k.multiply(k.exp(scores), k.array(seen))
    total = k.sum(powers, (powers.ndim - 1,))[..., None]
    mixed = k.matmul(k.divide(powers, total), values).swapaxes(-3, -2)
    return (mixed.reshape(*mixed.shape[:-2], -1),)


MATMUL = Op(
    name="matmul",
    doc="The matrix product over the last two axes; axes of extent 1 before them stretch.",
    signature=matmul_signature,
    operands=(2, 2),
    products=matmul_products,
    reference=_matmul,
    samples=(
        Sample((_t(2, 3, 4), _t(2, 4, 5))),
        Sample((_t(2, 3, 4, 5), _t(1, 5, 6))),
        Sample((_t(2, 3, 4), _t(4, 5))),
    ),
)

EINSUM = Op(
    name="einsum",
    doc="Products of entries, summed over the letters that the result does not have.",
    signature=einsum_signature,
    operands=(1, None),
    attrs=(Attr("equation", Kind.STRING, doc="a letter an axis: `bij,bjk->bik`"),),
    products=einsum_products,
    reference=_einsum,
    samples=(
        Sample((_t(2, 3, 4), _t(2, 4, 5)), {"equation": "bij,bjk->bik"}),
        Sample((_t(2, 3, 5, 4), _t(6, 4)), {"equation": "nHtd,sd->nsHt"}),
        Sample((_t(2, 3, 4), _t(4, 5), _t(3, 5)), {"equation": "nij,jk,ik->ni"}),
        Sample((_t(2, 3, 4),), {"equation": "nij->nj"}),
    ),
)

ATTENTION = Op(
    name="attention",
    doc="Scaled dot-product attention, its heads side by side along the last axis; "
    "a fourth tensor is added to the scores.",
    signature=attention_signature,
    operands=(3, 4),
    attrs=(
        Attr("heads", Kind.INT, 1, least=1),
        Attr("scale", Kind.FLOAT, Derived(default_scale), doc="1 / sqrt(width of a head)"),
        Attr("causal", Kind.BOOL, default=False, doc="a query sees no key behind its own place"),
    ),
    equations={"h": "heads"},
    rescale={"d": "scale"},
    products=attention_products,
    reference=_attention,
    field="the exponential, and the root of a scale that is no fraction, are fixed random "
    "functions without zeros",
    samples=(
        Sample((_t(2, 3, 8), _t(2, 5, 8), _t(2, 5, 12)), {"heads": 4}),
        Sample((_t(2, 5, 6), _t(2, 5, 6), _t(2, 5, 6)), {"heads": 2, "causal": True}),
        Sample((_t(2, 3, 6), _t(2, 5, 6), _t(2, 5, 4), _t(3, 5)), {"heads": 2, "scale": 0.25}),
        Sample((_t(2, 7, 3, 4), _t(2, 7, 5, 4), _t(2, 7, 5, 6), _t(2, 1, 5)), {"heads": 2}),
    ),
)

OPS = (MATMUL, EINSUM, ATTENTION)
