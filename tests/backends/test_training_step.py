"""A step of training does the same as torchvision's own module, and takes no more.

The work is that of benchmarks/steps.py; benchmarks/training.py times it at full size.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("torch_pruning")
torch = pytest.importorskip("torch")
from archir.backends import torch_fx  # noqa: E402
from torch import fx  # noqa: E402

from archir.ops import STANDARD  # noqa: E402
from archir.weights.init import init_weights  # noqa: E402

ROOT = Path(__file__).parents[2]


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, made)  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


sys.path.append(str(ROOT / "benchmarks"))  # where a benchmark finds its neighbours
try:
    steps = module_of("steps")
    training = module_of("training")
    optimizer = module_of("optimizer")
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

SMALL = steps.Recipe(batch=2, size=40)
VARIANTS = {
    "channels last": {"channels_last": True},
    "bf16": {"bf16": True},
    "both": {"channels_last": True, "bf16": True},
}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """Each network is imported once."""
    return {}


def network(name: str, networks: dict[str, Any]) -> Any:
    if name not in networks:
        networks[name] = steps.network_of(name)
    return networks[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", steps.NETWORKS)
def test_a_step_is_torchvisions_and_takes_no_more(name: str, networks: dict[str, Any]) -> None:
    pair = steps.both(name, SMALL, network(name, networks))
    found = steps.compare(pair)
    assert found.losses == (True, True, True)
    assert found.gradients
    states = [side.module.state_dict() for side in pair.values()]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for measured in (lambda side: steps.calls(side).total(), steps.saved, steps.peak):
        theirs, ours = (measured(side) for side in pair.values())
        assert 0 < ours <= theirs


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_layout_and_precision_change_both_sides_alike(
    options: dict[str, bool], networks: dict[str, Any]
) -> None:
    recipe = steps.Recipe(batch=2, size=40, **options)
    pair = steps.both("resnet18", recipe, network("resnet18", networks))
    assert steps.compare(pair).whole
    theirs, ours = (steps.saved(side) for side in pair.values())
    assert 0 < ours <= theirs


def test_other_gradients_are_told(networks: dict[str, Any]) -> None:
    pair = steps.both("resnet18", SMALL, network("resnet18", networks))
    with torch.no_grad():
        pair["archir"].module.fc.weight[0, 0] += 1e-3
    found = steps.compare(pair, 1)
    assert found.losses == (False,)
    assert not found.gradients


def test_more_memory_and_more_calls_are_told(networks: dict[str, Any]) -> None:
    side = steps.both("resnet18", SMALL, network("resnet18", networks))["archir"]
    before = [measured(side) for measured in (steps.calls, steps.saved, steps.peak)]
    assert steps.peak(side) == before[2]  # the same each time
    module, much = side.run, 2 * before[2]
    side.run = lambda x: (torch.empty(much, dtype=torch.uint8), module(x.sin().exp()))[1]
    calls, saved, peak = (measured(side) for measured in (steps.calls, steps.saved, steps.peak))
    assert calls - before[0] == {
        "aten.empty.memory_format": 1,
        "aten.sin.default": 1,
        "aten.exp.default": 1,
    }
    # The batch needs no gradient, so one tensor is kept: what the first convolution reads.
    assert saved == before[1] + side.x.nbytes
    assert much + before[1] < peak < much + before[2]


def test_a_sum_is_taken_in_the_memory_of_a_term(net: Any) -> None:
    # By hand: which terms nobody else reads, and which sums therefore overwrite one.
    image = net.input("image", "N", 4, 5, 5)
    x = net.add("x", "conv", image, out=4)
    a = net.add("a", "conv", x, out=4, kernel=3)
    b = net.add("b", "conv", x, out=4, kernel=3)
    first = net.add("first", "add", a, x)
    second = net.add("second", "add", x, b)
    twice = net.add("twice", "add", second, second)
    three = net.add("three", "add", x, first, twice)
    narrow = net.add("narrow", "conv", x, out=1)
    graph = net.build(y=net.add("wide", "add", narrow, three), x=x)
    module = torch_fx.lower(graph, init_weights(graph, STANDARD, 0))
    assert sums(module) == {
        "first": ["add_"],
        "second": ["add_"],
        "twice": ["add"],  # it is read as both terms
        "three": ["add_", "add_"],
        "wide": ["add"],  # a term has another shape
    }
    given = torch.randn(3, 4, 5, 5)
    y, z = module(given)
    assert torch.equal(z, module.x(given))
    two = 2 * (z + module.b(z))
    assert torch.equal(y, module.narrow(z) + ((z + (module.a(z) + z)) + two))


def sums(module: Any) -> dict[str, list[str]]:
    """What each sum of a lowered network became: ``add_`` overwrites."""
    found: dict[str, list[str]] = {}
    for call in module.graph.nodes:
        if call.op in ("call_function", "call_method"):
            name = call.target if call.op == "call_method" else call.target.__name__
            found.setdefault(call.meta["archir"], []).append(name)
    return found


def test_a_sum_of_two_types_has_the_wider_one(net: Any) -> None:
    # Under autocast a convolution gives bf16 where the image is f32; what carries a type on
    # is between the two.
    image = net.input("image", "N", 4, 5, 5)
    x = image
    for op in ("batch_norm", "relu", "dropout"):
        x = net.add(op, op, x)
    y = net.add("a", "conv", x, out=4, kernel=3)
    wide = net.add("wide", "add", y, x)
    z = net.add("b", "conv", wide, out=4, kernel=3)
    for number, op in enumerate(("batch_norm", "relu", "relu6", "dropout")):
        z = net.add(f"{op}{number}", op, z)
    z = net.add("pool", "max_pool", z, kernel=3, stride=1, padding=1)
    graph = net.build(sum=net.add("low", "add", net.add("c", "conv", z, out=4), z), wide=wide)
    module = torch_fx.lower(graph, init_weights(graph, STANDARD, 0))
    assert sums(module) == {"wide": ["add"], "low": ["add_"]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, high = module(torch.randn(3, 4, 5, 5))
    assert (low.dtype, high.dtype) == (torch.bfloat16, torch.float32)


def test_the_module_goes_wherever_torch_fx_modules_go(networks: dict[str, Any]) -> None:
    module = steps.ours("resnet18", network("resnet18", networks)).eval()
    assert "getattr" not in module.code  # layers are reached by way of the dictionaries
    x = torch.randn(2, 3, 40, 40)
    y = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        torch.load(file, weights_only=False),
        fx.symbolic_trace(module),
        torch.export.export(module, (x,)).module(),
    ):
        assert torch.equal(other(x), y)
    layer = module.get_submodule("layer1.0")
    layer._modules["conv1"] = torch.nn.Identity()  # as tools of torch replace layers
    assert not torch.equal(module(x), y)


def test_the_benchmark_measures_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--only", "mobilenet_v2.arch", "--batch", "2", "--size", "64", "--pairs", "2"]
    words += ["--repeats-memory", "1", "--log", str(tmp_path / "log.jsonl")]
    monkeypatch.setattr(training, "asked", training.work)  # in this process
    assert training.main([*words, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert record["losses_equal"] == [True] * 3
    assert record["memory"]["allocator"]["ratio"] <= 1
    assert {len(seconds) for seconds in record["seconds"].values()} == {2}

    def run(*_: object) -> None:
        raise AssertionError("it is in the log")

    monkeypatch.setattr(training, "run", run)
    assert training.main(words) == 0
    assert "| mobilenet_v2.arch | eager |" in capsys.readouterr().out
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"schema": 1, "na')  # cut off by a kill
    assert training.main(words) == 0


@pytest.mark.slow
def test_a_process_that_fails_is_told() -> None:
    given = {"what": "time", "name": "nothing", "pairs": 1, "clock": "clock", "threads": 1}
    recipe = {"batch": 2, "size": 64}
    assert training.asked({**given, "recipe": recipe}) == {"failure": "KeyError: 'nothing'"}


@pytest.mark.slow
def test_every_parameter_stays_in_the_optimizer() -> None:
    before = optimizer.with_peer("resnet18", 2)
    assert (before.live, before.held, before.with_momentum, before.changed) == (62, 1, 1, 1)
    for rule in ("prune.magnitude", "widen"):
        found = optimizer.with_archir("resnet18", 2, rule)
        assert (found.live, found.held, found.with_momentum, found.changed) == (62,) * 4
        assert found.stale == 0
    assert found.loss_after == pytest.approx(found.loss_before, rel=1e-4)


def test_what_went_wrong_is_told() -> None:
    recipe = {"compiled": False, "channels_last": False, "bf16": False, "device": "cpu"}
    good = {"name": "n", "recipe": recipe, "losses_equal": [True], "gradients_equal": True}
    assert training.fine(good)
    assert not training.fine({**good, "losses_equal": [True, False]})
    assert not training.fine({**good, "gradients_equal": False})
    assert not training.fine({**good, "memory": {"failure": "killed"}})
    failed = {"name": "n", "recipe": recipe, "failure": "no compiler"}
    assert not training.fine(failed)
    assert "no compiler" in training.row(failed)
