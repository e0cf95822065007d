"""Precision, clipping, averages, distillation and freezing, each against torch by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.train import loop
from archir.train.checkpoint import load_checkpoint
from archir.train.data import Dataset, Split
from archir.train.device import module_of
from archir.train.ema import Ema
from archir.train.feed import DROPOUT, drawn_seed, order
from archir.train.logs import LAST
from archir.train.loop import TrainResult, train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights
from archir.weights.store import Weights

from .nets import small

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=32, device="cpu", schedule="constant")


def images(count: int, seed: int) -> Split:
    stream = np.random.default_rng(seed)
    x = stream.random((count, 1, 8, 8), np.float32)
    return Split(x, (x.reshape(count, -1).sum(1) * 2).astype(np.int64) % 10)


DATA = Dataset(
    "made", images(100, 0), images(40, 1), images(10, 2), tuple(map(str, range(10))), "made"
)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(graph: Graph) -> Weights:
    return init_weights(graph, STANDARD, 0)


def fit(config: TrainConfig, graph: Graph | None = None, **more: Any) -> TrainResult:
    graph = graph or small(4, dropout=0.2)
    return train(graph, start(graph), DATA, config, **more)


Step = Callable[[torch.nn.Module, torch.optim.Optimizer, torch.Tensor, torch.Tensor], object]


def by_hand(
    config: TrainConfig, step: Step, optimizer: Callable[..., torch.optim.Optimizer] | None = None
) -> torch.nn.Module:
    """The loop as a user writes it; ``step`` is what differs."""
    graph = small(4, dropout=0.2)
    module = module_of(graph, start(graph), CPU)
    made = (optimizer or sgd)(module.parameters())
    x, y = torch.from_numpy(DATA.train.x), torch.from_numpy(DATA.train.y)
    module.train()
    number = 0
    for epoch in range(1, config.epochs + 1):
        for chosen in order(config.seed, epoch, 100)[:96].split(32):
            torch.manual_seed(drawn_seed(config.seed, DROPOUT, number))
            made.zero_grad()
            step(module, made, x[chosen], y[chosen])
            number += 1
    return module


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def same(found: Weights, module: torch.nn.Module) -> bool:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return all(np.array_equal(found[k], own[k].detach().numpy()) for k in found)


# ---- autocast and the scaler


def test_bf16_is_torchs_autocast() -> None:
    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(x)
        functional.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    module = by_hand(CONFIG, step)
    result = fit(replace(CONFIG, precision="bf16"))
    assert same(result.weights, module)
    assert not same(fit(CONFIG).weights, module)
    assert result.device.endswith("bf16")
    assert all(a.dtype != np.float16 for a in result.weights.values())


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_f16_scales_the_loss_as_torch_does(clip: float) -> None:
    scaler = torch.amp.GradScaler("cpu")

    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.float16):
            logits = module(x)
        loss = functional.cross_entropy(logits.float(), y)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()

    module = by_hand(CONFIG, step)
    result = fit(replace(CONFIG, precision="f16", clip=clip))
    assert same(result.weights, module)
    assert result.live is not None
    assert result.live.scaler.state_dict() == scaler.state_dict()


def test_the_scale_is_kept_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scale that overflows at first and grows again, so that it is not the default."""
    monkeypatch.setattr(
        torch.amp.GradScaler.__init__,
        "__defaults__",
        ("cpu", 2.0**40, 2.0, 0.5, 2, True),
    )
    config = replace(CONFIG, precision="f16", epochs=12, log_every=1)
    graph = small(4, dropout=0.2)
    whole = fit(config, run_dir=tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_WITHIN", -1.0)
    save, scales = loop._Run._save, dict[int, float]()

    def kept(self: Any) -> None:
        save(self)
        scales[self.step] = self.live.scaler.get_scale()
        if self.step == 31:
            shutil.copytree(tmp_path / "run", tmp_path / "cut")

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_save", kept)
        fit(config, run_dir=tmp_path / "run")
    assert len(set(scales.values())) > 10  # it was halved again and again, and doubled later
    stored = load_checkpoint(tmp_path / "cut" / LAST).counters["scaler"]
    assert stored["scale"] == scales[31]
    assert stored["scale"] < 2.0**40
    again = fit(config, graph, run_dir=tmp_path / "cut", existing="resume")
    for name in ("metrics.jsonl", LAST):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.validation.loss == whole.validation.loss


# ---- how torch runs the network


def test_channels_last_is_the_same_up_to_rounding() -> None:
    graph = small(4)  # dropout would go through the numbers in another order
    plain = fit(replace(CONFIG, ema=0.9), graph)
    other = fit(replace(CONFIG, ema=0.9, channels_last=True), graph)
    assert other.live is not None
    module = other.live.module
    strides = [p.stride() for p in module.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert strides
    assert all(stride[1] == 1 for stride in strides)
    for a, b in zip(plain.history, other.history, strict=True):
        assert abs(a.train_loss - b.train_loss) < 1e-5
        assert abs(a.validation_loss - b.validation_loss) < 1e-5
    assert max(np.abs(plain.weights[k] - other.weights[k]).max() for k in plain.weights) < 1e-4


@pytest.mark.slow
def test_compiled_is_the_same_up_to_rounding() -> None:
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    graph = small(4)  # a compiled dropout draws other numbers
    plain, other = fit(CONFIG, graph), fit(replace(CONFIG, compile=True), graph)
    for a, b in zip(plain.history, other.history, strict=True):
        assert abs(a.train_loss - b.train_loss) < 1e-5
        assert abs(a.validation_loss - b.validation_loss) < 1e-4


# ---- clipping, averages, a teacher


def test_clipping_is_torchs() -> None:
    norms = []

    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        functional.cross_entropy(module(x), y).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.8)))
        optimizer.step()

    module = by_hand(CONFIG, step)
    assert min(norms) > 0.8  # or nothing would be clipped
    assert same(fit(replace(CONFIG, clip=0.8)).weights, module)


def test_the_average_is_torchs() -> None:
    averages: list[AveragedModel] = []

    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        if not averages:
            averages.append(AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
            averages[0].update_parameters(module)  # torch's first update copies
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        averages[0].update_parameters(module)

    module = by_hand(CONFIG, step)
    result = fit(replace(CONFIG, ema=0.9))
    torchs = dict(averages[0].module.named_parameters())
    for path, average in torchs.items():
        assert np.array_equal(result.weights[path], average.detach().numpy())
        assert not np.array_equal(result.weights[path], dict(module.named_parameters())[path])
    for path, buffer in module.named_buffers():  # the network's own statistics
        assert np.array_equal(result.weights[path], buffer.numpy())
    assert result.live is not None
    assert same(fit(CONFIG).weights, result.live.module)  # an average changes nothing else


def test_an_average_follows_weights_that_move() -> None:
    """To another memory format: the average once went on from where they had been."""
    graph = small(4)
    module = module_of(graph, start(graph), CPU)
    average = Ema(module, 0.5)
    module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    average.update()
    for mine, theirs in zip(average.module.parameters(), module.parameters(), strict=True):
        assert torch.allclose(mine, theirs - 0.5)


def test_distillation_by_hand() -> None:
    graph = small(6)
    weights = init_weights(graph, STANDARD, 7)
    teacher = module_of(graph, weights, CPU).eval()

    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        logits = module(x)
        with torch.no_grad():
            taught = teacher(x)
        soft = functional.kl_div(
            functional.log_softmax(logits / 3, 1),
            functional.log_softmax(taught / 3, 1),
            reduction="batchmean",
            log_target=True,
        )
        (0.3 * functional.cross_entropy(logits, y) + 0.7 * 9 * soft).backward()
        optimizer.step()

    module = by_hand(CONFIG, step)
    config = replace(CONFIG, distill_weight=0.7, temperature=3.0)
    kept = {k: a.copy() for k, a in weights.items()}
    found = fit(config, teacher=(graph, weights))
    off = max(np.abs(found.weights[k] - p.detach().numpy()).max()
              for k, p in module.named_parameters())  # fmt: skip
    assert off < 1e-6  # 1 - 0.7 is not 0.3
    assert all(np.array_equal(kept[k], weights[k]) for k in kept)


# ---- freezing and rates


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_keeps_its_bits(kind: Any) -> None:
    graph = small(4, dropout=0.2)
    config = replace(CONFIG, optimizer=kind, freeze=("conv1", "bn*"), ema=0.9, clip=1.0)
    found, before = fit(config).weights, start(graph)
    for path, array in found.items():
        frozen = path.startswith(("conv1", "bn"))
        assert (array.tobytes() == before[path].tobytes()) == frozen, path
    assert {p.partition(".")[0] for p in found} == {"conv1", "bn1", "conv2", "bn2", "fc"}


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(Exception, match="A671"):
        fit(replace(CONFIG, freeze=("*",)))


def test_rates_by_glob() -> None:
    def grouped(parameters: Any) -> torch.optim.Optimizer:
        every = list(parameters)
        head, rest = every[-2:], every[:-2]
        groups = [{"params": rest, "lr": 0.005}, {"params": head, "lr": 0.1}]
        return torch.optim.SGD(groups, 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(module: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    module = by_hand(CONFIG, step, grouped)
    assert same(fit(replace(CONFIG, rates=(("*", 0.1), ("fc", 2.0)))).weights, module)


def test_a_rate_of_zero_keeps_parameters_but_not_statistics() -> None:
    found = fit(replace(CONFIG, rates=(("bn1", 0.0),))).weights
    before = start(small(4, dropout=0.2))
    assert np.array_equal(found["bn1.weight"], before["bn1.weight"])
    assert not np.array_equal(found["bn1.running_mean"], before["bn1.running_mean"])
