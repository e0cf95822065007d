"""The table of diagnostic codes: what each means, for ``archir explain CODE``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A code's title and its explanation, in the user's terms."""

    title: str
    explanation: str


CODES: dict[str, Code] = {
    "A104": Code(
        "wrong number of tensors",
        "An operator was given more or fewer tensors than it takes. In a pipeline the piped value "
        "is the first of them; further tensors stand first in the parentheses.",
    ),
    "A110": Code(
        "shapes do not fit",
        "The shapes of the operands do not satisfy the operator's axis signature. The message "
        "shows the shapes on both sides; `archir show` prints the shape of every layer.",
    ),
    "A111": Code(
        "a size cannot be solved",
        "A size is an integer times a product of symbols, or an exact quotient of such. What would "
        "need a floor or a sum of unlike symbols cannot be written; give the axis a number.",
    ),
    "A112": Code(
        "unknown attribute", "The operator has no attribute of that name."
    ),
    "A113": Code(
        "missing attribute", "The operator needs an attribute that has no default."
    ),
    "A114": Code(
        "wrong value of an attribute",
        "The attribute's value is of the wrong kind, out of range, or has the wrong number of entries.",
    ),
    "A115": Code(
        "no `same` padding for an even kernel",
        "`same` pads dilation * (kernel - 1) / 2 on both sides, which is whole for odd kernels only. "
        "State the padding.",
    ),
}
