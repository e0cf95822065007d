"""`rewrite --refit` and `verify --calibrate`: fits are told, kept, and done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.weights.store import load_weights

pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[2] / "examples"
REFIT = ("--calibrate", "digits", "--refit")
Archir = Callable[..., Any]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with initial weights, its statistics far from 0 and 1."""
    file = tmp_path_factory.mktemp("start") / "net.arch"
    network = package.load(EXAMPLES / "digits.arch").init(0, random_statistics=True)
    return network.save(file)


@pytest.fixture
def net(start: Path, tmp_path: Path) -> Path:
    for file in start.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "net.arch"


def refit(archir: Archir, net: Path, *words: object) -> tuple[Path, Any]:
    out = net.with_name("out.arch")
    answer = archir("rewrite", net, *words, *REFIT, "-o", out, "--force", "--json")
    assert answer.status == 0, answer.out
    return out, answer.document


def test_each_replacement_is_fit_and_both_are_steps(archir: Archir, net: Path) -> None:
    rules = ("--rule", "conv.separable@tail.conv", "--rule", "conv.low_rank@body.conv1")
    out, document = refit(archir, net, *rules, "--set", "rank=4")
    fits = document["refit"]
    assert [fit["layer"] for fit in fits] == ["tail.conv", "body.conv1"]
    assert all(0 < fit["after"] < fit["before"] for fit in fits)
    assert [fit["recovered"] for fit in fits] == [1 - f["after"] / f["before"] for f in fits]
    assert all((fit["fitted"], fit["held_out"]) == (768, 256) for fit in fits)
    steps = json.loads(out.with_suffix(".cert.json").read_text())["steps"]
    assert [s["kind"] for s in steps] == ["init", *["rewrite", "calibrate"] * 2]
    plain = archir("rewrite", net, *rules, "--set", "rank=4", "-o", net.with_name("plain.arch"))
    assert plain.status == 0
    one, two = (load_weights(net.with_name(f"{n}.safetensors")) for n in ("out", "plain"))
    assert {p for p in one if not np.array_equal(one[p], two[p])} == {
        "tail.conv.weight", "body.conv1.weight",
    }  # fmt: skip


def test_a_fit_is_attested_and_with_its_data_done_again(archir: Archir, net: Path) -> None:
    out, _ = refit(archir, net, "--rule", "conv.separable@tail.conv", "--seed", "3")
    attested = archir("verify", out, "--json")
    assert attested.status == 0
    found = {f["subject"]: f["how"] for f in attested.document["findings"]}
    assert found["step 3: calibrate"] == "attested"
    again = archir("verify", out, "--calibrate", "digits", "--json")
    assert again.status == 0
    last = [f for f in again.document["findings"] if f["subject"] == "step 3: calibrate"][-1]
    assert (last["how"], last["holds"], last["detail"]) == ("replay", True, "bit for bit")


def test_other_data_do_not_verify(archir: Archir, net: Path) -> None:
    out, _ = refit(archir, net, "--rule", "conv.separable@tail.conv")
    rng = np.random.Generator(np.random.PCG64(0))
    images = rng.random((1500, 1, 8, 8), dtype=np.float32)
    np.savez(net.with_name("other.npz"), x=images, y=np.arange(1500) % 10)
    answer = archir("verify", out, "--calibrate", net.with_name("other.npz"), "--json")
    assert answer.status == 1
    (wrong,) = (f for f in answer.document["findings"] if not f["holds"])
    assert wrong["detail"] == "these are not the images that were fit to"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda step: step["fits"][0].update(after=0.001), "what was recovered"),
        (lambda step: step.update(count="many"), "malformed"),
        (lambda step: step.update(fits=[]), "what was recovered"),
        (lambda step: step.pop("batch"), "malformed"),
    ],
)
def test_a_certificate_that_tells_of_another_fit(
    archir: Archir, net: Path, change: Callable[[Any], Any], says: str
) -> None:
    """Its digests are right, as those of whoever writes certificates by hand may be."""
    from archir.proof.certificate import Certificate

    out, _ = refit(archir, net, "--rule", "conv.separable@tail.conv")
    held = package.load(out)
    steps = held.certificate.steps
    facts = json.loads(json.dumps(dict(steps[-1].facts)))
    change(facts)
    forged = Certificate(steps[:-1], (), held.certificate.params)
    forged = forged.then("calibrate", steps[-1].after, held.graph, facts)
    out.with_suffix(".cert.json").write_text(forged.to_json())
    answer = archir("verify", out, "--calibrate", "digits", "--json")
    assert answer.status == 1
    (wrong,) = (f for f in answer.document["findings"] if not f["holds"])
    assert says in wrong["detail"]


def test_what_cannot_be_fit_is_told_and_is_no_step(archir: Archir, net: Path) -> None:
    out = net.with_name("out.arch")
    answer = archir("rewrite", net, "--rule", "nat.conv_to_avg", *REFIT, "-o", out)
    assert answer.status == 0, answer.out
    assert "not refit, what makes it is `avg_pool`, which has no weights" in answer.out
    steps = json.loads(out.with_suffix(".cert.json").read_text())["steps"]
    assert [s["kind"] for s in steps] == ["init", "rewrite"]


def test_a_refit_wants_data_and_weights(archir: Archir, net: Path) -> None:
    words = ("rewrite", net, "--rule", "conv.separable@tail.conv", "--dry-run", "--refit")
    answer = archir(*words, "--json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A609")
    net.with_suffix(".safetensors").unlink()
    answer = archir(*words, "--calibrate", "digits", "--json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A600")


def test_limits_are_those_of_the_whole(archir: Archir, net: Path) -> None:
    rules = ("--rule", "conv.separable@tail.conv", "--rule", "conv.separable@body.conv1")
    _, document = refit(archir, net, *rules)
    last = document["params"][1]
    assert refit(archir, net, *rules, "--max-params", last)[1]["params"][1] == last
    out = net.with_name("never.arch")
    answer = archir("rewrite", net, *rules, *REFIT, "--max-params", last - 1, "-o", out, "--json")
    assert answer.document["diagnostics"][0]["code"] == "A312"
    assert not out.exists()
