"""Operators of ATen that are carried: which may be, how they are called, how calls are stated.

Only what computes tensors from tensors and numbers is run: what writes to its operands, draws
random numbers, reads files or memory that is not its operands', or gives something other than
tensors is refused. So is what torch keeps to itself, but for a few names that captured programs
use.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from archir.diag import ArchirError, error
from archir.ir.dims import Dim, Size, substitute, symbols_of
from archir.ir.types import TensorType
from archir.ops.carried import (
    PREFIX,
    Argument,
    Arguments,
    Operand,
    Word,
    read_arguments,
    write_arguments,
    write_types,
)

from .frame import DTYPES, Site

PRIVATE = frozenset(
    {
        *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_cdist_forward", "_convolution"),
        *("_log_softmax", "_native_batch_norm_legit_no_training", "_prelu_kernel"),
        *("_safe_softmax", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_stack"),
        *("_to_copy", "_trilinear", "_unsafe_view", "_upsample_bicubic2d_aa"),
        *("_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
        *("_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface"),
    }
)
"""Operators whose names begin with `_` that may be carried all the same."""
READS_MORE = ("from_file", "as_strided", "empty", "new_empty", "set", "resize", "record_stream")
"""How names begin of what reads a file, or memory beside the entries of its operands."""
SPECIAL = (
    *("quantized_", "fbgemm_", "mkldnn_", "miopen_", "cudnn_", "sparse_", "to_sparse", "to_mkldnn"),
    *("nested_", "pin_memory", "copy_sparse", "to_padded_tensor"),
)
"""How names begin of what is made for one machine, or for tensors that are not dense."""
BY_TYPE = frozenset({"index"})
"""What gives sizes that depend on entries for bools alone, which its check finds."""
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""What draws random numbers where it is told to drop entries, and else none."""
PLAIN = ("int", "float", "bool", "number", "str", "Device", "Layout", "MemoryFormat", "ScalarType")
RANDOM = "it draws random numbers"
SYMBOL = 12
"""What a symbolic size is taken for where the stated types are compared with torch's."""


@lru_cache(maxsize=512)
def overload_of(name: str, overload: str) -> torch._ops.OpOverload:
    """The operator of ATen that a use names.

    Raises:
        ArchirError: A511, this torch has none; A512, it is one that is not run.
    """
    packet = getattr(torch.ops.aten, name.removeprefix(PREFIX), None)
    found = getattr(packet, overload, None) if packet is not None else None
    if not isinstance(found, torch._ops.OpOverload):
        which = f" with the overload `{overload}`" if packet is not None else ""
        raise error("A511", f"torch {torch.__version__} has no operator `{name}`{which}")
    why = unfit(found)
    if why:
        raise error("A512", f"`{name}` is not run: {why}")
    return found


def unfit(target: torch._ops.OpOverload) -> str:
    """Why an operator of ATen may not be carried; "" where it may."""
    schema, name = target._schema, target._opname
    if schema.is_mutable:
        return "it writes to its operands"
    if torch.Tag.nondeterministic_seeded in target.tags and name not in RECURRENT:
        return RANDOM
    if name.startswith("_") and name not in PRIVATE:
        return "it is one of those that torch keeps to itself"
    if name.startswith(READS_MORE):
        return "it reads other things than the entries of its operands"
    if name.startswith(SPECIAL):
        return "it is made for one kind of machine, or for tensors that are not dense"
    dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    if dynamic & set(target.tags) and name not in BY_TYPE:
        return "what it gives depends on the entries of its operands"
    kinds = [str(value.type) for value in schema.returns]
    if not kinds or any(kind not in ("Tensor", "List[Tensor]") for kind in kinds):
        return "it gives something other than tensors"
    if len(kinds) > 1 and "List[Tensor]" in kinds:
        return "it gives lists of tensors beside others"
    strange = [a.name for a in schema.arguments if not _known(str(a.type)) and not _optional(a)]
    return f"its argument `{strange[0]}` is no tensor, number or text" if strange else ""


def _is_random(target: torch._ops.OpOverload, arguments: Arguments) -> bool:
    """Whether these arguments let a recurrent layer drop entries."""
    names = (argument.name for argument in target._schema.arguments)
    given = {**dict(zip(names, arguments.positional, strict=False)), **arguments.named}
    return target._opname in RECURRENT and given.get("dropout") != 0 and given.get("train") is True


def _known(kind: str) -> bool:
    return re.sub(r"Optional|List|[\[\]]", "", kind) in ("Tensor", *PLAIN)


def _optional(argument: torch._C.Argument) -> bool:
    return argument.has_default_value() and argument.default_value is None


def lower(at: Site) -> fx.Node | tuple[fx.Node, ...]:
    """Call the operator as the use states it."""
    target = overload_of(at.node.op, at.attr("overload"))
    stated = read_arguments(at.attr("arguments"))
    if _is_random(target, stated):
        raise error("A512", f"`{at.node.op}` is not run: {RANDOM}", node=at.node.name)
    _compare(at, target, stated)
    take = _Taking(at)
    made = at.call(
        target,
        *map(take, stated.positional),
        **{name: take(value) for name, value in stated.named.items()},
    )
    returns = target._schema.returns
    if len(returns) == 1 and str(returns[0].type) == "Tensor":
        return made
    return tuple(at.call(operator.getitem, made, port) for port in range(len(at.node.types)))


class _Taking:
    """Arguments as torch.fx takes them."""

    def __init__(self, at: Site) -> None:
        self.at = at

    def __call__(self, value: Argument) -> Any:
        if isinstance(value, tuple):
            return [self(entry) for entry in value]
        if isinstance(value, Operand):
            return self.at.args[value.number]
        if isinstance(value, Word):
            return _word(value)
        return self._size(value) if isinstance(value, Dim) else value

    def _size(self, size: Dim) -> fx.Node:
        """A size with symbols: read off operands when the network runs."""
        if size.coefficient.denominator != 1 or any(power < 0 for _, power in size.symbols):
            raise self.at.refuse(f"it is called with the size {size}")
        found: Any = None
        for name, power in size.symbols:
            for _ in range(power):
                one = self._symbol(name)
                found = one if found is None else self.at.call(operator.mul, found, one)
        if size.coefficient != 1:
            found = self.at.call(operator.mul, found, int(size.coefficient))
        return found  # type: ignore[no-any-return]

    def _symbol(self, name: str) -> fx.Node:
        for x, type_ in zip(self.at.args, self.at.types, strict=True):
            for axis, size in enumerate(type_.shape):
                if isinstance(size, Dim) and size.symbols == ((name, 1),):
                    extent = self.at.frame.graph.call_method("size", (x, axis))
                    up, down = size.coefficient.as_integer_ratio()
                    whole = extent if down == 1 else self.at.call(operator.mul, extent, down)
                    return whole if up == 1 else self.at.call(operator.floordiv, whole, up)
        raise self.at.refuse(f"no tensor that it reads has an axis of the size {name}")


def _word(value: Word) -> Any:
    found = getattr(torch, value.name, None)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise error("A513", f"`torch.{value.name}` is no element type, layout or memory format")
    return found


def _compare(at: Site, target: torch._ops.OpOverload, stated: Arguments) -> None:
    """Let torch say, without data, what the call gives, and compare that with the stated types."""
    sizes = [size for type_ in (*at.types, *at.node.types) for size in type_.shape]
    symbols = dict.fromkeys(symbols_of(sizes), SYMBOL)

    def plain(value: Argument) -> Any:
        if isinstance(value, tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, Operand):
            return _meta(at.types[value.number], symbols)
        if isinstance(value, Word):
            return _word(value)
        return substitute(value, symbols) if isinstance(value, Dim) else value

    try:
        with torch.no_grad():
            made = target(
                *map(plain, stated.positional),
                **{name: plain(value) for name, value in stated.named.items()},
            )
    except NotImplementedError:
        return  # torch does not know what it gives before it has run it
    except (
        *(RuntimeError, TypeError, ValueError, IndexError),
        *(AssertionError, OverflowError),
    ) as reason:
        line = str(reason).strip().partition("\n")[0]
        raise _wrong(at, f"torch refuses the call: {line}") from None
    found = [made] if isinstance(made, torch.Tensor) else list(made)
    if len(found) < len(at.node.types):
        raise _wrong(at, f"it gives {len(found)} tensors, {len(at.node.types)} are stated")
    for port, (tensor, type_) in enumerate(zip(found, at.node.types, strict=False)):
        wanted = _meta(type_, symbols)
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            got = f"{tensor.dtype}{list(tensor.shape)}".removeprefix("torch.")
            with_ = f" (symbols taken for {SYMBOL})" if symbols else ""
            raise _wrong(at, f"result {port} is {got}{with_}, stated as {type_}")


def _wrong(at: Site, what: str) -> ArchirError:
    return error("A513", f"`{at.node.op}`: {what}", node=at.node.name)


def _meta(type_: TensorType, symbols: Mapping[str, int]) -> torch.Tensor:
    shape = [substitute(size, symbols) for size in type_.shape]
    if any(not isinstance(size, int) for size in shape):
        raise error("A513", f"{type_} has no whole sizes where its symbols are {SYMBOL}")
    return torch.empty(shape, dtype=DTYPES[type_.dtype], device="meta")  # type: ignore[arg-type]


def stated(
    target: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    results: Sequence[TensorType],
    size: Callable[[Any], Size | None],
) -> tuple[str, dict[str, Any], list[fx.Node]]:
    """How a call of a captured program is carried.

    Args:
        target: What is called.
        args: Its arguments; tensors, and sizes that are computed, as the nodes that give them.
        kwargs: Its arguments by name.
        results: The types of its results.
        size: The size that a node (or a torch.SymInt) stands for; None where it is a tensor.

    Returns:
        The operator's name, its attributes, and the nodes whose values are its operands.

    Raises:
        ArchirError: A512, it may not be carried, or an argument cannot be written.
    """
    name = PREFIX + target._opname
    why = unfit(target) if target.namespace == "aten" else "it is no operator of ATen"
    if why:
        raise error("A512", f"`{name}` is not run: {why}")
    operands: list[fx.Node] = []

    def write(value: Any) -> Argument:
        if isinstance(value, list | tuple | torch.Size):
            return tuple(map(write, value))
        if isinstance(value, fx.Node | torch.SymInt):
            found = size(value)
            if found is not None:
                return found
            assert isinstance(value, fx.Node)
            operands.append(value)
            return Operand(len(operands) - 1)
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return Word(str(value).removeprefix("torch."))
        if value is None or isinstance(value, int | float | str):
            return value
        raise error("A512", f"`{name}` is not run: it is called with {value!r}")

    named = {key: write(v) for key, v in kwargs.items() if key not in ("device", "pin_memory")}
    arguments = Arguments(tuple(map(write, args)), named)
    if _is_random(target, arguments):
        raise error("A512", f"`{name}` is not run: {RANDOM}")
    attrs = {
        "arguments": write_arguments(arguments),
        "result": write_types(tuple(results)),
        "overload": target._overloadname,
    }
    return name, attrs, operands
