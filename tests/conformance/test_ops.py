"""Every sample of every operator, through the NumPy reference, torch and ONNX Runtime.

The reference runs in float64 on the float32 inputs and weights; a backend passes where
max|a-b| <= BOUND * max|a| for each output (and, in training, for each buffer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph, GraphBuilder, Node, Output, Parameter, Value
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run
from archir.ops.infer import bind_attrs, instance
from archir.ops.record import Law, Op, Sample
from archir.target import Backend, backends
from archir.weights.store import numpy_dtype

BOUND = 5e-6
WITHOUT_SAMPLES = {"input"}
OPS = sorted(set(STANDARD) - WITHOUT_SAMPLES)
NAMES = ("torch", "onnx")

Arrays = dict[str, np.ndarray[Any, Any]]


def network(op: Op, sample: Sample) -> Graph:
    """The sample as a network: inputs x0, x1, ..., one node `n`, outputs y0, y1, ..."""
    builder = GraphBuilder("sample")
    values = []
    for number, type_ in enumerate(sample.inputs):
        builder.inputs.append(f"x{number}")
        values.append(builder.add(Node(f"x{number}", "input", {}, (), {}, (type_,))))
    attrs = bind_attrs(op, sample.attrs, sample.inputs)
    found = instance(op, attrs, sample.inputs)
    params = {r: "n" if op.name == "parameter" else f"n.{r}" for r in found.params}
    for role, type_ in found.params.items():
        path = params[role]
        builder.parameters[path] = Parameter(
            path, type_, op.param(role).buffer or bool(attrs.get("buffer"))
        )
    builder.add(Node("n", op.name, attrs, tuple(values), params, found.types))
    builder.outputs = [Output(f"y{i}", Value("n", i)) for i in range(len(found.types))]
    return builder.build()


def draw(graph: Graph, number: int, sample: Sample) -> tuple[Arrays, Arrays]:
    """Inputs and weights, none of them 0 or 1; variances are positive."""
    stream = np.random.Generator(np.random.PCG64([7, number]))
    weights: Arrays = {}
    for path, parameter in graph.parameters.items():
        values = stream.standard_normal(parameter.type.shape)
        values = np.abs(values) + 0.1 if path.endswith("running_var") else values
        weights[path] = np.asarray(values, numpy_dtype(parameter.type.dtype))
        if parameter.type.dtype == "i64":
            weights[path] = np.asarray(5, np.int64)
    feeds: Arrays = {}
    for name in graph.inputs:
        (type_,) = graph.node(name).types
        values = stream.standard_normal(type_.shape)
        values = np.abs(values) if sample.positive else values
        if type_.dtype in ("i64", "i32"):  # an index: four rows are the fewest that a sample has
            values = stream.integers(0, 4, type_.shape)
        if type_.dtype == "bool":
            values = stream.integers(0, 2, type_.shape)
        feeds[name] = np.asarray(values, numpy_dtype(type_.dtype))
    return feeds, weights


def reference(graph: Graph, feeds: Arrays, weights: Arrays, mode: Any) -> tuple[list[Any], Arrays]:
    wide = {path: np.asarray(w, np.float64) for path, w in weights.items()}
    fed = {Value(name): np.asarray(x, np.float64) for name, x in feeds.items()}
    found = run(graph, STANDARD, Floating(np.float64), fed, wide, mode=mode)
    return [found.values[o.value] for o in graph.outputs], dict(found.buffers)


def agree(expected: Any, found: Any) -> bool:
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    if expected.shape != found.shape:
        return False
    far, scale = np.abs(expected - found).max(), np.abs(expected).max()
    return bool(np.isfinite(found).all() and far <= BOUND * scale)


def flaws(backend: Any, ops: Mapping[str, Op]) -> list[str]:
    """What is wrong with a backend's two tables."""
    found = [
        f"{op}: in neither table"
        for op in ops
        if op not in {**backend.LOWER, **backend.UNSUPPORTED}
    ]
    found += [
        f"{op}: no such operator"
        for op in {**backend.LOWER, **backend.UNSUPPORTED}
        if op not in ops
    ]
    found += [
        f"{op}: called unsupported, yet lowered"
        for op in backend.UNSUPPORTED
        if op in backend.LOWER
    ]
    found += [
        f"{op}: no reason given" for op, why in backend.UNSUPPORTED.items() if not why.strip()
    ]
    return found


def check(backend: Backend, op: Op) -> int:
    """Run every sample in eval mode; returns how many, or fails."""
    for number, sample in enumerate(op.samples):
        graph = network(op, sample)
        feeds, weights = draw(graph, number, sample)
        if op.name in backend.UNSUPPORTED:
            with pytest.raises(ArchirError) as caught:
                backend.forward(graph, weights, feeds)
            assert caught.value.diagnostics[0].code == "A501"
            assert caught.value.status == 3
            continue
        wanted, _ = reference(graph, feeds, weights, "eval")
        found = backend.forward(graph, weights, feeds)
        assert len(found) == len(wanted)
        for a, b, type_ in zip(wanted, found, graph.node("n").types, strict=True):
            assert agree(a, b), f"{op.name}, sample {number}: {sample}"
            assert a.any() or op.name == "null", "nothing was compared"
            assert b.dtype == numpy_dtype(type_.dtype)
    return len(op.samples)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", OPS)
def test_samples_agree_in_eval(op: str, name: str) -> None:
    count = check(backends()[name], STANDARD[op])
    print(f"{op}: {count} samples agree between numpy and {name} within {BOUND}")
    assert count >= 2


@pytest.mark.parametrize("op", OPS)
def test_samples_agree_in_training(op: str) -> None:
    torch = pytest.importorskip("torch")
    from archir.backends import torch_fx

    buffers = 0
    for number, sample in enumerate(STANDARD[op].samples):
        graph = network(STANDARD[op], sample)
        if Law.RANDOM_IN_TRAINING in STANDARD[op].laws:
            # Only without chance is there one right value.
            node = replace(graph.node("n"), attrs={**graph.node("n").attrs, "p": 0.0})
            builder = graph.edit()
            builder.put(node)
            graph = builder.build()
        feeds, weights = draw(graph, number, sample)
        wanted, updated = reference(graph, feeds, weights, "train")
        module = torch_fx.lower(graph, weights).train()
        found = module(*(torch.from_numpy(feeds[n]) for n in graph.inputs))
        found = found if isinstance(found, tuple) else (found,)
        for a, b in zip(wanted, found, strict=True):
            assert agree(a, b.detach().numpy()), f"{op}, sample {number}: {sample}"
            assert a.any() or op == "null", "nothing was compared"
        after = torch_fx.weights_of(module, graph)
        for path, parameter in graph.parameters.items():
            if path in updated:
                buffers += 1
                assert agree(updated[path], after[path]), path
                assert not np.array_equal(after[path], weights[path])
            elif path.endswith("num_batches_tracked"):
                assert after[path] == weights[path] + 1
            else:
                assert np.array_equal(after[path], weights[path]), parameter
    print(f"{op}: {len(STANDARD[op].samples)} samples, {buffers} buffers agree in training")


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_exact(name: str) -> None:
    backend = backends()[name]
    assert flaws(backend, STANDARD) == []
    samples = sum(len(op.samples) for op in STANDARD.values())
    print(f"{name}: {len(backend.LOWER)} of {len(STANDARD)} operators, {samples} samples")
    assert {n for n, op in STANDARD.items() if not op.samples} == WITHOUT_SAMPLES


def test_a_table_that_is_not_exact_is_found() -> None:
    wrong = SimpleNamespace(
        LOWER={"gone": None, **dict.fromkeys(set(STANDARD) - {"add", "mul"})},
        UNSUPPORTED={"relu": "it works all the same", "mul": " "},
    )
    assert sorted(flaws(wrong, STANDARD)) == [
        "add: in neither table",
        "gone: no such operator",
        "mul: no reason given",
        "relu: called unsupported, yet lowered",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_without_lowering_is_refused(name: str) -> None:
    (sample, *_) = STANDARD["relu"].samples
    graph = network(STANDARD["relu"], sample)
    builder = graph.edit()
    builder.put(replace(graph.node("n"), op="fold_in_half"))
    feeds, _ = draw(graph, 0, sample)
    with pytest.raises(ArchirError) as caught:
        backends()[name].forward(builder.build(), {}, feeds)
    (found,) = caught.value.diagnostics
    assert (found.code, found.node, caught.value.status) == ("A501", "n", 3)
    assert "fold_in_half" in found.message


@pytest.mark.parametrize("wrong", [2.0, 0.0, -1.0])
def test_the_comparison_notices(wrong: float) -> None:
    values = np.arange(1.0, 7.0).reshape(2, 3)
    assert agree(values, values)
    assert not agree(values, values * wrong)
    assert not agree(values, values[::-1])
    assert not agree(values, values.T)
    assert not agree(values, np.where(values == 3, np.nan, values))
