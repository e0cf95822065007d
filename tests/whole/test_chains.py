"""Chains of random rewrites on small networks, held to what benchmarks/chains.py asks.

Rounding alone, a certificate that verifies, ONNX files that agree, and the way back bit for bit.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import archir
from archir.api import Application, rewrite
from archir.ops import installed_ops
from archir.rewrite.library import installed

ROOT = Path(__file__).parents[2]
NUMBERS = {"digits": 1, "lenet_300_100": 3}
"""The numbers of chains that start from these examples."""


def load_chains() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chains", ROOT / "benchmarks" / "chains.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chains"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


chains = load_chains()
STARTS = tuple(ROOT / "examples" / f"{name}.arch" for name in NUMBERS)


@pytest.mark.parametrize("number", [2, 4, 8])
def test_six_rewrites_in_a_row(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "starts", lambda *, large: STARTS)
    chain = chains.run(number, seed=3, length=6, growth=4.0, large=False)
    assert chain.problems == []
    assert len(chain.steps) == 6
    assert chain.taken_back == (number % 4 == 0)
    assert 0 < chain.drift + chain.onnx < 2e-5


def test_a_chain_is_read_as_it_was_written(tmp_path: Path) -> None:
    steps, refused = ["widen@a width=3", "pad@b"], Counter({"A312 widen": 2})
    chain = chains.Chain(3, "digits", steps, refused, (10, 20), 1e-7, None, 2e-7, taken_back=True)
    for _ in range(2):
        chains.add_to_log(tmp_path / "log", chain)
    assert chains.read_log(tmp_path / "log") == [chain, chain]
    assert "2 chains, 4 rewrites" in chains.summary([chain, chain])


def test_problems_are_found() -> None:
    """Another network's weights, and a past that is another's: all of it is seen."""
    first = archir.load(STARTS[0], ignore_weights=True).init(0)
    other = archir.load(STARTS[0], ignore_weights=True).init(1)
    done = rewrite(other, [Application("widen", "body.conv1", {"width": 24})])
    chain = chains.Chain(0, "digits", steps=["widen@body.conv1"])
    chains.finish(first, done.network, done.uses, chain)
    said = " ".join(chain.problems)
    assert "drift" in said
    assert "ONNX files differ" in said
    assert "the weights are others" in said


def test_double_precision_tells_rounding_from_a_wrong_map() -> None:
    first = archir.load(STARTS[0], ignore_weights=True).init(0, random_statistics=True)
    done = rewrite(first, [Application("norm.batch", "body.conv1", {})])
    assert chains.in_double(first, done.uses) < chains.DOUBLE
    wrong = rewrite(first, [Application("prune.keep", "body.conv1", {"keep": (0, 1)})])
    assert chains.in_double(first, wrong.uses) > 1e-3


GATED = """version 1
arch net {
    input image: f32[N, 1, 4, 4]
    flat = image |> flatten
    fc   = flat |> linear(10)
    gate = parameter([1])
    new  = fc |> rms_norm
    sub  = new - fc
    mul  = gate * sub
    output logits = end: (fc + mul)
}
"""


def test_an_output_of_which_nothing_is_left_names_what_it_hands_over(tmp_path: Path) -> None:
    """The gate of an output goes: its statement holds no operator any more."""
    file = tmp_path / "net.arch"
    file.write_text(GATED)
    network = archir.load(file).init(0)
    assert network.weights is not None
    shut = {p: 0 * w if p.startswith("gate") else w for p, w in network.weights.items()}
    back = network.with_weights(shut, "train", {}).rewrite("remove.gate", "end")
    assert "norm" not in back.text
    assert "output logits = fc\n" in back.text


def test_rules_are_parsed_once() -> None:
    """Loading many networks reads the library once; other operators have another."""
    ops = installed_ops()
    assert installed(ops)["widen"] is installed(ops)["widen"]
