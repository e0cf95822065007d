"""The options of `archir rewrite`: where, what with, in what order, by whose rules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.ops import STANDARD
from archir.ops.arithmetic import Floating
from archir.ops.evaluate import run as evaluate
from archir.weights.store import load_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]


@pytest.fixture
def net(archir: Archir, tmp_path: Path) -> Path:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert archir("weights", "init", file, "--random-statistics").status == 0
    return file


def rewrite(archir: Archir, net: Path, *words: object) -> Any:
    """A rewrite that succeeds, into out.arch, which is verified; its document."""
    out = net.with_name("out.arch")
    answer = archir("rewrite", net, *words, "-o", out, "--force", "--json")
    assert answer.status == 0, answer.out
    assert archir("verify", out).status == 0
    return answer.document


def sites(document: Any) -> list[str]:
    return [f"{use['rule']}@{use['site']}" for use in document["uses"]]


# ---- sites


def test_all(archir: Archir, net: Path) -> None:
    found = rewrite(archir, net, "--rule", "deepen", "--at", "all")
    wanted = archir("rules", net, "--rule", "deepen", "--json").document["sites"]
    assert sites(found) == [site["site"] for site in wanted]
    assert len(wanted) == 4


def test_a_glob(archir: Archir, net: Path) -> None:
    found = rewrite(archir, net, "--rule", "deepen", "--at", "body.*")
    assert sites(found) == ["deepen@body.relu1", "deepen@body.relu2"]


def test_the_end_of_a_path(archir: Archir, net: Path) -> None:
    assert sites(rewrite(archir, net, "--rule", "deepen", "--at", "tail")) == ["deepen@tail.relu"]
    found = rewrite(archir, net, "--rule", "widen@conv1", "--set", "width=18")
    assert [use["site"] for use in found["uses"]] == ["body.conv1"]


def test_random_sites_follow_the_seed(archir: Archir, net: Path) -> None:
    found = [
        sites(rewrite(archir, net, "--rule", "deepen", "--at", "random", "--seed", seed))
        for seed in range(8)
    ]
    again = rewrite(archir, net, "--rule", "deepen", "--at", "random", "--seed", 5)
    assert sites(again) == found[5]
    assert len({site for (site,) in found}) > 1


def test_the_seed_decides_which_channels_are_copied(archir: Archir, net: Path) -> None:
    made = []
    for seed in (1, 2, 1):
        rewrite(archir, net, "--rule", "widen@stem.conv", "--set", "width=30", "--seed", seed)
        made.append(load_weights(net.with_name("out.safetensors"))["stem.conv.weight"])
    assert made[0].tobytes() == made[2].tobytes() != made[1].tobytes()
    old = load_weights(net.with_suffix(".safetensors"))["stem.conv.weight"]
    assert np.array_equal(made[0][:16], old)


# ---- several rules


def test_several_rules_are_one_step(archir: Archir, net: Path) -> None:
    words = ("--rule", "widen@stem.conv", "--rule", "deepen@stem.relu", "--set", "widen.width=20")
    found = rewrite(archir, net, *words, "--set", "deepen.kernel=5")
    assert sites(found) == ["widen@stem.conv", "deepen@stem.relu"]
    assert [use["arguments"] for use in found["uses"]] == [{"width": 20}, {"kernel": 5}]
    steps = archir("verify", net.with_name("out.arch"), "--json").document["findings"]
    assert sum(f["subject"].startswith("step 2: rewrite") for f in steps) == 1


def test_a_setting_goes_to_the_rules_that_know_it(archir: Archir, net: Path) -> None:
    words = ("--rule", "deepen@stem.relu", "--rule", "widen@stem.conv", "--set", "width=20")
    found = rewrite(archir, net, *words)
    assert [use["arguments"] for use in found["uses"]] == [{"kernel": 3}, {"width": 20}]


def test_a_script(archir: Archir, net: Path) -> None:
    script = net.with_name("grow.txt")
    script.write_text(
        "# wider, then deeper\nwiden@fc1 width=40\n\ndeepen@tail.relu kernel=1 # 1x1\n"
    )
    found = rewrite(archir, net, "--script", script)
    assert sites(found) == ["widen@fc1", "deepen@tail.relu"]
    assert [use["arguments"] for use in found["uses"]] == [{"width": 40}, {"kernel": 1}]


@pytest.mark.parametrize(
    "line", ["widen@fc1 width", "widen@fc1 =40", "nothing@fc1", "widen@fc1 40"]
)
def test_a_script_with_a_mistake(archir: Archir, net: Path, line: str) -> None:
    script = net.with_name("grow.txt")
    script.write_text(f"deepen@tail.relu\n{line}\n")
    before = sorted(net.parent.iterdir())
    answer = archir("rewrite", net, "--script", script, "-o", net.with_name("out.arch"), "--json")
    assert answer.status == 2
    (found,) = answer.document["diagnostics"]
    assert found["code"] in ("A604", "A609")
    assert found["code"] == "A604" or found["message"].startswith(f"{script}:2: ")
    assert sorted(net.parent.iterdir()) == before


def test_a_rule_applied_to_what_another_made(archir: Archir, net: Path) -> None:
    found = rewrite(archir, net, "--rule", "deepen@stem.relu", "--rule", "deepen@stem.relu1")
    assert sites(found) == ["deepen@stem.relu", "deepen@stem.relu1"]
    assert found["drift"]["value"] < 1e-5


# ---- weights and parameters


def test_without_weights_the_text_alone(archir: Archir, tmp_path: Path) -> None:
    bare = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "bare.arch"))
    out = tmp_path / "out.arch"
    answer = archir("rewrite", bare, "--rule", "deepen@stem.relu", "-o", out)
    assert answer.status == 0
    assert "no weights: the text alone was rewritten" in answer.out
    assert not out.with_suffix(".safetensors").exists()
    assert archir("verify", out).status == 0
    assert archir("export", out, "-o", tmp_path / "net.onnx").status == 2
    assert archir("export", out, "-o", tmp_path / "net.onnx", "--init", 0).status == 0


def test_weights_from_elsewhere(archir: Archir, net: Path) -> None:
    bare = Path(shutil.copy(EXAMPLES / "digits.arch", net.with_name("bare.arch")))
    words = ("--rule", "deepen@stem.relu", "--weights", net.with_suffix(".safetensors"))
    found = rewrite(archir, bare, *words)
    assert found["weights"]
    old, new = load_weights(words[3]), load_weights(net.with_name("out.safetensors"))
    assert all(new[path].tobytes() == old[path].tobytes() for path in old)


def test_weights_and_init_exclude_each_other(archir: Archir, net: Path) -> None:
    words = ("--weights", net.with_suffix(".safetensors"), "--init", 1)
    assert archir("rewrite", net, "--rule", "deepen@stem.relu", "--dry-run", *words).status == 2


def test_parameters_of_the_arch_are_remembered(archir: Archir, tmp_path: Path) -> None:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert archir("weights", "init", file, "--param", "classes=7").status == 0
    out = tmp_path / "out.arch"
    assert archir("rewrite", file, "--rule", "deepen@stem.relu", "-o", out).status == 0
    for one in (file, out):
        (found,) = archir("check", one, "--json").document["files"]
        assert found["outputs"] == {"logits": "f32[N, 7]"}
        assert archir("verify", one).status == 0
    assert load_weights(out.with_suffix(".safetensors"))["fc2.bias"].shape == (7,)
    answer = archir(
        "rewrite", out, "--rule", "deepen@tail.relu", "--param", "classes=9", "--dry-run"
    )
    assert answer.status == 2
    assert archir("weights", "init", out, "--force").status == 0
    assert load_weights(out.with_suffix(".safetensors"))["fc2.bias"].shape == (7,)


@pytest.mark.parametrize(
    "value", ["clases=7", "classes=many", "classes", "classes=0", "classes=1.5"]
)
def test_wrong_parameters_of_the_arch(archir: Archir, net: Path, value: str) -> None:
    answer = archir("check", net, "--param", value, "--json")
    assert answer.status == 2
    assert "A901" not in answer.out


def test_calibration_moves_the_statistics(archir: Archir, net: Path) -> None:
    words = ("--rule", "deepen.batch_norm@stem.relu")
    rewrite(archir, net, *words)
    plain = load_weights(net.with_name("out.safetensors"))
    found = rewrite(archir, net, *words, "--calibrate", "digits")
    measured = load_weights(net.with_name("out.safetensors"))
    assert found["uses"][0]["calibration"]["count"] == 1024
    assert found["drift"]["value"] < 1e-5
    assert not plain["stem.new_bn.running_mean"].any()
    assert (measured["stem.new_bn.running_mean"] > 0).any()
    assert np.allclose(
        measured["stem.new_bn.weight"] ** 2, measured["stem.new_bn.running_var"] + 1e-5, rtol=1e-5
    )


def test_fmt_says_that_a_certificate_was_for_another_layout(archir: Archir, net: Path) -> None:
    assert archir("fmt", net).out == "1 of 1 files unchanged\n"
    net.write_text(net.read_text().replace("input image", "input   image"))
    answer = archir("fmt", net)
    assert answer.out.startswith(f"{net}: formatted; net.cert.json is for the layout before\n")
    assert archir("verify", net).status == 0  # it is the layout it had at first


# ---- rules of the user's

MINE = """
rule enlarge() {
    "Let a convolution see two more pixels on each axis, which count for nothing."
    preserves function in eval, train
    match   { y = x |> c: conv(o, k, dilation = 1) |> relu }      where rank(x) == 4
    replace { y = x |> c: conv(o, k + 2, padding = c.padding + 1) |> relu }
    weights { c.weight = pad(c.weight, 1) }
}
rule double() {
    "Two ReLUs are one."
    preserves function in eval, train
    match   { y = relu(x) }
    replace { y = relu(x) |> relu }
}
rule wrong() {
    "Not the same."
    preserves function in eval, train
    match   { y = relu(x) |> max_pool(2) }
    replace { y = relu(x) |> avg_pool(2) }
}
"""


RESPELL = """rule respell {
    "The same convolution with a larger kernel, its attributes carried along."
    preserves function in eval, train
    match   { y = x |> c: conv(out, kernel = 3) }   where c.groups == 1, rank(x) == 4
    replace { y = x |> c: conv(out, kernel = 5, padding = c.padding + 1, bias = c.bias) }
    weights { c.weight = pad(c.weight, 1) }
}
"""


def test_a_name_that_is_both_is_the_attribute_outside_weights(archir: Archir, net: Path) -> None:
    file = net.with_name("respell.rule")
    file.write_text(RESPELL)
    found = rewrite(archir, net, "--rules", file, "--rule", "respell@stem.conv")
    assert found["equal"]
    graphs = [package.load(net.with_name(name)).graph for name in (net.name, "out.arch")]
    assert [g.node("stem.conv").attrs["kernel"] for g in graphs] == [(3, 3), (5, 5)]
    assert len({g.node("stem.conv").attrs["bias"] for g in graphs}) == 1


@pytest.fixture
def mine(net: Path) -> Path:
    file = net.with_name("mine.rule")
    file.write_text(MINE)
    return file


def test_a_rule_of_the_user_s_that_adds(archir: Archir, net: Path, mine: Path) -> None:
    found = rewrite(archir, net, "--rules", mine, "--rule", "double@stem.relu")
    assert found["drift"]["value"] == 0
    assert "stem.relu1" in package.load(net.with_name("out.arch")).graph


def test_a_rule_of_the_user_s_that_changes(archir: Archir, tmp_path: Path) -> None:
    mine = tmp_path / "mine.rule"
    mine.write_text(MINE)
    file = tmp_path / "net.arch"
    file.write_text("""arch net {
    input x: f32[N, 3, 8, 8]
    # seen by three pixels
    a = x |> c: conv(8, 3) |> relu |> other: conv(4, 1)
    output y = a |> global_avg_pool |> fc: linear(4)
}
""")
    assert archir("weights", "init", file, "--seed", 3).status == 0
    found = rewrite(archir, file, "--rules", mine, "--rule", "enlarge@a.relu")
    out = package.load(tmp_path / "out.arch")
    assert found["changed_lines"] == 2
    assert "# seen by three pixels" in out.text
    assert out.weights is not None
    old = load_weights(file.with_suffix(".safetensors"))
    assert out.weights["a.c.weight"].shape == (8, 3, 5, 5)
    assert np.array_equal(out.weights["a.c.weight"][:, :, 1:4, 1:4], old["a.c.weight"])
    assert out.weights["a.c.weight"].astype(bool).sum() == old["a.c.weight"].astype(bool).sum()
    for path in ("a.c.bias", "a.other.weight", "fc.weight"):
        assert np.array_equal(out.weights[path], old[path])
    assert outputs(out) == pytest.approx(outputs(package.load(file)), abs=1e-5)


def outputs(net: package.Network) -> list[float]:
    from archir.ir.graph import Value

    assert net.weights is not None
    image = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    value = net.graph.outputs[0].value
    done = evaluate(
        net.graph, STANDARD, Floating(np.float32), {Value("x"): image}, net.weights, wanted=[value]
    )
    return [float(number) for number in np.asarray(done.values[value]).reshape(-1)]


def test_a_wrong_rule_never_runs(archir: Archir, net: Path, mine: Path) -> None:
    before = sorted(net.parent.iterdir())
    words = ("--rules", mine, "--rule", "wrong", "--at", "tail.pool", "--unproved")
    answer = archir("rewrite", net, *words, "-o", net.with_name("out.arch"), "--json")
    assert answer.status == 1
    (found,) = answer.document["diagnostics"]
    assert found["code"] in ("A310", "A401")
    assert sorted(net.parent.iterdir()) == before


def test_rules_of_the_user_s_are_listed(archir: Archir, net: Path, mine: Path) -> None:
    found = archir("rules", net, "--rules", mine, "--rule", "double", "--json").document
    assert [site["at"] for site in found["sites"]][:2] == ["stem.relu", "body.relu1"]
    assert found["rules"][0]["package"] == str(mine)
    assert "double" in archir("rules", "--rules", mine).out


@pytest.mark.parametrize(
    ("text", "code"),
    [("rule widen() { }", "A2"), ("rule x(", "A201"), ("\0", "A201"), ("", "A604")],
)
def test_rule_files_with_mistakes(archir: Archir, net: Path, text: str, code: str) -> None:
    file = net.with_name("bad.rule")
    file.write_text(text)
    answer = archir("rewrite", net, "--rules", file, "--rule", "x", "--dry-run", "--json")
    assert answer.status == 2
    assert answer.document["diagnostics"][0]["code"].startswith(code)


def test_an_absent_rule_file(archir: Archir, net: Path) -> None:
    answer = archir("rules", net, "--rules", net.with_name("absent.rule"), "--json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A607")


def test_a_network_that_reads_whole_numbers(archir: Archir, tmp_path: Path) -> None:
    """Its inputs are drawn as what they are, when outputs are compared and when it is exported."""
    net = tmp_path / "words.arch"
    net.write_text(
        "arch words {\n    input w: i64[N, 5]\n"
        "    e = w |> embedding(11, 8) |> ln: layer_norm |> fc1: linear(16) |> gelu\n"
        "    output y = e |> mean([1]) |> fc2: linear(3)\n}\n"
    )
    out = tmp_path / "wide.arch"
    words = ("--rule", "widen@e.embedding", "--set", "width=16", "--init", 0, "-o", out)
    answer = archir("rewrite", net, *words, "--json")
    assert answer.status == 0
    assert 0 < answer.document["drift"]["value"] < 1e-6
    assert archir("verify", out).status == 0
    assert archir("export", out, "-o", tmp_path / "wide.onnx").status == 0
