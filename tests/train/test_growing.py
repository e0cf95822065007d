"""Growing in the course of training: the loss, the state, the chain, and runs that are cut off."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archir.api import Network, load
from archir.diag import BAD_INPUT, CHECK_FAILED, ArchirError
from archir.ir.hash import graph_hash
from archir.ops.arithmetic import Array
from archir.train.checkpoint import Live
from archir.train.data import Dataset, Split, load_data
from archir.train.device import module_of, weights_of
from archir.train.feed import Feed, order
from archir.train.growing import NETWORKS, Growing
from archir.train.logs import METRICS
from archir.train.loop import TrainResult, train
from archir.train.optimizers import OptimizerConfig, adjust, make_optimizer
from archir.train.recipe import TrainConfig
from archir.train.schedule import Schedule
from archir.train.state import State
from archir.train.timetable import Change, read_timetable

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.arch"
CPU = torch.device("cpu")
TWICE = """
[[grow]]
step = 7
rule = "widen"
at = "tail.conv"
set = { width = 40 }

[[grow]]
epoch = 2
rules = ["widen@body.conv1", "deepen@tail.relu"]
set = { width = 20 }
seed = 3
"""
SHORT = TrainConfig(epochs=3, batch_size=64, device="cpu", log_every=4)
PER_EPOCH = 1258 // 64


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def network() -> Network:
    return load(EXAMPLE).init(0)


def timetable(tmp_path: Path, network: Network, text: str = TWICE) -> tuple[Change, ...]:
    file = tmp_path / "schedule.toml"
    file.write_text(text)
    return read_timetable(file, network)


def fit(
    network: Network, growing: Growing | None, data: Dataset, config: TrainConfig, **more: Any
) -> TrainResult:
    assert network.weights is not None
    return train(network.graph, dict(network.weights), data, config, growth=growing, **more)


def same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def grown_lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [line for line in found if line["event"] == "grow"]


class Watched(Growing):
    """Keeps what a growth was given and what it made, before either takes a step."""

    def grow(self, live: Live, step: int, stage: int, folder: Path | None) -> Any:
        before = copy.deepcopy(live)
        made, lines = super().grow(live, step, stage, folder)
        self.seen = [*getattr(self, "seen", []), (before, copy.deepcopy(made))]
        return made, lines


def test_one_run_one_log_one_chain(network: Network, digits: Dataset, tmp_path: Path) -> None:
    growing = Growing(network, timetable(tmp_path, network), digits, SHORT)
    run = tmp_path / "run"
    notes: list[str] = []
    done = fit(
        network, growing, digits, SHORT, run_dir=run,
        progress=lambda p: notes.append(p.note) if p.note else None,
    )  # fmt: skip
    assert (done.stage, done.steps, done.end) == (2, 3 * PER_EPOCH, 3 * PER_EPOCH)
    first, second = grown_lines(run)
    assert (first["step"], first["epoch"], first["stage"]) == (7, 1, 1)
    assert (second["step"], second["epoch"], second["stage"]) == (PER_EPOCH, 2, 2)
    assert first["rules"] == [{"rule": "widen", "site": "tail.conv", "set": {"width": 40}}]
    assert [r["rule"] for r in second["rules"]] == ["widen", "deepen"]
    assert first["params"][1] == second["params"][0]
    assert first["macs"][0] < first["macs"][1] == second["macs"][0] < second["macs"][1]
    assert 0 <= first["drift"] < 1e-5
    assert first["state"]["mapped"] >= 4
    assert first["state"]["kept"] > 0
    assert first["state"]["zero"] == {}
    assert second["state"]["zero"].keys() <= {"tail.new.weight", "tail.new.bias"}
    assert notes == [first["note"], second["note"]]
    assert notes[0].startswith("growth 1 (step 7): widen@tail.conv; parameters 13,978 -> ")

    kept = load(run / NETWORKS / "2.arch")
    assert graph_hash(kept.graph) == graph_hash(done.graph)
    assert list(kept.graph.parameters) == list(done.graph.parameters)
    assert done.graph.parameters.keys() == done.weights.keys()
    final = growing.network(done.stage, run).with_weights(done.weights, "train", {})
    final.save(tmp_path / "final.arch")
    again = load(tmp_path / "final.arch")
    kinds = [step.kind for step in again.certificate.steps]
    assert kinds == ["init", "train", "rewrite", "train", "rewrite", "train"]
    trained = [step.facts for step in again.certificate.steps if step.kind == "train"]
    assert [facts.get("steps") for facts in trained] == [[0, 7], [7, PER_EPOCH], None]
    assert trained[0]["data"]["sha256"] == digits.sha256
    assert trained[0]["config"]["lr"] == SHORT.lr
    findings = again.verify()
    assert all(finding.holds for finding in findings)
    assert sum(f.how == "replay" and "rewrite" in f.subject for f in findings) >= 2


RECIPES = {
    "sgd": SHORT,
    "adamw": replace(SHORT, optimizer="adamw", lr=2e-3, weight_decay=0.01),
    "ema": replace(SHORT, ema=0.9),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_is_the_same_at_a_growth(
    network: Network, digits: Dataset, tmp_path: Path, recipe: str
) -> None:
    growing = Watched(network, timetable(tmp_path, network), digits, RECIPES[recipe])
    fit(network, growing, digits, RECIPES[recipe])
    x, y = Feed(network.graph, digits.train, CPU).take(torch.arange(200))
    assert len(growing.seen) == 2
    for before, after in growing.seen:
        assert sum(p.numel() for p in after.module.parameters()) > sum(
            p.numel() for p in before.module.parameters()
        )
        pairs = [(before.module, after.module)]
        if before.ema is not None:
            pairs.append((before.ema.module, after.ema.module))
            own, mean = (next(m.parameters()) for m in (after.module, after.ema.module))
            assert not torch.equal(own, mean)
        for old, new in pairs:
            for training in (True, False):
                losses = []
                for module in (old, new):
                    module.train(training)
                    with torch.no_grad():
                        losses.append(float(torch.nn.functional.cross_entropy(module(x), y)))
                assert abs(losses[0] - losses[1]) < 1e-5 * losses[0]


def by_hand(network: Network, changes: Sequence[Change], data: Dataset, config: TrainConfig) -> Any:
    """The weights after a run, written out with torch and the public pieces."""
    assert network.weights is not None
    module = module_of(network.graph, dict(network.weights), CPU)
    optimizer = make_optimizer(module, network.graph, OptimizerConfig.of(config))
    schedule = Schedule.of(config)
    feed = Feed(network.graph, data.train, CPU)
    per_epoch = len(feed) // config.batch_size
    steps = per_epoch * config.epochs
    dues = [change.due(per_epoch) for change in changes]
    for step in range(steps):
        while dues and dues[0] == step:
            dues, change, changes = dues[1:], changes[0], changes[1:]
            state = State.of(network, optimizer, module=module, step=step)
            state = state.apply(change.applications, seed=change.seed).state
            network = state.network
            module, optimizer = state.to_torch(CPU)
        module.train()
        epoch, place = divmod(step, per_epoch)
        chosen = order(config.seed, epoch + 1, len(feed))[place * 64 : place * 64 + 64]
        x, y = feed.take(chosen)
        adjust(optimizer, config.lr * schedule.rate(step, per_epoch, steps))
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(module(x), y))
        optimizer.step()
    return weights_of(module, network.graph)


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_a_run_is_what_one_would_write_by_hand(
    network: Network, digits: Dataset, tmp_path: Path, recipe: str
) -> None:
    config, changes = RECIPES[recipe], timetable(tmp_path, network)
    done = fit(network, Growing(network, changes, digits, config), digits, config)
    assert same(done.weights, by_hand(network, changes, digits, config))


def test_new_parameters_learn_and_frozen_ones_stay(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    config = replace(SHORT, freeze=("stem",), rates=(("fc2", 0.5),))
    text = '[[grow]]\nstep = 5\nrules = ["widen@stem.conv", "deepen@tail.relu"]\nset = {width = 20}'
    growing = Watched(network, timetable(tmp_path, network, text), digits, config)
    done = fit(network, growing, digits, config)
    ((_, after),) = growing.seen
    start = weights_of(after.module, after.graph)
    still = {p for p in start if np.array_equal(start[p], done.weights[p])}
    assert still == {p for p in start if p.startswith("stem.")}
    held = {p: g for g in after.optimizer.param_groups for p in g["paths"]}
    assert held.keys() == {p for p, _ in after.module.named_parameters()} - still
    assert held["fc2.weight"]["scale"] == 0.5
    assert held["tail.new.weight"]["scale"] == 1.0


def test_channels_may_come_last(network: Network, digits: Dataset, tmp_path: Path) -> None:
    changes, plain = timetable(tmp_path, network), replace(SHORT, epochs=2, ema=0.9, lr=1e-3)
    config = replace(plain, channels_last=True)
    growing = Watched(network, changes, digits, config)
    done = fit(network, growing, digits, config, run_dir=tmp_path / "run")
    for _, live in growing.seen:
        for _, parameter in live.optimized():
            if parameter.ndim == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last)
            moment = live.optimizer.state.get(parameter, {}).get("momentum_buffer", parameter)
            assert moment.stride() == parameter.stride()
    other = fit(network, Growing(network, changes, digits, plain), digits, plain)
    for one, two in zip(done.history, other.history, strict=True):
        assert abs(one.train_loss - two.train_loss) < 1e-4 * two.train_loss
    again = Growing(network, changes, digits, config)
    found = fit(network, again, digits, config, run_dir=tmp_path / "run", existing="resume")
    assert same(found.weights, done.weights)


def test_two_growths_before_one_step(network: Network, digits: Dataset, tmp_path: Path) -> None:
    text = """
        [[grow]]
        step = 0
        rule = "widen@stem.conv"
        set = { width = 20 }
        [[grow]]
        step = 0
        rule = "widen@tail.conv"
        set = { width = 40 }
    """
    growing = Growing(network, timetable(tmp_path, network, text), digits, SHORT)
    done = fit(network, growing, digits, replace(SHORT, epochs=1))
    chain = growing.network(2, None).certificate.steps
    assert [step.kind for step in chain] == ["init", "rewrite", "rewrite"]  # nothing was trained
    assert done.graph.node("stem.conv").attrs["out"] == 20
    assert done.graph.node("tail.conv").attrs["out"] == 40


def test_the_best_epoch_may_lie_before_a_growth(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    train_, validation, test = (
        Split(s.x, 0 * s.y) for s in (digits.train, digits.validation, digits.test)
    )
    data = Dataset("zeros", train_, validation, test, digits.classes, "0" * 64)
    config = replace(SHORT, keep="best")
    text = f'[[grow]]\nstep = {2 * PER_EPOCH}\nrule = "deepen@tail.relu"'
    growing = Growing(network, timetable(tmp_path, network, text), data, config)
    run = tmp_path / "run"
    done = fit(network, growing, data, config, run_dir=run)
    best = next(e for e in done.history if e.validation_accuracy == done.validation.accuracy)
    assert best.epoch < 3  # all labels are alike: later epochs cannot be better
    assert (done.stage, done.end) == (0, best.step)
    assert graph_hash(done.graph) == graph_hash(network.graph)
    assert done.weights.keys() == network.graph.parameters.keys()
    other = Growing(network, timetable(tmp_path, network, text), data, config)
    again = fit(network, other, data, config, run_dir=run, existing="resume")
    assert (again.stage, again.end) == (0, best.step)
    assert same(again.weights, done.weights)
    assert other.network(0, run) is network
    assert other.lines == growing.lines
    assert len(other.lines) == 1


def test_a_growth_that_turns_out_impossible(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    text = '[[grow]]\nstep = 5\nrule = "merge.duplicates"\nat = "all"'  # no two channels are alike
    growing = Growing(network, timetable(tmp_path, network, text), digits, SHORT)
    run = tmp_path / "run"
    with pytest.raises(ArchirError) as caught:
        fit(network, growing, digits, SHORT, run_dir=run)
    assert caught.value.status == CHECK_FAILED
    assert caught.value.diagnostics[0].message.startswith("growth 1 (step 5): ")
    assert (run / "last.safetensors").exists()


def test_a_run_folder_that_cannot_be_written(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / NETWORKS).touch()
    growing = Growing(network, timetable(tmp_path, network), digits, SHORT)
    with pytest.raises(ArchirError) as caught:
        fit(network, growing, digits, SHORT, run_dir=run)
    assert caught.value.diagnostics[0].code == "A602"
    assert (run / "last.safetensors").exists()


def test_a_network_that_went_astray_is_not_grown(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    config = replace(SHORT, lr=1000.0, weight_decay=1000.0, schedule="constant", log_every=0)
    text = '[[grow]]\nstep = 15\nrule = "deepen@tail.relu"'
    growing = Growing(network, timetable(tmp_path, network, text), digits, config)
    with pytest.raises(ArchirError) as caught:
        fit(network, growing, digits, config)
    assert caught.value.diagnostics[0].code == "A631"
    assert "(by step 15)" in caught.value.diagnostics[0].message


def test_what_cannot_work_fails_before_anything_is_written(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    for text, code in (
        ('[[grow]]\nstep = 50\nrule = "widen@nowhere"\nset = {width = 99}', "A605"),
        ('[[grow]]\nstep = 5000\nrule = "deepen@tail.relu"', "A681"),
    ):
        growing = Growing(network, timetable(tmp_path, network, text), digits, SHORT)
        with pytest.raises(ArchirError) as caught:
            fit(network, growing, digits, SHORT, run_dir=tmp_path / "run")
        assert caught.value.diagnostics[0].code == code
        assert not (tmp_path / "run").exists()


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from archir.api import load
from archir.train import growing, loop
from archir.train.data import load_data
from archir.train.recipe import read_recipe
from archir.train.timetable import read_timetable

torch.set_num_threads(1)
folder, moments = Path(sys.argv[1]), json.loads(sys.argv[2])
loop.SAVE_EVERY = 0.0
grow, update = growing.Growing.grow, loop._Run._update

def train(run, moment):
    def at(now):
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def growth(self, live, step, stage, folder):
        made = grow(self, live, step, stage, folder)
        at(f"growth {stage + 1}")
        return made

    def step(self, x, y):
        at(f"step {self.step}")
        return update(self, x, y)

    growing.Growing.grow, loop._Run._update = growth, step
    made = growing.Growing(network, changes, data, config)
    done = loop.train(
        network.graph, network.weights, data, config, run_dir=run, growth=made,
        existing="resume" if run.exists() else "refuse",
    )
    final = made.network(done.stage, run).with_weights(done.weights, "train", {})
    final.save(run / "final.arch", force=True)

network, data = load(folder / "net.arch"), load_data("digits")
config = read_recipe(folder / "recipe.toml")
changes = read_timetable(folder / "schedule.toml", network)
train(folder / "whole", "never")  # after which all that is slow to import has been

for run, moment in moments:
    child = os.fork()
    if child == 0:
        train(folder / run, moment)
        sys.stderr.flush()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    wanted = 0 if moment == "never" else -signal.SIGKILL
    assert status == wanted, (moment, status)
"""
MOMENTS = ["step 6", "growth 1", "step 12", "growth 2", "step 25"]


def test_runs_that_are_killed_around_growths(network: Network, tmp_path: Path) -> None:
    network.save(tmp_path / "net.arch")
    (tmp_path / "schedule.toml").write_text(TWICE)
    recipe = 'device = "cpu"\nepochs = 2\nlog_every = 4\nema = 0.9\noptimizer = "adamw"\nlr = 0.002'
    (tmp_path / "recipe.toml").write_text(recipe)
    moments = [("cut", moment) for moment in (*MOMENTS, "never")]
    words = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(moments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for name in (METRICS, "final.safetensors", "final.cert.json", "networks/2.safetensors"):
        one, two = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert one == two, name
    assert len(grown_lines(tmp_path / "cut")) == 2
    assert all(finding.holds for finding in load(tmp_path / "cut" / "final.arch").verify())


def test_resuming_takes_the_same_timetable(
    network: Network, digits: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit(
        network,
        Growing(network, timetable(tmp_path, network), digits, SHORT),
        digits,
        SHORT,
        run_dir=run,
    )
    other = Growing(network, timetable(tmp_path, network, TWICE.replace("40", "41")), digits, SHORT)
    with pytest.raises(ArchirError) as caught:
        fit(network, other, digits, SHORT, run_dir=run, existing="resume")
    assert caught.value.diagnostics[0].code == "A638"
    assert caught.value.status == BAD_INPUT


@pytest.mark.parametrize("name", ["2.arch", "2.safetensors", "2.optim.safetensors", "2.cert.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_a_kept_network_that_was_changed(
    network: Network, digits: Dataset, tmp_path: Path, name: str, how: str
) -> None:
    run = tmp_path / "run"
    changes = timetable(tmp_path, network)
    config = replace(SHORT, epochs=2)
    fit(network, Growing(network, changes, digits, config), digits, config, run_dir=run)
    file = run / NETWORKS / name
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        file.write_bytes((run / NETWORKS / name.replace("2", "1", 1)).read_bytes())
    growing = Growing(network, changes, digits, config)
    with pytest.raises(ArchirError) as caught:
        fit(network, growing, digits, config, run_dir=run, existing="resume")
    found = caught.value.diagnostics[0]
    assert found.code == "A637"
    assert "growth 2" in found.message
    assert caught.value.status == BAD_INPUT
