"""Operators of ATen that archir does not know: carried from torch to torch, nothing else.

``aten.NAME`` is the operator of that name; its record is made when it is asked for. A use states
what torch is called with, in the spelling of Python, its operands as ``x0``, ``x1``, ..., and the
types of its results: ``aten.roll(x, arguments = "x0, [1], dims=[2]", result = "f32[N, 3, 8]")``.
Nothing is known of its axes, and what is not torch refuses to compute it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from archir.diag import error
from archir.ir.dims import Dim, Size, product, quotient, symbol, symbols_of
from archir.ir.types import DTYPES, TensorType
from archir.ops.arithmetic import Arithmetic, Array
from archir.ops.infer import OpError
from archir.ops.record import Attr, Attrs, Kind, Mode, Op

PREFIX = "aten."
LONGEST = 4096
"""Characters of a use's arguments."""
UNREAD = "is carried for torch alone, and what it does along that axis is not known"


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor among the arguments, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Word:
    """A value that torch has a name for: ``torch.float32``, ``torch.channels_last``."""

    name: str


Argument = int | float | bool | str | None | Operand | Word | Dim | tuple["Argument", ...]


@dataclass(frozen=True, slots=True)
class Arguments:
    """What torch is called with."""

    positional: tuple[Argument, ...]
    named: Mapping[str, Argument]

    def operands(self) -> Iterator[int]:
        """The numbers of the operands, in order."""
        stack = [*reversed((*self.positional, *self.named.values()))]
        while stack:
            found = stack.pop()
            if isinstance(found, Operand):
                yield found.number
            elif isinstance(found, tuple):
                stack.extend(reversed(found))


def is_carried(name: str) -> bool:
    """Whether an operator's name is that of one that is carried."""
    return re.fullmatch(r"aten\.[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII) is not None


def write_arguments(arguments: Arguments) -> str:
    """Arguments as text, from which :func:`read_arguments` makes them again."""
    out = [_written(value) for value in arguments.positional]
    out += [f"{name}={_written(value)}" for name, value in arguments.named.items()]
    return ", ".join(out)


def _written(value: Argument) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Operand):
        return f"x{value.number}"
    if isinstance(value, Word):
        return f"torch.{value.name}"
    if isinstance(value, Dim):
        return str(value)
    return repr(value)


@lru_cache(maxsize=1024)
def read_arguments(text: str) -> Arguments:
    """Arguments from their text.

    Raises:
        ValueError: it is not the text of arguments; the message says what is wrong.
    """
    if len(text) > LONGEST:
        raise ValueError(f"more than {LONGEST} characters")
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("they are not written as in a call of Python")  # noqa: TRY004
    named: dict[str, Argument] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("`**` is none")
        named[keyword.arg] = _read(keyword.value)
    return Arguments(tuple(map(_read, call.args)), named)


def _read(node: ast.expr) -> Argument:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _read(operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return tuple(map(_read, entries))
        case ast.Name(id="inf" | "nan" as name):
            return math.inf if name == "inf" else math.nan
        case ast.Name(id=name) if re.fullmatch(r"x\d{1,6}", name, re.ASCII):
            return Operand(int(name[1:]))
        case ast.Name() | ast.BinOp():
            size = _size(node)
            if isinstance(size, Dim):
                return size
        case ast.Attribute(value=ast.Name(id="torch"), attr=name):
            return Word(name)
    raise ValueError(f"`{ast.unparse(node)}` is no number, text, list, x0, x1, ... or torch.NAME")


def _size(node: ast.expr) -> Size:
    """A size: an integer times symbols, or a quotient of such."""
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool) and value >= 0:
            return value
        case ast.Name(id=name) if name[:1].isupper():
            return symbol(name)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return product([_size(left), _size(right)])
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            found = quotient(_size(left), _size(right))
            if found is not None:
                return found
    raise ValueError(f"`{ast.unparse(node)}` is no size")


def write_types(types: tuple[TensorType, ...]) -> str:
    """The types of results as text: ``f32[N, 3, 8], i64[N]``."""
    return ", ".join(map(str, types))


@lru_cache(maxsize=1024)
def read_types(text: str) -> tuple[TensorType, ...]:
    """The types of results from their text.

    Raises:
        ValueError: it is not the text of types; the message says what is wrong.
    """
    pattern = rf"({'|'.join(DTYPES)})\[([^\[\]]*)\]"
    whole = rf"{pattern}(\s*,\s*{pattern})*"
    if len(text) > LONGEST or not re.fullmatch(whole, text.strip(), re.ASCII):
        raise ValueError("it is not written as `f32[N, 3, 8]`, several with commas between them")
    found = []
    for dtype, sizes in re.findall(pattern, text):
        try:
            parts = [ast.parse(part.strip(), mode="eval").body for part in sizes.split(",") if part]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"`{sizes}` is no list of sizes") from None
        found.append(TensorType(dtype, tuple(map(_size, parts))))
    return tuple(found)


def _stated(attrs: Attrs, name: str, types: int = 0) -> tuple[TensorType, ...]:
    """The types that a use states, once it is sure that all of it can be read."""
    attr = "arguments"
    try:
        _named_once(read_arguments(str(attrs["arguments"])), types)
        attr = "result"
        return read_types(str(attrs["result"]))
    except ValueError as reason:
        hint = 'for example `aten.roll(x, arguments = "x0, [1], [2]", result = "f32[N, 3, 8]")`'
        raise OpError("A141", f"`{attr}` of `{name}`: {reason}", hint, attr) from None


def _named_once(arguments: Arguments, types: int) -> None:
    """Every operand stands among the arguments, and no other."""
    wrong = set(range(types)) ^ set(arguments.operands())
    if wrong:
        where = "nowhere" if min(wrong) < types else "too"
        given = f"{types} tensor{'s' * (types != 1)}"
        raise ValueError(f"of {given} they name `x{min(wrong)}` {where}")


def _signature(attrs: Attrs, types: tuple[TensorType, ...], name: str) -> str:
    results = _stated(attrs, name, len(types))
    known = set(symbols_of(size for type_ in types for size in type_.shape))
    sizes = [size for type_ in results for size in type_.shape]
    arguments = read_arguments(str(attrs["arguments"]))
    sizes += _symbolic((*arguments.positional, *arguments.named.values()))
    for unknown in (s for s in symbols_of(sizes) if s not in known):
        message = f"`{name}` speaks of a size `{unknown}` that none of its tensors has"
        raise OpError("A141", message, attr="result")
    before = [
        f"x{j}[{', '.join(f'a{j}_{i}!' for i in range(type_.rank))}]"
        for j, type_ in enumerate(types)
    ]
    after = [
        f"[{', '.join(f'r{j}_{i}' for i in range(type_.rank))}]" for j, type_ in enumerate(results)
    ]
    return f"{' '.join(before)} -> {', '.join(after)}"


def _symbolic(values: tuple[Argument, ...]) -> list[Size]:
    found: list[Size] = []
    for value in values:
        if isinstance(value, tuple):
            found += _symbolic(value)
        elif isinstance(value, Dim):
            found.append(value)
    return found


@lru_cache(maxsize=512)
def carried(name: str) -> Op | None:
    """The record of an operator that is carried; None where the name is not that of one."""
    if not is_carried(name):
        return None

    def refuse(
        k: Arithmetic, x: tuple[Array, ...], p: Mapping[str, Array], a: Attrs, mode: Mode
    ) -> tuple[Array, ...]:
        raise error(
            "A510",
            f"`{name}` is carried for torch alone: it cannot be computed in {_NUMBERS[k.name]}",
            hint="a rewrite works where its check need not compute that operator",
        )

    return Op(
        name=name,
        doc=f"torch's `{name}`, which archir does not know: torch alone runs it.",
        signature=lambda attrs, types: _signature(attrs, types, name),
        operands=(0, None),
        attrs=(
            Attr("arguments", Kind.STRING, doc="what torch is called with; x0, x1: the tensors"),
            Attr("result", Kind.STRING, doc="the types of the results"),
            Attr("overload", Kind.STRING, "default", doc="which of the operators of that name"),
        ),
        results=lambda attrs: _stated_types(attrs, name),
        reference=refuse,
        opaque=UNREAD,
        field="it is refused",
        samples=(),
    )


def _stated_types(attrs: Attrs, name: str) -> tuple[TensorType, ...]:
    return read_types(str(attrs["result"]))


_NUMBERS = {
    "float32": "NumPy",
    "float64": "NumPy",
    "rational": "exact fractions",
    "gf": "GF(p)",
}
