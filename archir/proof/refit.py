"""Refitting: after a replacement, its last linear layer is chosen in closed form on data.

A replacement hands over other values than what it replaced. Where what it hands over is made by a
convolution or a linear layer (with a batch norm behind it, or not), that layer's weights may be
chosen so that the squared error between the old and the new values is least: ridge regression of
the old values on the layer's inputs, in float64 and on one thread, so that it comes out the same
again. Three quarters of the images serve to fit, one quarter to measure what was recovered; a fit
that does not help there is not kept. Batch norms inside the replacement get the statistics of what
they now read before that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from archir.ir.graph import Node, Value
from archir.ops.arithmetic import Array, Floating
from archir.ops.evaluate import run
from archir.ops.record import OpSet
from archir.ops.window import windows
from archir.rewrite.plan import Plan, region_of
from archir.weights.terms import statistics

CHUNK = 32
"""How many images go through the network at a time."""
HELD_OUT = 4
"""One image in so many is not fit to."""
NUMBERS = 2**27
"""How many numbers of what enters and leaves the region are kept; more images are not used."""
ROWS = 2**16
"""How many positions serve to fit, where there are more; at least ``PER_COLUMN`` times as many as
the layer has inputs."""
PER_COLUMN = 16
COLUMNS = 4608
"""How many inputs a layer may have: those of a 3x3 convolution of 512 channels."""
RIDGE = 1e-6
"""The ridge, as a share of the mean square of the layer's inputs; it draws to the old weights."""


@dataclass(frozen=True)
class Recovery:
    """What a refit did for one value that a replacement hands over.

    ``before`` and ``after`` are relative squared errors on held-out images: the energy of what is
    wrong, over that of the old value.
    """

    value: str
    layer: str
    """The layer that was fit; "" if there is none."""
    before: float
    after: float
    fitted: int
    held_out: int
    """How many images served to fit, and to measure."""
    reason: str = ""
    """Why nothing was fit."""

    @property
    def recovered(self) -> float:
        """The share of the lost energy that came back."""
        return 1 - self.after / self.before if self.before else 0.0

    def text(self) -> str:
        """As it is shown to a person."""
        if self.reason:
            return f"{self.value}: not refit, {self.reason}; relative error {self.before:.3g}"
        return (
            f"{self.value}: refit of {self.layer} recovered {self.recovered:.0%} of the lost "
            f"output energy: {self.before:.3g} -> {self.after:.3g} "
            f"(fit to {self.fitted} images, measured on {self.held_out} others)"
        )


@dataclass(frozen=True)
class _Layer:
    """What can be fit: a convolution or linear layer, a batch norm, or the one behind the other."""

    linear: Node | None
    norm: Node | None

    @property
    def name(self) -> str:
        return " and ".join(n.name for n in (self.linear, self.norm) if n is not None)

    @property
    def reads(self) -> Value:
        first = self.linear or self.norm
        assert first is not None
        return first.inputs[0]


def refit(
    plan: Plan,
    ops: OpSet,
    old: Mapping[str, Array],
    new: Mapping[str, Array],
    feeds: Mapping[str, Array],
) -> tuple[dict[str, Array], list[Recovery]]:
    """Choose weights of a replacement in closed form.

    Args:
        plan: The replacement.
        ops: The operators.
        old: The weights before it.
        new: Those after it.
        feeds: Calibration data: a batch for each input of the network.

    Returns:
        The weights, and what was recovered for each value that is handed over.
    """
    with threadpool_limits(1, user_api="blas"), np.errstate(all="ignore"):
        return _Refit(plan, ops, old, new, feeds).result()


class _Refit:
    def __init__(
        self,
        plan: Plan,
        ops: OpSet,
        old: Mapping[str, Array],
        new: Mapping[str, Array],
        feeds: Mapping[str, Array],
    ) -> None:
        self.plan, self.ops, self.k = plan, ops, Floating(np.float64)
        self.region = region_of(plan)
        self.pairs = list({b: (a, b) for a, b in self.region.checks}.values())
        self.inside = {node.name for node in self.region.after}
        self.before, self.weights = dict(new), dict(new)
        self.entering, self.targets = self._run_old(old, feeds)
        count = len(next(iter(self.targets.values()), ()))
        self.fitted = count - count // HELD_OUT
        self.count = count

    # --- values ---------------------------------------------------------------------------------

    def _run_old(
        self, old: Mapping[str, Array], feeds: Mapping[str, Array]
    ) -> tuple[dict[Value, Array], dict[Value, Array]]:
        """What enters the region, and what left it before, for all images."""
        graph = self.plan.before
        wanted = list(dict.fromkeys([*self.region.feeds, *(a for a, _ in self.pairs)]))
        params = _wide(old)
        parts: dict[Value, list[Array]] = {value: [] for value in wanted}
        count, most = min(len(x) for x in feeds.values()), 0
        for start in range(0, count, CHUNK):
            if start and start >= most:
                break
            here = {Value(n): _number(x[start : start + CHUNK]) for n, x in feeds.items()}
            found = run(graph, self.ops, self.k, here, params, wanted=wanted)
            for value in wanted:
                parts[value].append(_narrow(found.values[value]))
            most = NUMBERS * CHUNK // max(sum(p[0].size for p in parts.values()), 1)
        whole = {value: np.concatenate(arrays) for value, arrays in parts.items()}
        return {v: whole[v] for v in self.region.feeds}, {a: whole[a] for a, _ in self.pairs}

    def _chunks(self, wanted: Sequence[Value], start: int, end: int) -> Iterator[list[Array]]:
        """Values of the new side with the weights as they are, some images at a time."""
        params = _wide(self.weights)
        for first in range(start, end, CHUNK):
            here = slice(first, min(first + CHUNK, end))
            fed = {value: _number(array[here]) for value, array in self.entering.items()}
            found = run(self.plan.after, self.ops, self.k, fed, params, wanted=wanted)
            yield [found.values[value] for value in wanted]

    def _errors(self) -> list[float]:
        """The relative squared error of each value that is handed over, on held-out images."""
        wrong = np.zeros(len(self.pairs))
        whole = np.zeros(len(self.pairs))
        at = self.fitted
        for found in self._chunks([b for _, b in self.pairs], self.fitted, self.count):
            for place, ((a, _), y) in enumerate(zip(self.pairs, found, strict=True)):
                target = _number(self.targets[a][at : at + len(y)])
                wrong[place] += np.square(target - y).sum()
                whole[place] += np.square(target).sum()
            at += len(found[0]) if found else 0
        return [float(w / e) if e else 0.0 for w, e in zip(wrong, whole, strict=True)]

    # --- the whole ------------------------------------------------------------------------------

    def result(self) -> tuple[dict[str, Array], list[Recovery]]:
        if self.count < HELD_OUT:
            return self.weights, []
        before = self._errors()
        layers = [self._layer(b) for _, b in self.pairs]
        if self.plan.rule.contract.shape:
            self._statistics([layer for layer in layers if isinstance(layer, _Layer)])
        for (a, _), layer, lost in zip(self.pairs, layers, before, strict=True):
            if isinstance(layer, _Layer) and lost:
                self._fit(layer, a)
        after = self._errors()
        if not sum(after) < sum(before):
            self.weights = self.before
            why = "no fit does better on the held-out images"
            return self.weights, [
                self._recovery(a, layer if isinstance(layer, str) else why, "", lost, lost)
                for (a, _), layer, lost in zip(self.pairs, layers, before, strict=True)
            ]
        return self.weights, [
            self._recovery(a, layer if isinstance(layer, str) else "", _name(layer), one, two)
            for (a, _), layer, one, two in zip(self.pairs, layers, before, after, strict=True)
        ]

    def _recovery(
        self, value: Value, reason: str, layer: str, before: float, after: float
    ) -> Recovery:
        held_out = self.count - self.fitted
        return Recovery(str(value), layer, before, after, self.fitted, held_out, reason)

    # --- which layer ----------------------------------------------------------------------------

    def _layer(self, b: Value) -> _Layer | str:
        """The layer that makes a value, or why there is none to fit."""
        after = self.plan.after
        node = after.node(b.node)
        if node.name not in self.inside:
            return "it is handed on as it was"
        norm = node if node.op == "batch_norm" else None
        if norm is not None:
            inner = after.node(norm.inputs[0].node)
            alone = inner.name in self.inside and len(list(after.readers(inner.name))) == 1
            if not (norm.attrs["affine"] and norm.attrs["track"]):
                return f"`{norm.name}` has no scale and statistics of its own"
            node = inner if alone and inner.op in ("conv", "linear") else node
        linear = node if node.op in ("conv", "linear") else None
        if linear is None and norm is None:
            return f"what makes it is `{node.op}`, which has no weights"
        for held in (linear, norm):
            for path in held.params.values() if held is not None else ():
                if len(after.users()[path]) > 1:
                    return f"`{path}` is shared"
        if linear is not None and _columns_of(linear, self.weights) > COLUMNS:
            return f"`{linear.name}` has more than {COLUMNS} inputs"
        return _Layer(linear, norm)

    # --- fitting --------------------------------------------------------------------------------

    def _put(self, node: Node, role: str, values: Array) -> None:
        path = node.params[role]
        held = self.weights[path]
        self.weights[path] = np.asarray(values.reshape(held.shape), held.dtype)

    def _statistics(self, layers: Sequence[_Layer]) -> None:
        """Batch norms that have not just been measured get the statistics of what they read."""
        chosen = {layer.norm.name for layer in layers if layer.norm is not None}
        users = self.plan.after.users()
        for node in self.region.after:
            if node.op != "batch_norm" or not node.attrs["track"] or node.name in chosen:
                continue
            paths = [node.params["running_mean"], node.params["running_var"]]
            terms = [self.plan.terms[p] for p in paths if p in self.plan.terms]
            measured = any(True for term in terms for _ in statistics(term))
            if measured or any(len(users[p]) > 1 for p in paths):
                continue
            total, squares, number = 0.0, 0.0, 0
            for (x,) in self._chunks([node.inputs[0]], 0, self.fitted):
                over = tuple(i for i in range(x.ndim) if i != 1)
                total, squares = total + x.sum(axis=over), squares + np.square(x).sum(axis=over)
                number += x.size // x.shape[1]
            mean = np.asarray(total / number)
            self._put(node, "running_mean", mean)
            self._put(node, "running_var", np.maximum(squares / number - np.square(mean), 0))

    def _fit(self, layer: _Layer, target: Value) -> None:
        if layer.linear is None:
            self._fit_norm(layer, target)
            return
        node = layer.linear
        sums = _Sums(node, self.weights)
        at = 0
        share = self._share(_columns_of(node, self.weights), target)
        for (x,) in self._chunks([layer.reads], 0, self.fitted):
            t = _number(self.targets[target][at : at + len(x)])
            sums.add(x, t, share)
            at += len(x)
        biased = "bias" in node.params
        solved = sums.solve(_matrix(node, self.weights), centred=biased or layer.norm is not None)
        if solved is None:
            return
        self._put(node, "weight", solved.weight.swapaxes(1, 2))
        if layer.norm is None:
            if biased:
                self._put(node, "bias", solved.intercept)
            return
        norm = layer.norm
        shift = _number(self.weights[node.params["bias"]]).reshape(-1) if biased else 0.0
        self._put(norm, "running_mean", solved.mean + shift)
        self._put(norm, "running_var", solved.variance)
        self._put(norm, "weight", np.sqrt(solved.variance + float(str(norm.attrs["eps"]))))
        self._put(norm, "bias", solved.intercept + solved.mean)

    def _share(self, columns: int, target: Value) -> float:
        """The share of all positions that serve to fit."""
        array = self.targets[target][: self.fitted]
        positions = array.size // array.shape[1] if array.ndim > 1 else array.size
        return min(1.0, max(ROWS, PER_COLUMN * columns) / max(positions, 1))

    def _fit_norm(self, layer: _Layer, target: Value) -> None:
        """A scale and a shift for each channel."""
        norm = layer.norm
        assert norm is not None
        sums = np.zeros((5, self.targets[target].shape[1]))
        at = 0
        for (x,) in self._chunks([layer.reads], 0, self.fitted):
            t = _number(self.targets[target][at : at + len(x)])
            at += len(x)
            over = tuple(i for i in range(x.ndim) if i != 1)
            rows = (np.ones_like(x), x, t, np.square(x), x * t)
            sums += np.stack([row.sum(axis=over) for row in rows])
        mean, other, square, product = sums[1:] / sums[0]
        variance = np.maximum(square - np.square(mean), 0)
        slope = (product - mean * other) / np.where(variance > 0, variance, 1)
        self._put(norm, "running_mean", mean)
        self._put(norm, "running_var", variance)
        self._put(norm, "weight", slope * np.sqrt(variance + float(str(norm.attrs["eps"]))))
        self._put(norm, "bias", other)


@dataclass(frozen=True)
class _Solved:
    """The least-squares weights [groups, inputs, outputs], and what the layer then makes."""

    weight: Array
    intercept: Array
    mean: Array
    """Of the layer's output without its bias."""
    variance: Array


class _Sums:
    """The sums of a regression of a target on a layer's inputs, one for each group."""

    def __init__(self, node: Node, weights: Mapping[str, Array]) -> None:
        self.node = node
        groups, columns, outputs = _matrix(node, weights).shape
        self.rows = 0
        self.x, self.t = np.zeros((groups, columns)), np.zeros((groups, outputs))
        self.xx = np.zeros((groups, columns, columns))
        self.xt = np.zeros((groups, columns, outputs))

    def add(self, x: Array, t: Array, share: float) -> None:
        """Add the positions of some images, or a share of them."""
        groups = len(self.x)
        columns, targets = _positions(self.node, x, t)
        places = _spread(math.prod(targets.shape[:-1]), share)
        where = np.unravel_index(places, targets.shape[:-1])
        rows = columns[where].reshape(len(places), groups, -1).swapaxes(0, 1)
        wanted = targets[where].reshape(len(places), groups, -1).swapaxes(0, 1)
        self.rows += len(places)
        self.x += rows.sum(axis=1)
        self.t += wanted.sum(axis=1)
        self.xx += rows.swapaxes(1, 2) @ rows
        self.xt += rows.swapaxes(1, 2) @ wanted

    def solve(self, old: Array, *, centred: bool) -> _Solved | None:
        """The weights nearest to the old ones that fit; None where the inputs are nothing."""
        x, t = self.x / self.rows, self.t / self.rows
        outer = x[:, :, None] * x[:, None, :]
        spread = self.xx / self.rows - outer
        xx = spread if centred else self.xx / self.rows
        xt = self.xt / self.rows - (x[:, :, None] * t[:, None, :] if centred else 0)
        columns = xx.shape[1]
        ridge = RIDGE * np.trace(xx, axis1=1, axis2=2)[:, None, None] / columns
        if not (ridge > 0).all():
            return None
        weight = old + np.linalg.solve(xx + ridge * np.eye(columns), xt - xx @ old)
        mean = np.einsum("gc,gco->go", x, weight).reshape(-1)
        variance = np.einsum("gco,gcd,gdo->go", weight, spread, weight, optimize=True).reshape(-1)
        return _Solved(weight, t.reshape(-1) - mean, mean, np.maximum(variance, 0))


def _matrix(node: Node, weights: Mapping[str, Array]) -> Array:
    """A layer's weights as [groups, inputs, outputs]."""
    weight = _number(weights[node.params["weight"]])
    groups = int(str(node.attrs.get("groups", 1)))
    return weight.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)


def _columns_of(node: Node, weights: Mapping[str, Array]) -> int:
    return math.prod(weights[node.params["weight"]].shape[1:])


def _positions(node: Node, x: Array, t: Array) -> tuple[Array, Array]:
    """What a layer reads and what it is to make, position by position, behind the same axes."""
    if node.op == "linear":
        return x, t
    seen = windows(x, node.attrs, 0.0)
    rank = x.ndim - 2
    space = tuple(range(2, 2 + rank))
    taps = tuple(range(2 + rank, 2 + 2 * rank))
    return seen.transpose(0, *space, 1, *taps), t.transpose(0, *space, 1)


def _spread(total: int, share: float) -> Array:
    """Some of ``total`` places, spread over them like the multiples of the golden section."""
    count = max(1, round(total * share))
    if count >= total:
        return np.arange(total)
    step = max(1, round(total * 0.6180339887498949))
    while math.gcd(step, total) > 1:
        step += 1
    return np.sort(np.arange(count, dtype=np.int64) * step % total)


def _wide(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {path: _number(array) for path, array in weights.items()}


def _number(array: Array) -> Array:
    """Floats in double precision; whole numbers as they are."""
    return np.asarray(array, np.float64) if array.dtype.kind == "f" else array


def _narrow(array: Array) -> Array:
    return np.asarray(array, np.float32) if array.dtype.kind == "f" else array


def _name(layer: _Layer | str) -> str:
    return layer.name if isinstance(layer, _Layer) else ""
