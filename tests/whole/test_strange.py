"""What a stranger does with networks of their own, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

import archir
from archir.cli.main import group

NETWORK = """version 1
block scaled(width, skip: tensor) {  # a block of two tensors and two results
    param gamma: f32[width, 1, 1] = 0.5  # free
    a = input |> `the conv`: conv(width, [3, 1], padding = [1, 0]) params { weight: "kernel" }
    b = skip |> cb: conv(width)
    output (a + b) * gamma, a
}

block twice(width) {
    output input |> 2 * unit(width) |> tail: unit(width)
}

block unit(width) {
    output input |> conv: conv(width, 3, bias = false) |> bn: batch_norm(affine = false) |> relu
}

arch strange(classes = 3, width = 6) {
    input `left image`: f32[N, 3, 8, 8]  # back-quoted
    input right: f32[N, 5, 8, 8]
    buffer shift: f32[6, 1, 1] = 0.25
    both, raw = scaled(`left image`, right, width)
    stem.0 = both + shift |> relu
    trunk = stem.0 |> 2 * twice(width) |> pool: max_pool(3, 2, padding = 1)
    d = trunk |> even: conv(6, 2, 2, padding = 0, weight = d.tied.weight)
              |> tied: conv(6, 2, padding = 1)
    output logits = d |> flatten |> fc1: linear(8) |> relu |> dropout(0.25) |> fc2: linear(classes)
    output map = raw |> head: conv(2, 2, [2, 1], padding = 1)
}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> archir.Network:
    file = tmp_path_factory.mktemp("strange") / "strange.arch"
    file.write_text(NETWORK, encoding="utf-8")
    return archir.load(file, params={"classes": 4}).init(3, random_statistics=True)


def feeds() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=made) for shape in ((3, 3, 8, 8), (3, 5, 8, 8))]


def outputs(net: archir.Network) -> list[np.ndarray]:
    module = net.to_torch().eval()
    with torch.no_grad():
        return [found.numpy() for found in module(*feeds())]


def close(found: list[np.ndarray], wanted: list[np.ndarray], most: float) -> bool:
    both = zip(found, wanted, strict=True)
    return all(np.abs(a - b).max() <= most * np.abs(b).max() for a, b in both)


def words(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


def test_keys_of_the_state_dict(net: archir.Network) -> None:
    keys = list(net.to_torch().state_dict())
    assert set(keys) == set(net.graph.parameters)
    assert "both.the conv.kernel" in keys
    assert "both.gamma" in keys
    assert "d.even.weight" not in keys
    assert net.graph.parameters["shift"].buffer


@pytest.mark.parametrize("opset", [17, 18, 20, 22, 26])
def test_onnx_runtime_agrees_with_torch(net: archir.Network, tmp_path: Path, opset: int) -> None:
    file = tmp_path / "strange.onnx"
    net.export(file, opset=opset)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    given = {name: feed.numpy() for name, feed in zip(names, feeds(), strict=True)}
    assert close(session.run(None, given), outputs(net), 1e-5)


def test_every_site_keeps_the_outputs_and_the_comments(net: archir.Network) -> None:
    before = outputs(net)
    growing, others = {"pad", "widen"}, {"permute", "deepen", "deepen.batch_norm"}
    sites = [site for site in net.sites() if site.rule in growing | others | {"prune"}]
    assert {site.rule for site in sites} == growing | others | {"prune"}
    assert sum(site.rule in ("widen", "deepen", "deepen.batch_norm") for site in sites) == 22
    for site in sites:
        more = {"width": (site.size or 0) + 3} if site.rule in growing else {}
        if site.rule == "prune":
            more = {"width": (site.size or 0) - 1}
        after = net.rewrite(site.rule, site.at, seed=7, **more)
        # What prune drops is read here: these weights are not zero.
        assert close(outputs(after), before, 1e-5) or site.rule == "prune", site
        assert set(words(after.text)) == set(words(net.text)), site
        assert set(net.graph.parameters) <= set(after.graph.parameters), site


@pytest.mark.parametrize("rule", ["kernel.grow", "bias.insert", "activation.prelu", "deepen.gated"])
def test_rules_on_layers_keep_the_outputs(net: archir.Network, rule: str) -> None:
    """Where no small edit of the text says what has come of it, the arch loses its parameters."""
    before = outputs(net)
    at = [site.at for site in net.sites() if site.rule == rule]
    for one in {at[0], at[-1]}:
        after = net.rewrite(rule, one, seed=7)
        assert close(outputs(after), before, 1e-5), one


def test_a_chain_is_saved_loaded_and_verified(net: archir.Network, tmp_path: Path) -> None:
    made = net.rewrite("widen", "shift", width=8).rewrite("deepen", "trunk.1.unit.0.relu")
    made = made.rewrite("widen", "trunk.1.unit.0.conv", width=11).rewrite("widen", "fc1", width=9)
    made.save(tmp_path / "after.arch")
    again = archir.load(tmp_path / "after.arch")
    assert all(finding.holds for finding in again.verify())
    assert close(outputs(again), outputs(net), 1e-5)
    assert "buffer shift: f32[8, 1, 1] = 0.25" in again.text


def test_what_python_shows(net: archir.Network, tmp_path: Path) -> None:
    assert repr(net).startswith("<Network strange: 37 nodes, 2,728 parameters, ")
    with pytest.raises(archir.ArchirError, match=r"there is no rule `widden` \(did you mean"):
        net.rewrite("widden", "fc1")
    with pytest.raises(archir.ArchirError, match="`logits` is an output; the node that gives it"):
        net.rewrite("widen", "logits", width=9)
    wrong = tmp_path / "wrong.arch"
    wrong.write_text(NETWORK.replace("|> relu |> dropout", "|> rely |> dropout"), encoding="utf-8")
    with pytest.raises(archir.ArchirError, match=r"wrong.arch:26:\d+; did you mean `relu`"):
        archir.load(wrong)


def test_a_file_that_is_missing_is_wrong_input(tmp_path: Path) -> None:
    answer = CliRunner().invoke(group, ["verify", str(tmp_path / "none.arch")])
    assert answer.exit_code == 2
    assert "A601" in answer.output
