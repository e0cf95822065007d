"""Operators of torch that move entries: views, slices, joints, paddings, indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from archir.ir.dims import Size
from archir.ir.graph import Value

from .site import Site
from .values import CannotRaiseError, Entry, Known

Raise = Callable[[Site], Entry]


def _reshaped(at: Site) -> Entry:
    """To the shape that torch computed, whichever way it was stated."""
    return at.reshape(at.value("self"), at.result.shape)


def _flatten(at: Site) -> Entry:
    x = at.value("self")
    rank = at.type(x).rank
    start, end = at.axis("start_dim", rank), at.axis("end_dim", rank)
    if rank > start and end == rank - 1:
        return x if start == end else at.put("flatten", x, start=start)
    return _reshaped(at)


def _permute(at: Site) -> Entry:
    x = at.value("self")
    order = tuple(axis % at.type(x).rank for axis in at.ints("dims"))
    return x if order == tuple(range(len(order))) else at.put("permute", x, order=order)


def _transpose(at: Site) -> Entry:
    x = at.value("self")
    rank = at.type(x).rank
    names = ("dim0", "dim1") if "dim0" in at.args else ("axis0", "axis1")
    a, b = (at.axis(name, rank) for name in names)
    return x if a == b else at.put("transpose", x, a=a, b=b)


def _t(at: Site) -> Entry:
    x = at.value("self")
    return at.put("transpose", x, a=0, b=1) if at.type(x).rank == 2 else x


def _movedim(at: Site) -> Entry:
    x = at.value("self")
    rank = at.type(x).rank
    source = [axis % rank for axis in at.ints("source")]
    target = [axis % rank for axis in at.ints("destination")]
    rest = iter(axis for axis in range(rank) if axis not in source)
    to = dict(zip(target, source, strict=True))
    return at.put("permute", x, order=tuple(to[j] if j in to else next(rest) for j in range(rank)))


def _unsqueeze(at: Site) -> Entry:
    x = at.value("self")
    return at.put("unsqueeze", x, axis=at.axis("dim", at.type(x).rank + 1))


def _squeeze(at: Site) -> Entry:
    x = at.value("self")
    type_ = at.type(x)
    given = at.args.get("dim")
    entries = range(type_.rank) if given is None else [given] if isinstance(given, int) else given
    axes = sorted({axis % type_.rank for axis in entries}, reverse=True)
    for axis in axes:
        if type_.shape[axis] == 1:
            x = at.put("squeeze", x, axis=axis)
    return x


def _select(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dim", at.type(x).rank)
    (index,) = at.ints("index")
    extent = _extent(at, x, axis)
    return at.put("select", x, index=index % extent, axis=axis)


def _extent(at: Site, x: Value, axis: int) -> int:
    extent = at.type(x).shape[axis]
    if not isinstance(extent, int):
        raise CannotRaiseError(f"it cuts axis {axis}, whose size is {extent}")
    return extent


def _slice(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dim", at.type(x).rank)
    start, end, step = at.args["start"], at.args["end"], at.args["step"]
    if start in (None, 0) and step == 1 and at.result.shape == at.type(x).shape:
        return x
    extent = _extent(at, x, axis)
    if not all(isinstance(e, int | None) for e in (start, end)):
        raise CannotRaiseError("it cuts at a symbolic size")
    places = range(*slice(start, end, step).indices(extent))
    if places == range(extent):
        return x
    if not places:
        raise CannotRaiseError("it takes no entries")
    return at.put("slice", x, start=places[0], length=len(places), axis=axis, step=step)


def filled(at: Site, x: Value, axis: int, places: range, number: float) -> Value:
    """A tensor of which a run of entries along an axis has been overwritten with a number."""
    rank, extent = at.type(x).rank, _extent(at, x, axis)
    wide = tuple(len(places) if j == axis else 0 for j in range(rank))
    none = (0,) * rank
    start, end = places[0], places[-1] + 1
    if start:
        front = at.put("slice", x, start=0, length=start, axis=axis)
        padded = at.put("pad", front, before=none, after=wide, value=number)
        if end == extent:
            return padded
        back = at.put("slice", x, start=end, length=extent - end, axis=axis)
        return at.put("concat", padded, back, axis=axis)
    back = at.put("slice", x, start=end, length=extent - end, axis=axis)
    return at.put("pad", back, before=wide, after=none, value=number)


def _narrow(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dim", at.type(x).rank)
    (start,), (length,) = at.ints("start"), at.ints("length")
    return at.put("slice", x, start=start % _extent(at, x, axis), length=length, axis=axis)


def _unbind(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dim", at.type(x).rank)
    read = {int(user.args[1]) for user in at.node.users}  # type: ignore[arg-type]
    return [
        at.put("select", x, index=index, axis=axis) if index in read else None
        for index in range(_extent(at, x, axis))
    ]


def _split(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dim", at.type(x).rank)
    extent = _extent(at, x, axis)
    if "split_sizes" in at.args:
        sizes = at.ints("split_sizes")
    elif at.kind == "chunk":
        (chunks,) = at.ints("chunks")
        sizes = _runs(extent, -(-extent // chunks))
    else:
        given = at.args["split_size"]
        sizes = at.ints("split_size") if isinstance(given, list) else _runs(extent, int(given))
    if len(sizes) == 1:
        return [x]
    if len(set(sizes)) == 1:
        return list(at.several("chunk", x, chunks=len(sizes), axis=axis))
    return list(at.several("split", x, sizes=tuple(sizes), axis=axis))


def _runs(extent: int, size: int) -> tuple[int, ...]:
    full, rest = divmod(extent, size)
    return (size,) * full + ((rest,) if rest else ())


def _concat(at: Site) -> Entry:
    values = at.values("tensors")
    return at.put("concat", *values, axis=at.axis("dim", at.type(values[0]).rank))


def _stack(at: Site) -> Entry:
    values = at.values("tensors")
    axis = at.axis("dim", at.type(values[0]).rank + 1)
    return at.put("concat", *(at.put("unsqueeze", v, axis=axis) for v in values), axis=axis)


def _pad(at: Site) -> Entry:
    x = at.value("self")
    rank = at.type(x).rank
    pads = at.ints("pad")
    if any(pad < 0 for pad in pads):
        raise CannotRaiseError("it cuts off at the edges")
    if not any(pads):
        return x
    before, after = [0] * rank, [0] * rank
    for place in range(len(pads) // 2):
        before[rank - 1 - place], after[rank - 1 - place] = pads[2 * place : 2 * place + 2]
    mode = str(at.args.get("mode", "constant"))
    value = at.args.get("value")
    return at.put(
        "pad",
        x,
        before=tuple(before),
        after=tuple(after),
        mode=mode,
        value=float(value or 0) if mode == "constant" else 0.0,
    )


def _roll(at: Site) -> Entry:
    x = at.value("self")
    shifts, axes = at.ints("shifts"), at.ints("dims")
    if not axes:
        raise CannotRaiseError("it rolls all entries as one row")
    for shift, axis in zip(shifts, axes, strict=True):
        x = at.put("roll", x, shift=shift, axis=axis % at.type(x).rank)
    return x


def _expand(at: Site) -> Entry:
    """Axes of extent 1 stretch: to another tensor's symbolic size, or by repetition."""
    x = at.value("self")
    wanted = at.result.shape
    new = len(wanted) - at.type(x).rank
    if new:
        x = at.reshape(x, ((1,) * new + at.type(x).shape))
    repeats = [1] * len(wanted)
    for axis, (old, size) in enumerate(zip(at.type(x).shape, wanted, strict=True)):
        if old == size:
            continue
        if isinstance(size, int):
            repeats[axis] = size
        else:
            x = at.put("expand", x, _as_long(at, axis, size), axis=axis)
    if any(count != 1 for count in repeats):
        x = at.put("tile", x, repeats=tuple(repeats))
    return x


def _filled(at: Site) -> Entry:
    """A tensor of one number that is as long as others, the batch for one."""
    found = at.node.meta["val"]
    numbers = {"zeros": 0, "ones": 1}
    value = next((n for word, n in numbers.items() if word in at.kind), at.args.get("fill_value"))
    if not isinstance(value, int | float):
        raise CannotRaiseError("what it is filled with is computed")
    shape = list(at.result.shape)
    x = at.operand(Known(torch.full((1,) * len(shape), value, dtype=found.dtype)))
    turns = []
    for axis in [j for j, size in enumerate(shape) if not isinstance(size, int)]:
        # Its size may be that of another axis elsewhere, with which it changes places.
        places = [axis, *(j for j, size in enumerate(shape) if isinstance(size, int))]
        like, other = _anywhere(at, places, shape[axis])
        x = at.put("expand", x, like, axis=other)
        shape[axis], shape[other] = shape[other], shape[axis]
        turns += [(axis, other)] if axis != other else []
    repeats = tuple(size if isinstance(size, int) else 1 for size in shape)
    if any(count != 1 for count in repeats):
        x = at.put("tile", x, repeats=repeats)
    for axis, other in reversed(turns):
        x = at.put("transpose", x, a=axis, b=other)
    return at.put("contiguous", x) if at.walk.laid_out else x


def _anywhere(at: Site, axes: Sequence[int], size: Size) -> tuple[Value, int]:
    """A tensor with a size at one of some axes, and at which."""
    for axis in axes:
        for value, type_ in at.walk.types.items():
            if type_.rank > axis and type_.shape[axis] == size:
                return value, axis
    raise CannotRaiseError(f"no tensor has the size {size}")


def _as_long(at: Site, axis: int, size: Size) -> Value:
    """The first tensor of the network with a size at an axis."""
    for value, type_ in at.walk.types.items():
        if type_.rank > axis and type_.shape[axis] == size:
            return value
    raise CannotRaiseError(f"no tensor has the size {size} at axis {axis}")


def _repeat(at: Site) -> Entry:
    x = at.value("self")
    sizes = list(at.args["repeats" if at.kind == "repeat" else "dims"])
    sizes = [1] * (at.type(x).rank - len(sizes)) + sizes
    new = len(sizes) - at.type(x).rank
    if new:
        x = at.reshape(x, ((1,) * new + at.type(x).shape))
    counts = list(sizes)
    for axis, count in enumerate(sizes):
        if not isinstance(count, int):
            if at.type(x).shape[axis] != 1:
                raise CannotRaiseError("it repeats as often as a symbol says")
            x = at.put("expand", x, _as_long(at, axis, at.result.shape[axis]), axis=axis)
            counts[axis] = 1
    if any(count != 1 for count in counts):
        x = at.put("tile", x, repeats=tuple(counts))
    return x


def _repeat_interleave(at: Site) -> Entry:
    if at.overload != "self_int" or at.args["dim"] is None:
        raise CannotRaiseError("its repetitions are a tensor")
    x = at.value("self")
    (repeats,) = at.ints("repeats")
    return at.put("repeat_interleave", x, repeats=repeats, axis=at.axis("dim", at.type(x).rank))


def _index(at: Site) -> Entry:
    """One index tensor along one axis."""
    x = at.value("self")
    given = at.args["indices"]
    places = [axis for axis, index in enumerate(given) if index is not None]
    if len(places) != 1:
        raise CannotRaiseError("it reads along several axes at once")
    (axis,) = places
    return _gathered(at, x, at.walk.env[given[axis]], axis)


def _gathered(at: Site, x: Value, entry: Entry, axis: int) -> Value:
    if isinstance(entry, Known) and entry.tensor.dtype is torch.int64:
        entry = Known(entry.tensor % _extent(at, x, axis))
    index = at.operand(entry)
    if at.type(index).dtype == "bool":
        raise CannotRaiseError("how many entries it takes depends on the values of a mask")
    return at.put("gather", x, index, axis=axis)


def _index_select(at: Site) -> Entry:
    x = at.value("self")
    return _gathered(at, x, at.entry("index"), at.axis("dim", at.type(x).rank))


def _windows(at: Site) -> Entry:
    x = at.value("self")
    axis = at.axis("dimension", at.type(x).rank)
    (size,), (step,) = at.ints("size"), at.ints("step")
    return at.put("windows", x, axis=axis, size=size, step=step)


def _flip(at: Site) -> Entry:
    x = at.value("self")
    return at.put("flip", x, axes=tuple(a % at.type(x).rank for a in at.ints("dims")))


def _pixel_shuffle(at: Site) -> Entry:
    return at.put("pixel_shuffle", at.value("self"), factor=int(at.args["upscale_factor"]))


def _channel_shuffle(at: Site) -> Entry:
    x = at.value("self")
    (groups,) = at.ints("groups")
    n, c, *rest = at.type(x).shape
    assert isinstance(c, int)
    apart = at.reshape(x, (n, groups, c // groups, *rest))
    turned = at.put("transpose", apart, a=1, b=2)
    return at.reshape(turned, (n, c, *rest))


FROM_TORCH: Mapping[str, Raise] = MappingProxyType(
    {
        **dict.fromkeys(("view", "reshape", "_unsafe_view", "reshape_as", "unflatten"), _reshaped),
        "view_as": _reshaped,
        "flatten": _flatten,
        "permute": _permute,
        **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
        "t": _t,
        **dict.fromkeys(("movedim", "moveaxis"), _movedim),
        "unsqueeze": _unsqueeze,
        "squeeze": _squeeze,
        "select": _select,
        "slice": _slice,
        "narrow": _narrow,
        "unbind": _unbind,
        **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
        **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
        "stack": _stack,
        **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
        "roll": _roll,
        **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "ones", "ones_like"), _filled),
        **dict.fromkeys(("new_ones", "full", "full_like", "new_full"), _filled),
        **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
        **dict.fromkeys(("repeat", "tile"), _repeat),
        "repeat_interleave": _repeat_interleave,
        "index": _index,
        "index_select": _index_select,
        "unfold": _windows,
        "flip": _flip,
        "pixel_shuffle": _pixel_shuffle,
        "channel_shuffle": _channel_shuffle,
    }
)
"""How these operators of torch are raised."""
