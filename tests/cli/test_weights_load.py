"""`archir weights load`: other programs' checkpoints, taken whole or refused with a report."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.diag import ArchirError
from archir.loading import load_checkpoint
from archir.ops.arithmetic import Array
from archir.weights.store import load_weights, save_weights

torch = pytest.importorskip("torch")
Archir = Callable[..., Any]
TEXT = """version 1
arch net(classes = 10, size = 8) {
    input image: f32[N, 1, size, size]
    stem = image |> conv: conv(4, 3, bias = false) |> bn: batch_norm |> relu
    body = stem |> conv1: conv(4, 3, bias = false) |> conv2: conv(4, 3, bias = false)
    output logits = body |> global_avg_pool |> fc: linear(classes)
}
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.arch").write_text(TEXT)
    return tmp_path / "net.arch"


def tensors(net: Path, seed: int = 5, **params: int) -> dict[str, Array]:
    """Weights for the network, as a state dict has them."""
    found = package.load(net, params=params, ignore_weights=True).init(seed, random_statistics=True)
    assert found.weights is not None
    return dict(found.weights)


def torch_file(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def state(weights: dict[str, Array], prefix: str = "") -> dict[str, Any]:
    return {prefix + path: torch.from_numpy(array.copy()) for path, array in weights.items()}


def load(archir: Archir, net: Path, checkpoint: Path, *words: object) -> Any:
    return archir("weights", "load", net, "--from", checkpoint, *words, "--json")


def same(net: Path, wanted: dict[str, Array]) -> bool:
    found = load_weights(net.with_suffix(".safetensors"))
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[path], array) and found[path].dtype == array.dtype
        for path, array in wanted.items()
    )


# ---- formats


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["net.pth", "net.bin", "net.pth.tar"])
def test_files_of_torch(archir: Archir, net: Path, name: str, zipped: bool) -> None:
    wanted = tensors(net)
    content = {"epoch": 3, "state_dict": state(wanted), "optimizer": {"state": {0: {}}}}
    file = torch_file(net.with_name(name), content, _use_new_zipfile_serialization=zipped)
    answer = load(archir, net, file)
    assert answer.status == 0
    assert same(net, wanted)
    found = answer.document
    assert found["source"]["entry"] == "state_dict"
    assert found["source"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["loaded"] == len(wanted)
    step = json.loads(net.with_suffix(".cert.json").read_text())["steps"][-1]
    assert step["kind"] == "load"
    assert step["source"] == found["source"]
    assert archir("verify", net).status == 0


def test_a_safetensors_file(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    save_weights(net.with_name("other.safetensors"), wanted)
    out = net.with_name("out.arch")
    assert load(archir, net, net.with_name("other.safetensors"), "-o", out).status == 0
    assert same(out, wanted)
    assert out.read_text() == TEXT
    assert not net.with_suffix(".safetensors").exists()
    assert archir("verify", out).status == 0


def test_nothing_is_replaced(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    file = torch_file(net.with_name("a.pth"), state(wanted))
    assert load(archir, net, file).status == 0
    first = net.with_suffix(".safetensors").read_bytes()
    answer = load(archir, net, torch_file(net.with_name("b.pth"), state(tensors(net, 6))))
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A603")
    assert net.with_suffix(".safetensors").read_bytes() == first
    assert load(archir, net, net.with_name("b.pth"), "--force").status == 0
    assert same(net, tensors(net, 6))
    assert archir("verify", net).status == 0  # the chain goes on: its first step is kept
    steps = json.loads(net.with_suffix(".cert.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["load", "load"]


def test_a_rewritten_network_keeps_its_chain(archir: Archir, net: Path) -> None:
    assert archir("weights", "init", net).status == 0
    grown = net.with_name("grown.arch")
    assert archir("rewrite", net, "--rule", "deepen@stem.relu", "-o", grown).status == 0
    file = torch_file(net.with_name("a.pth"), state(tensors(grown)))
    assert load(archir, grown, file, "--force").status == 0
    assert archir("verify", grown).status == 0
    steps = json.loads(grown.with_suffix(".cert.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["init", "rewrite", "load"]


# ---- which state dict


def test_several_state_dicts(archir: Archir, net: Path) -> None:
    model, ema = tensors(net, 1), tensors(net, 2)
    content = {"model": state(model), "ema": {"module": state(ema, "module.")}, "step": 7}
    file = torch_file(net.with_name("a.pth"), content)
    answer = load(archir, net, file)
    assert answer.status == 2
    (problem,) = answer.document["diagnostics"]
    assert problem["code"] == "A628"
    assert "model (10 tensors, keys for 10 of 10 parameters)" in problem["message"]
    assert "ema.module (10 tensors" in problem["message"]
    assert load(archir, net, file, "--entry", "model").status == 0
    assert same(net, model)
    for entry in ("ema.module", "module"):
        assert load(archir, net, file, "--entry", entry, "--force").status == 0
        assert same(net, ema)
    answer = load(archir, net, file, "--entry", "best", "--force")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A628")


def test_what_has_no_keys_of_the_network_is_left_aside(archir: Archir, net: Path) -> None:
    moments = {0: {"exp_avg": torch.zeros(3)}}
    content = {"model": state(tensors(net)), "optimizer": {"state": moments}}
    answer = load(archir, net, torch_file(net.with_name("a.pth"), content))
    assert answer.status == 0
    assert answer.document["source"]["entry"] == "model"
    assert answer.document["other_entries"] == ["optimizer.state.0"]


# ---- keys


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "module._orig_mod.m."])
def test_a_prefix_is_found_and_said(archir: Archir, net: Path, prefix: str) -> None:
    wanted = tensors(net)
    file = torch_file(net.with_name("a.pth"), state(wanted, prefix))
    answer = archir("weights", "load", net, "--from", file)
    assert answer.status == 0
    assert f"prefix `{prefix}` taken from the keys" in answer.out
    assert same(net, wanted)


def test_a_prefix_that_the_network_has(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    inner = {p.removeprefix("body."): a for p, a in wanted.items() if p.startswith("body.")}
    rest = {p: a for p, a in wanted.items() if not p.startswith("body.")}
    answer = load(archir, net, torch_file(net.with_name("a.pth"), state({**rest, **inner})))
    assert answer.status == 0
    assert answer.document["prefix"] == {"removed": "", "added": "body."}
    assert same(net, wanted)


def test_prefixes_that_fit_equally_well(archir: Archir, net: Path) -> None:
    one, two = tensors(net, 1), tensors(net, 2)
    content = {**state(one, "student."), **state(two, "teacher.")}
    file = torch_file(net.with_name("a.pth"), content)
    answer = load(archir, net, file)
    (problem,) = answer.document["diagnostics"]
    assert (answer.status, problem["code"]) == (2, "A629")
    assert "`student.`, `teacher.`" in problem["message"]
    words = ("--map", r"^teacher\.=", "--ignore", "student.*")
    assert load(archir, net, file, *words).status == 0
    assert same(net, two)


def test_a_key_map(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    foreign = {re.sub(r"^stem\.(\w+)", r"layers.0-\1", p): a for p, a in wanted.items()}
    foreign = {p.replace("fc.", "head.fc."): a for p, a in foreign.items()}
    file = torch_file(net.with_name("a.pth"), state(foreign))
    lines = [r"^layers\.0-(\w+)=stem.\1", r"^head\.="]
    answer = load(archir, net, file, "--map", lines[0], "--map", lines[1])
    assert answer.status == 0
    assert [line["keys"] for line in answer.document["map"]] == [6, 2]
    assert same(net, wanted)
    (net.parent / "map.txt").write_text("# to here\n" + "\n".join(lines) + "\n")
    (net.parent / "map.json").write_text(json.dumps(dict(m.rsplit("=", 1) for m in lines)))
    for name in ("map.txt", "map.json"):
        net.with_suffix(".safetensors").unlink()
        net.with_suffix(".cert.json").unlink()
        assert load(archir, net, file, "--map-file", net.parent / name).status == 0
        assert same(net, wanted)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stem.conv", "is not REGEX=REPLACEMENT"),
        ("(=x", "missing )"),
        (r"conv=\2", "invalid group reference"),
        (r"conv\d=conv", "of `body.conv1.weight` and of `body.conv2.weight`"),
    ],
)
def test_key_maps_that_do_not_work(archir: Archir, net: Path, line: str, said: str) -> None:
    file = torch_file(net.with_name("a.pth"), state(tensors(net)))
    answer = load(archir, net, file, "--map", line)
    (problem,) = answer.document["diagnostics"]
    assert (answer.status, problem["code"]) == (2, "A629")
    assert said in problem["message"]


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
def test_map_files_that_are_none(archir: Archir, net: Path, content: str) -> None:
    file = torch_file(net.with_name("a.pth"), state(tensors(net)))
    (net.parent / "map.json").write_text(content)
    answer = load(archir, net, file, "--map-file", net.parent / "map.json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A629")


# ---- what does not fit


def test_missing_and_unexpected(archir: Archir, net: Path) -> None:
    found = tensors(net)
    found["body.conv_2.weight"] = found.pop("body.conv2.weight")
    file = torch_file(net.with_name("a.pth"), state(found))
    answer = load(archir, net, file)
    assert answer.status == 1
    assert answer.document["missing"] == {"body.conv2.weight": "body.conv_2.weight"}
    assert answer.document["unexpected"] == ["body.conv_2.weight"]
    assert answer.document["match_shape_would_pair"] == 1
    assert not net.with_suffix(".safetensors").exists()
    told = archir("weights", "load", net, "--from", file)
    assert "error[A634]: a.pth does not fit net: 1 missing, 1 unexpected" in told.err
    missing = "missing  body.conv2.weight: f32[4, 4, 3, 3]; did you mean `body.conv_2.weight`?"
    assert missing in told.out
    assert "nothing was written" in told.out


def test_partial(archir: Archir, net: Path) -> None:
    wanted, drawn = tensors(net), tensors(net, 9)
    some = {p: a for p, a in wanted.items() if not p.startswith("fc")}
    file = torch_file(net.with_name("a.pth"), state({**some, "extra": wanted["fc.bias"]}))
    answer = load(archir, net, file, "--partial", "--init", 9)
    assert answer.status == 0
    assert answer.document["initialised"] == ["fc.weight", "fc.bias"]
    assert answer.document["ignored"] == ["extra"]
    assert same(net, {p: some.get(p, drawn[p]) for p in wanted})


def test_a_larger_network_s_checkpoint_is_no_checkpoint_of_this(archir: Archir, net: Path) -> None:
    """All that the network needs is there, and it would compute nothing of what was trained."""
    found = tensors(net)
    found["body.conv3.weight"] = found["body.conv2.weight"]
    file = torch_file(net.with_name("a.pth"), state(found))
    answer = load(archir, net, file)
    assert answer.status == 1
    assert answer.document["missing"] == {}
    assert answer.document["unexpected"] == ["body.conv3.weight"]
    assert load(archir, net, file, "--ignore", "*.conv3.*").status == 0


def test_nothing_in_common(archir: Archir, net: Path) -> None:
    file = torch_file(net.with_name("a.pth"), {"x": torch.zeros(2)})
    for words in ((), ("--partial",)):
        answer = load(archir, net, file, *words)
        assert answer.status == 1
        assert answer.document["diagnostics"][0]["code"] == "A634"
    with pytest.raises(ArchirError) as failure:
        load_checkpoint(package.load(net), file)
    assert failure.value.status == 1
    assert "the checkpoint lacks `stem.conv.weight`" in str(failure.value)


def test_matching_in_order_is_offered_and_listed(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    foreign = {}
    for number, (path, array) in enumerate(wanted.items()):
        foreign[f"layer_{number}.{path.rpartition('.')[2]}"] = array
    file = torch_file(net.with_name("a.pth"), state(foreign))
    answer = archir("weights", "load", net, "--from", file)
    assert answer.status == 1
    assert "--match shape pairs 9 of them in order of equal shapes" in answer.out
    answer = archir("weights", "load", net, "--from", file, "--match", "shape", "--partial")
    assert answer.status == 0
    pairs = re.findall(r"by order: (\S+) <- (\S+)", answer.out)
    assert len(pairs) == 9  # the counter of batches is set to zero
    assert ("stem.bn.running_mean", "layer_3.running_mean") in pairs
    assert same(net, {**wanted, "stem.bn.num_batches_tracked": np.zeros((), np.int64)})


def test_other_numbers_of_one_shape_are_not_paired(archir: Archir, net: Path) -> None:
    foreign = {f"w{n}": a for n, a in enumerate(tensors(net).values()) if a.shape != (4, 4, 3, 3)}
    file = torch_file(net.with_name("a.pth"), state({**foreign, "v": np.zeros((4, 4, 3, 3), "f4")}))
    answer = load(archir, net, file, "--match", "shape")
    assert answer.status == 1
    assert set(answer.document["missing"]) == {"body.conv1.weight", "body.conv2.weight"}


def test_an_old_checkpoint_counts_no_batches(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    old = {p: a for p, a in wanted.items() if "num_batches" not in p}
    answer = load(archir, net, torch_file(net.with_name("a.pth"), state(old)))
    assert answer.status == 0
    assert answer.document["zeroed"] == ["stem.bn.num_batches_tracked"]
    assert same(net, {**wanted, "stem.bn.num_batches_tracked": np.zeros((), np.int64)})


# ---- element types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_floats_are_cast_and_said(archir: Archir, net: Path, dtype: str, suffix: str) -> None:
    short = {"float16": "f16", "bfloat16": "bf16", "float64": "f64"}[dtype]
    kind = getattr(torch, dtype)
    held = {p: t.to(kind) if t.is_floating_point() else t for p, t in state(tensors(net)).items()}
    file = net.with_name("a" + suffix)
    if suffix == ".pth":
        torch_file(file, held)
    else:
        pytest.importorskip("safetensors.torch").save_file(held, file)
    answer = load(archir, net, file)
    assert answer.status == 0
    assert list(answer.document["cast"]) == [f"{short} -> f32"]
    assert len(answer.document["cast"][f"{short} -> f32"]) == 9
    assert same(net, {p: t.to(torch.float32).numpy() if t.is_floating_point() else t.numpy()
                      for p, t in held.items()})  # fmt: skip


def test_values_beyond_the_element_type(archir: Archir, net: Path) -> None:
    found = state(tensors(net))
    found["fc.bias"] = torch.full((10,), 1e300, dtype=torch.float64)
    answer = load(archir, net, torch_file(net.with_name("a.pth"), found))
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A636")
    assert not net.with_suffix(".safetensors").exists()


def test_kinds_of_numbers_are_not_mixed(archir: Archir, net: Path) -> None:
    found = state(tensors(net))
    found["fc.bias"] = torch.zeros(10, dtype=torch.int32)
    answer = load(archir, net, torch_file(net.with_name("a.pth"), found))
    assert answer.status == 1
    (wrong,) = answer.document["wrong_dtype"]
    assert (wrong["network"], wrong["checkpoint"]) == ("f32[10]", "i32[10]")


def test_values_that_are_no_numbers_are_said(archir: Archir, net: Path) -> None:
    found = state(tensors(net))
    found["fc.bias"][3] = float("nan")
    answer = load(archir, net, torch_file(net.with_name("a.pth"), found))
    assert answer.status == 0
    assert answer.document["not_finite"] == ["fc.bias"]


# ---- another head, another size


def test_another_head(archir: Archir, net: Path) -> None:
    wanted = tensors(net)
    file = torch_file(net.with_name("a.pth"), state(wanted))
    out = net.with_name("out.arch")
    answer = load(archir, net, file, "--param", "classes=3", "-o", out)
    assert answer.status == 1
    shapes = [(w["network"], w["checkpoint"]) for w in answer.document["wrong_shape"]]
    assert shapes == [("f32[3, 4]", "f32[10, 4]"), ("f32[3]", "f32[10]")]
    assert "--replace-head" in answer.document["wrong_shape"][0]["hint"]
    words = ("--param", "classes=3", "--replace-head", "--init", 4, "-o", out)
    answer = load(archir, net, file, *words)
    assert answer.status == 0
    assert answer.document["drawn"] == ["fc.weight", "fc.bias"]
    drawn = tensors(net, 4, classes=3)
    fresh = {p: drawn[p] if p.startswith("fc") else a for p, a in wanted.items()}
    fresh["fc.bias"] = load_weights(out.with_suffix(".safetensors"))["fc.bias"]
    assert same(out, fresh)
    graph = package.load(out).graph
    assert str(graph.type_of(graph.outputs[0].value)) == "f32[N, 3]"
    assert archir("verify", out).status == 0


def test_fresh_parameters(archir: Archir, net: Path) -> None:
    file = torch_file(net.with_name("a.pth"), state(tensors(net)))
    answer = load(archir, net, file, "--fresh", "body.conv?.weight", "--init", 2)
    assert answer.status == 0
    assert answer.document["drawn"] == ["body.conv1.weight", "body.conv2.weight"]
    answer = load(archir, net, file, "--fresh", "body.conv3.weight", "--force")
    (problem,) = answer.document["diagnostics"]
    assert (answer.status, problem["code"]) == (2, "A609")
    assert "body.conv" in problem["hint"]


VIT = """version 1
arch vit(size = 8) {
    input image: f32[N, 1, size, size]
    let side = size // 2
    tokens = image |> patch: conv(4, 2, 2, padding = 0) |> flatten(2) |> transpose(1, 2)
    param cls: f32[1, 1, 4]
    param pos: f32[1, side * side + 1, 4]
    rows = expand(cls, tokens, axis = 0)
    joined = concat(rows, tokens, axis = 1)
    output logits = (joined + pos) |> mean([1]) |> fc: linear(3)
}
"""


def test_positions_of_another_size(archir: Archir, net: Path) -> None:
    net.write_text(VIT)
    wanted = tensors(net)
    file = torch_file(net.with_name("a.pth"), state(wanted))
    out = net.with_name("out.arch")
    words = ("--param", "size=16", "-o", out)
    answer = load(archir, net, file, *words)
    assert answer.status == 1
    (wrong,) = answer.document["wrong_shape"]
    assert (wrong["network"], wrong["checkpoint"]) == ("f32[1, 65, 4]", "f32[1, 17, 4]")
    assert "--interpolate pos" in wrong["hint"]
    answer = load(archir, net, file, *words, "--interpolate", "pos")
    assert answer.status == 0
    grid = {"axis": 1, "rows": 1, "old": [4, 4], "new": [8, 8]}
    assert answer.document["interpolated"] == {"pos": grid}
    found = load_weights(out.with_suffix(".safetensors"))["pos"]
    assert np.array_equal(found[:, 0], wanted["pos"][:, 0])
    planes = torch.from_numpy(wanted["pos"][:, 1:].copy()).transpose(1, 2).reshape(1, 4, 4, 4)
    resized = torch.nn.functional.interpolate(planes, (8, 8), mode="bicubic")
    assert np.array_equal(found[:, 1:], resized.flatten(2).transpose(1, 2).numpy())


def test_positions_that_are_no_square_grid(archir: Archir, net: Path) -> None:
    net.write_text(VIT)
    found = tensors(net)
    found["pos"] = found["pos"][:, :13]
    file = torch_file(net.with_name("a.pth"), state(found))
    answer = load(archir, net, file, "--param", "size=16", "--interpolate", "pos")
    (problem,) = answer.document["diagnostics"]
    assert (answer.status, problem["code"]) == (2, "A635")


# ---- constants


CONSTANT = """version 1
arch net {
    input x: f32[N, 3, 6]
    attn.index = parameter([2, 4], dtype = i64, persistent = false)
    fc = x |> linear(5)
    output y = fc |> gather(attn.index, axis = 2) |> flatten(2)
}
"""


def test_constants_are_the_network_s_own(archir: Archir, net: Path) -> None:
    net.write_text(CONSTANT)
    index = np.arange(8).reshape(2, 4) % 5
    given = {"fc.weight": np.full((5, 6), 2, "f4"), "fc.bias": np.ones(5, "f4")}
    file = torch_file(net.with_name("a.pth"), state({**given, "attn.index": index[::-1]}))
    answer = load(archir, net, file)
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, "A140")
    zeros = {path: np.zeros_like(array) for path, array in given.items()}
    save_weights(net.with_suffix(".safetensors"), {**zeros, "attn.index": index})
    out = net.with_name("out.arch")
    answer = load(archir, net, file, "-o", out)
    assert answer.status == 0
    assert answer.document["kept"] == ["attn.index"]
    assert same(out, {**given, "attn.index": index})
    assert archir("verify", out).status == 0
