from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archir.diag import BAD_INPUT, ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.train.data import Dataset, Split, load_data
from archir.train.device import describe, resolve
from archir.train.evaluate import evaluate
from archir.train.logs import METRICS, TIMINGS, Logs
from archir.train.loop import Progress, TrainResult, train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights
from archir.weights.store import Weights

from .nets import Net, small

SHORT = TrainConfig(epochs=2, batch_size=64, device="cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


def trained(graph: Graph, data: Dataset, config: TrainConfig = SHORT, **more: Any) -> TrainResult:
    return train(graph, init_weights(graph, STANDARD, 0), data, config, **more)


def code_of(act: Any) -> str:
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.status == BAD_INPUT
    return caught.value.diagnostics[0].code


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def linear() -> Graph:
    net = Net(1, 8, 8, name="linear")
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    return net.graph()


def test_learns_the_digits(digits: Dataset, tmp_path: Path) -> None:
    graph = small()
    config = TrainConfig(epochs=10, device="cpu")
    result = trained(graph, digits, config, run_dir=tmp_path / "new" / "run")
    found = evaluate(graph, result.weights, digits, device="cpu")
    assert found.accuracy > 0.97
    assert result.steps == 10 * (1258 // 64)
    lines = lines_of(tmp_path / "new/run" / METRICS)
    assert [line["epoch"] for line in lines] == list(range(1, 11))
    assert list(lines[0]) == [
        "event", "epoch", "step", "train_loss", "validation_loss", "validation_accuracy", "lr",
    ]  # fmt: skip
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] / 10
    assert lines[-1]["validation_accuracy"] == result.validation.accuracy
    timings = lines_of(tmp_path / "new/run" / TIMINGS)
    assert all(line["images_per_second"] > 0 for line in timings)
    assert len(timings) == 10


def test_the_result_has_every_parameter_and_buffer(digits: Dataset) -> None:
    graph = small()
    start = init_weights(graph, STANDARD, 0)
    kept = {path: array.copy() for path, array in start.items()}
    result = train(graph, start, digits, SHORT)
    assert same(start, kept)  # what was passed in stays
    assert list(result.weights) == list(graph.parameters)
    for path, array in result.weights.items():
        assert array.shape == graph.parameters[path].type.shape
        assert array.dtype == start[path].dtype
        assert not np.array_equal(array, start[path]), path
    assert result.weights["bn1.num_batches_tracked"] == result.steps == 38


def test_equal_seeds_give_equal_weights_and_metrics(digits: Dataset, tmp_path: Path) -> None:
    graph = small(8, dropout=0.3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained(graph, digits, run_dir=tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left alone
    torch.manual_seed(2)
    two = trained(graph, digits, run_dir=tmp_path / "two", progress=lambda progress: None)
    assert same(one.weights, two.weights)
    assert one.history == two.history
    first, second = ((tmp_path / name / METRICS).read_bytes() for name in ("one", "two"))
    assert first == second
    other = trained(graph, digits, replace(SHORT, seed=1))
    assert not same(one.weights, other.weights)


def test_one_step_is_nesterov_with_weight_decay(digits: Dataset) -> None:
    part = Split(digits.train.x[:20], digits.train.y[:20])
    data = replace(digits, train=part)
    graph = linear()
    start = init_weights(graph, STANDARD, 0)
    rate, momentum, decay = 0.5, 0.8, 0.01
    config = TrainConfig(1, 20, rate, momentum, decay, device="cpu")
    found = train(graph, start, data, config).weights
    x, w = part.x.reshape(20, 64).astype(np.float64), start["fc.weight"].astype(np.float64)
    scores = np.exp(x @ w.T + start["fc.bias"])
    slope = scores / scores.sum(1, keepdims=True)
    slope[np.arange(20), part.y] -= 1
    gradient: Array = slope.T @ x / 20 + decay * w
    expected = w - rate * (1 + momentum) * gradient
    assert np.abs(found["fc.weight"] - expected).max() < 1e-6


def test_the_rate_follows_half_a_cosine(digits: Dataset) -> None:
    result = trained(linear(), digits, TrainConfig(epochs=4, lr=0.2, device="cpu"))
    steps = result.steps
    for line in result.history:
        wanted = 0.1 * (1 + math.cos(math.pi * (line.step - 1) / steps))
        assert abs(line.lr - wanted) < 1e-12
    assert result.history[-1].lr < 0.2 * 1e-3


def test_progress_is_told(digits: Dataset) -> None:
    seen: list[Progress] = []
    result = trained(small(), digits, TrainConfig(epochs=3, device="cpu"), progress=seen.append)
    ends = [p for p in seen if p.accuracy is not None]
    assert [p.epoch for p in ends] == [1, 2, 3]
    assert ends[-1].step == ends[-1].steps == result.steps
    assert ends[-1].accuracy == result.validation.accuracy
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert all(p.images_per_second > 0 and math.isfinite(p.loss) for p in seen)


def test_a_batch_larger_than_the_data(digits: Dataset) -> None:
    result = trained(linear(), digits, TrainConfig(epochs=2, batch_size=10**5, device="cpu"))
    assert result.steps == 2


def test_tied_weights_stay_tied_and_are_returned_once() -> None:
    net = Net(4, name="tied")
    first = net.add("a", "linear", out=4)
    node = net.builder.nodes[net.add("b", "linear", first, out=4).node]
    net.builder.put(replace(node, params={**node.params, "weight": "a.weight"}))
    graph = net.graph()
    assert "b.weight" not in graph.parameters
    stream = np.random.default_rng(0)
    x = stream.normal(size=(60, 4)).astype(np.float32)
    part = Split(x, np.argmax(x, 1))
    data = Dataset("toy", part, part, part, ("0", "1", "2", "3"), "")
    start = init_weights(graph, STANDARD, 0)
    found = train(graph, start, data, TrainConfig(epochs=30, batch_size=20, device="cpu"))
    assert set(found.weights) == {"a.weight", "a.bias", "b.bias"}
    assert found.validation.accuracy > 0.9


def test_a_loss_that_is_no_number(digits: Dataset) -> None:
    with pytest.raises(ArchirError) as caught:
        trained(small(), digits, TrainConfig(epochs=5, lr=1000, weight_decay=10, device="cpu"))
    (found,) = caught.value.diagnostics
    assert found.code == "A631"
    assert "epoch" in found.message
    assert "1000" in found.hint


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"momentum": 1.5},
        {"weight_decay": -1},
        {"seed": -1},
        {"precision": "f8"},
    ],
    ids=str,
)
def test_wrong_recipes(digits: Dataset, change: dict[str, Any]) -> None:
    assert code_of(lambda: trained(linear(), digits, replace(SHORT, **change))) == "A632"


def test_nothing_to_train(digits: Dataset) -> None:
    net = Net(1, 8, 8)
    net.add("conv", "global_avg_pool")
    net.add("ten", "concat", *[net.last] * 10, axis=1)
    assert code_of(lambda: trained(net.graph(), digits)) == "A625"


def test_data_that_does_not_fit(digits: Dataset) -> None:
    net = Net(3, 8, 8)
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    assert code_of(lambda: trained(net.graph(), digits)) == "A623"


def test_weights_that_are_missing(digits: Dataset) -> None:
    graph = linear()
    start = init_weights(graph, STANDARD, 0)
    del start["fc.bias"]
    assert code_of(lambda: train(graph, start, digits, SHORT)) == "A611"


def test_a_run_folder_that_cannot_be(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert code_of(lambda: trained(linear(), digits, run_dir=tmp_path / "file")) == "A602"


def test_a_device_without_memory(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError

    graph = linear()
    weights = init_weights(graph, STANDARD, 0)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", full)
    assert code_of(lambda: train(graph, weights, digits, SHORT)) == "A633"
    assert code_of(lambda: evaluate(graph, weights, digits, device="cpu")) == "A633"


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:", "cpu:1", "cuda:-1", ""])
def test_devices_that_are_not_there(device: str) -> None:
    assert code_of(lambda: resolve(device)) == "A630"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve("auto") == torch.device("cpu")
    assert describe(resolve("auto")).startswith("cpu (")
    assert code_of(lambda: resolve("cuda")) == "A630"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve("auto") == torch.device("cuda", 0)
    assert resolve("cuda:1") == torch.device("cuda", 1)
    assert code_of(lambda: resolve("cuda:2")) == "A630"


def test_bf16(digits: Dataset) -> None:
    config = TrainConfig(epochs=3, device="cpu", precision="bf16")
    result = trained(small(8), digits, config)
    assert result.device.endswith("bf16")
    assert {a.dtype for p, a in result.weights.items() if "tracked" not in p} == {np.dtype("f4")}
    assert result.validation.accuracy > 0.9


def test_a_loss_that_is_no_number_is_null_in_the_metrics(tmp_path: Path) -> None:
    """Validation in a lower precision may overflow where training does not."""
    with Logs(tmp_path) as logs:
        logs.metric("epoch", {"step": 3, "train_loss": 0.5, "validation_loss": math.inf})
    line = json.loads((tmp_path / METRICS).read_text(), parse_constant=pytest.fail)
    assert line == {"event": "epoch", "step": 3, "train_loss": 0.5, "validation_loss": None}
