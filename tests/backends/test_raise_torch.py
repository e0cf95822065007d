"""Modules of torch raised: exact, with their names and modes; what cannot be is refused."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from archir.backends.torch_fx.raising.archive import is_size  # noqa: E402
from torch import nn  # noqa: E402

from archir.api import Network  # noqa: E402
from archir.diag import ArchirError  # noqa: E402
from archir.importing import import_network  # noqa: E402
from archir.target import Imported, ImportOptions  # noqa: E402

USER = Path(__file__).parent / "modules.py"
"""Modules as users write them."""


def raised(name: str, **options: Any) -> tuple[Network, Imported]:
    return import_network(f"{USER}:{name}", ImportOptions(**options))


def refused(name: str) -> ArchirError:
    with pytest.raises(ArchirError) as caught:
        raised(name)
    return caught.value


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_network_keeps_its_keys_and_trains_as_its_source() -> None:
    network, found = raised("residual")
    source = _module("residual")
    lowered = network.to_torch()
    assert len(lowered.state_dict()) == 11
    assert set(lowered.state_dict()) == set(source.state_dict())
    assert found.facts["captured"] == "train"
    assert {n.op for n in network.graph} >= {"batch_norm", "dropout", "stochastic_depth"}
    lowered.load_state_dict(source.state_dict())
    x = torch.randn(4, 3, 16, 16)
    for mode in (True, False):
        torch.manual_seed(7)
        wanted = source.train(mode)(x)
        torch.manual_seed(7)
        assert torch.equal(lowered.train(mode)(x), wanted)
    for path, value in source.state_dict().items():
        assert torch.equal(lowered.state_dict()[path], value), path


def _module(name: str) -> nn.Module:
    from .modules import residual

    torch.manual_seed(0)
    assert name == "residual"
    made: nn.Module = residual()
    return made


def test_what_a_comparison_stirs_is_as_before() -> None:
    network, _ = raised("residual")
    weights = network.weights
    assert weights is not None
    for path, tensor in _module("residual").state_dict().items():
        assert (weights[path] == tensor.numpy()).all(), path


def test_ties_are_kept() -> None:
    network, _ = raised("Tied")
    assert set(network.graph.users()["a.weight"]) == {
        (node.name, "weight") for node in network.graph if node.op == "linear"
    }
    assert len(network.graph.users()["a.weight"]) == 3


def test_state_of_every_kind() -> None:
    network, _ = raised("state")
    kinds = {path: p.buffer for path, p in network.graph.parameters.items()}
    assert kinds == {"a.weight": False, "a.bias": False, "scale": True, "hid": True, "k": True}
    assert set(network.to_torch().state_dict()) == {"a.weight", "a.bias", "scale"}
    assert [str(network.graph.node(name).types[0]) for name in network.graph.inputs] == [
        "f32[N, 8]",
        "f32[N, 8]",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ValueFlow", ("values of tensors", "if x.sum() > 0:")),
        ("BatchFlow", ("size of the batch", "if x.shape[0] > 2:")),
        ("BatchLoop", ("size of the batch", "for i in range(x.shape[0])")),
        ("Item", ("values of tensors", ".item()")),
    ],
)
def test_control_flow_is_refused_with_its_line(name: str, words: tuple[str, ...]) -> None:
    failure = refused(name)
    assert failure.status == 3
    assert failure.diagnostics[0].code == "A521"
    for word in (*words, str(USER)):
        assert word in str(failure)


@pytest.mark.parametrize(
    ("name", "word"),
    [("Nonzero", "[x[:, 0] > 0]"), ("Rand", "randn_like"), ("Overwrites", "overwrites")],
)
def test_what_cannot_be_raised_names_the_call(name: str, word: str) -> None:
    failure = refused(name)
    assert (failure.diagnostics[0].code, failure.status) == ("A522", 3)
    assert word in str(failure)


def test_training_code_that_computes_something_else() -> None:
    network, found = raised("Mode")
    assert found.facts["captured"] == "eval"
    assert any("eval mode" in note for note in found.notes)
    assert [node.op for node in network.graph] == ["input", "linear", "sigmoid"]


def test_auxiliary_heads() -> None:
    failure = refused("Heads")
    assert failure.diagnostics[0].code == "A524"
    assert "`aux`" in str(failure)
    kept, _ = raised("Heads", aux="keep")
    dropped, _ = raised("Heads", aux="drop")
    assert len(kept.graph.outputs) == 2
    assert len(dropped.graph.outputs) == 1
    assert "aux.weight" in kept.graph.parameters
    assert "aux.weight" not in dropped.graph.parameters


def test_an_unknown_operator_is_carried(tmp_path: Path) -> None:
    network, found = raised("Carry")
    assert found.facts["carried"] == ["aten.special_erfcx"]
    with pytest.raises(ArchirError, match=r"aten\.special_erfcx") as caught:
        network.export(tmp_path / "net.onnx")
    assert caught.value.status == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("nothing", "A525", "int"),
        ("boom", "A525", "no weights here"),
        ("nope", "A520", "nope"),
        ("Shy", "A525", "input"),
    ],
)
def test_files_that_give_no_module(name: str, code: str, word: str) -> None:
    failure = refused(name)
    assert failure.diagnostics[0].code == code
    assert word in str(failure)


@pytest.mark.parametrize(
    "source", ["resnet18", "torchvision", "net.txt", "modules.py", "torchvision:resnet", "x:y"]
)
def test_no_such_source(source: str) -> None:
    if source.startswith("torchvision:"):
        pytest.importorskip("torchvision")
    with pytest.raises(ArchirError) as caught:
        import_network(source)
    assert caught.value.diagnostics[0].code == "A520"


# --- exported programs ---------------------------------------------------------------------


def exported(path: Path, *, train: bool = False, batch: bool = True) -> Path:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train(train)
    shapes = ({0: torch.export.Dim("b", min=1, max=64)},) if batch else None
    program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def test_exported_programs(tmp_path: Path) -> None:
    network, found = import_network(str(exported(tmp_path / "net.pt2")))
    assert [node.op for node in network.graph] == ["input", "conv", "batch_norm", "relu"]
    assert found.facts["equal"]["batches"] == [1, 3]
    fixed, found = import_network(str(exported(tmp_path / "fixed.pt2", batch=False)))
    assert str(fixed.graph.node(fixed.graph.inputs[0]).types[0]) == "f32[2, 3, 8, 8]"
    assert found.facts["equal"]["batches"] == [2]


def test_a_program_of_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchirError, match="training mode") as caught:
        import_network(str(exported(tmp_path / "net.pt2", train=True)))
    assert caught.value.diagnostics[0].code == "A526"


class _Runs:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def hostile(kind: str, folder: Path) -> Path:
    path, mark = folder / "net.pt2", folder / "mark"
    good = exported(folder / "good.pt2")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Runs(mark)))
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-2000])
    elif kind == "text":
        path.write_text("no program")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "no program")
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("net/data/weights/weight_0", bytes(10**8))
    else:
        changed = {
            "expression": (rb"Symbol\('s\d+', positive=True, integer=True\)", b"exit(1)"),
            "guards": (rb'"guards_code": \[\]', b'"guards_code": ["exit(1)"]'),
        }
        buffer = io.BytesIO()
        torch.save(_Runs(mark), buffer)
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                if kind in changed and entry.filename.endswith("models/model.json"):
                    data, count = re.subn(*changed[kind], data)
                    assert count
                if kind == "inputs" and "sample_inputs" in entry.filename:
                    data = buffer.getvalue()
                new.writestr(entry.filename, data)
            if kind == "object":
                new.writestr("good/data/constants/custom_obj_0", pickle.dumps(_Runs(mark)))
    return path


@pytest.mark.parametrize(
    "kind",
    ["pickle", "truncated", "text", "zip", "bomb", "expression", "guards", "inputs", "object"],
)
def test_hostile_programs_run_nothing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ArchirError) as caught:
        import_network(str(hostile(kind, tmp_path)))
    assert caught.value.diagnostics[0].code == "A526"
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["s77", "64*s77", "Mul(Integer(64), Symbol('s77'))", "s0 // 2"])
def test_sizes(text: str) -> None:
    assert is_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "exit(1)",
        "().__class__",
        "[x for x in s0]",
        "Symbol('__import__')",
        "lambda: s0",
        "s0 +",
        "",
    ],
)
def test_no_sizes(text: str) -> None:
    assert not is_size(text)


def test_layers_that_are_not_trained() -> None:
    network, found = raised("Frozen")
    assert found.facts["carried"] == []
    assert [n.op for n in network.graph if n.op.startswith("dynamic")] == [
        "dynamic_conv",
        "dynamic_batch_norm",
    ]
    assert network.graph.parameters["filt"].buffer


def test_a_group_norm_without_a_shift() -> None:
    network, found = raised("Scaled")
    assert found.facts["carried"] == []
    (norm,) = [node for node in network.graph if node.op == "group_norm"]
    assert dict(norm.params) == {"weight": "scale"}
    assert norm.attrs["bias"] is False


def test_pieces_of_code_in_modes_of_torch() -> None:
    network, _ = raised("Single")
    ops = [node.op for node in network.graph if node.op not in ("input", "constant")]
    assert ops == ["linear", "mul", "relu"]
    assert "autocast" in str(refused("Half"))
