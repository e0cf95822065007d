"""Networks as torch modules: their names, modes, and what torch can do with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import Graph, Value
from archir.ops import STANDARD
from archir.weights.init import init_weights

torch = pytest.importorskip("torch")
from archir.backends import torch_fx  # noqa: E402
from torch import fx, nn  # noqa: E402


def weights(graph: Graph) -> dict[str, Any]:
    return init_weights(graph, STANDARD, 3, random_statistics=True)


def images(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(
        np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32)
    )


def plain() -> nn.Module:
    """The network of the fixture `small_net`, written by hand."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Module()
            self.stem.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.stem.bn = nn.BatchNorm2d(6)
            block = nn.Module()
            block.conv1 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
            block.bn1 = nn.BatchNorm2d(6)
            self.stage = nn.ModuleList([block])
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(96, 4)

        def forward(self, x: Any) -> Any:
            x = self.stem.bn(self.stem.conv(x)).relu()
            y = self.stage[0].bn1(self.stage[0].conv1(x))
            y = nn.functional.max_pool2d((y + x).relu(), 2)
            return self.fc(self.drop(y).flatten(1))

    return Plain()


def test_keys_are_the_paths_and_kinds_are_right(small_net: Graph) -> None:
    module = torch_fx.lower(small_net, weights(small_net))
    assert isinstance(module, fx.GraphModule)
    assert list(module.state_dict()) == list(small_net.parameters)
    assert list(module.state_dict()) == list(plain().state_dict())
    buffers = {path for path, p in small_net.parameters.items() if p.buffer}
    assert dict(module.named_buffers()).keys() == buffers
    assert all(p.requires_grad for p in module.parameters())
    for path, tensor in module.state_dict().items():
        assert np.array_equal(tensor.numpy(), weights(small_net)[path])
    assert all(m.training for m in module.modules())


def test_hand_written_code_gives_the_same_bits_forward_and_backward(small_net: Graph) -> None:
    module, other = torch_fx.lower(small_net, weights(small_net)), plain()
    other.load_state_dict(module.state_dict())
    x = images(5, 3, 8, 8)
    for train in (False, True):
        found = []
        for each in (module, other):
            each.train(train).zero_grad()
            torch.manual_seed(1)
            y = each(x)
            y.square().sum().backward()
            found.append([y.detach(), *(p.grad for p in each.parameters()), *each.buffers()])
        assert len(found[0]) == len(found[1]) == 16
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_weights_it_is_initialised_the_same_each_time(small_net: Graph) -> None:
    a, b = (torch_fx.lower(small_net).state_dict() for _ in range(2))
    drawn = init_weights(small_net, STANDARD, 0)
    assert all(torch.equal(a[path], b[path]) for path in a)
    assert all(np.array_equal(a[path].numpy(), drawn[path]) for path in a)


def test_the_module_has_copies_of_the_weights(small_net: Graph) -> None:
    given = weights(small_net)
    module = torch_fx.lower(small_net, given)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    assert all(np.array_equal(given[path], weights(small_net)[path]) for path in given)


def test_weights_come_back(small_net: Graph) -> None:
    module = torch_fx.lower(small_net, weights(small_net))
    back = torch_fx.weights_of(module, small_net)
    assert list(back) == list(small_net.parameters)
    assert all(np.array_equal(back[p], w) for p, w in weights(small_net).items())
    back["fc.bias"][:] = 9
    assert not (module.state_dict()["fc.bias"] == 9).any()
    with pytest.raises(ArchirError, match="A611"):
        torch_fx.weights_of(nn.Linear(2, 2), small_net)


def test_dropout_and_statistics_follow_the_mode(small_net: Graph) -> None:
    module = torch_fx.lower(small_net, weights(small_net))
    x = images(4, 3, 8, 8)
    module.eval()
    before = copy.deepcopy(module.state_dict())
    assert torch.equal(module(x), module(x))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    module.train()
    assert not torch.equal(module(x), module(x))
    changed = {k for k, v in module.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {path for path, p in small_net.parameters.items() if p.buffer}


def test_deepcopy_and_state_dict_round_trip(small_net: Graph, tmp_path: Path) -> None:
    module = torch_fx.lower(small_net, weights(small_net)).eval()
    x = images(2, 3, 8, 8)
    y = module(x)
    twin = copy.deepcopy(module)
    fresh = torch_fx.lower(small_net).eval()
    torch.save(module.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        module.fc.bias.add_(1)
    assert torch.equal(twin(x), y)
    assert torch.equal(fresh(x), y)
    assert list(twin.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_free(small_net: Graph, batch: int) -> None:
    assert torch_fx.lower(small_net).eval()(images(batch, 3, 8, 8)).shape == (batch, 4)


def test_autocast_and_channels_last(small_net: Graph) -> None:
    module = torch_fx.lower(small_net, weights(small_net)).eval()
    x = images(4, 3, 8, 8)
    with torch.no_grad():
        y = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = module(x)
        module = module.to(memory_format=torch.channels_last)
        last = module(x.to(memory_format=torch.channels_last))
    assert low.dtype is torch.bfloat16
    assert 0 < (low.float() - y).abs().max() <= 0.03 * y.abs().max()
    assert module.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert (last - y).abs().max() <= 1e-5 * y.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        module.train()(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default")  # of the compiler's own
def test_compiles(small_net: Graph, backend: str) -> None:
    import shutil

    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    module = torch_fx.lower(small_net, weights(small_net)).eval()
    x = images(4, 3, 8, 8)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    y = module(x)
    assert (compiled(x) - y).abs().max() <= 1e-5 * y.abs().max()
    module.train()
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert torch_fx.weights_of(compiled, small_net).keys() == small_net.parameters.keys()


def test_several_inputs_and_outputs_keep_their_order(net: Any) -> None:
    a, b = net.input("b", "N", 4), net.input("a", "N", 2)
    both = net.add("join", "concat", a, b)
    left = net.add("cut", "split", both, sizes=(1, 5))
    shift = net.add("shift", "constant", value=0.5)
    more = net.add("more", "add", both, shift)
    graph = net.build(tail=Value("cut", 1), head=left, more=more, given=a)
    module = torch_fx.lower(graph)
    x, y = images(3, 4), images(3, 2, seed=1)
    tail, head, more, given = module(x, y)
    joined = torch.cat([x, y], 1)
    assert torch.equal(head, joined[:, :1])
    assert torch.equal(tail, joined[:, 1:])
    assert torch.equal(more, joined + 0.5)
    assert torch.equal(given, x)
    assert torch.equal(module(b=x, a=y)[0], tail)
    assert not module.state_dict()
    assert torch.equal(copy.deepcopy(module)(x, y)[2], more)


def test_tied_and_renamed_parameters(net: Any) -> None:
    x = net.input("x", "N", 4)
    # The reader comes before the owner, and a bias is shared under a path that no layer has.
    y = net.add("first", "linear", x, out=4, params={"weight": "owner.weight", "bias": "shared.b"})
    y = net.add("owner", "linear", y, out=4)
    y = net.add(
        "own", "linear", y, out=4, params={"weight": "own.in_proj_weight", "bias": "shared.b"}
    )
    graph = net.build(y=y)
    module = torch_fx.lower(graph, weights(graph))
    paths = {"owner.weight", "shared.b", "owner.bias", "own.in_proj_weight"}
    assert module.state_dict().keys() == paths == graph.parameters.keys()
    assert len(list(module.parameters())) == 4
    given = images(3, 4)
    w = {k: v.clone().requires_grad_() for k, v in module.state_dict().items()}
    z = given @ w["owner.weight"].T + w["shared.b"]
    z = z @ w["owner.weight"].T + w["owner.bias"]
    z = z @ w["own.in_proj_weight"].T + w["shared.b"]
    found = module(given)
    assert (found - z).abs().max() <= 1e-6 * z.abs().max()
    z.sum().backward()
    found.sum().backward()
    for path, parameter in module.named_parameters():
        wanted = w[path].grad
        assert (parameter.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert copy.deepcopy(module).state_dict().keys() == paths


def test_shared_batch_norms_share_their_statistics(net: Any) -> None:
    x = net.input("x", "N", 3, 4)
    tied = {
        r: f"a.{r}"
        for r in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    y = net.add("a", "batch_norm", x)
    y = net.add("b", "batch_norm", y, params=tied)
    graph = net.build(y=y)
    module = torch_fx.lower(graph, weights(graph))
    assert module.state_dict().keys() == set(tied.values())
    layer = nn.BatchNorm1d(3)
    layer.load_state_dict({k[2:]: v for k, v in module.state_dict().items()})
    given = images(5, 3, 4)
    for train in (True, False):
        module.train(train)
        layer.train(train)
        assert torch.equal(module(given), layer(layer(given)))
    assert int(module.state_dict()["a.num_batches_tracked"]) == 2
    assert torch.equal(module.state_dict()["a.running_var"], layer.running_var)


def test_batch_norm_of_high_rank_and_without_statistics(net: Any) -> None:
    x = net.input("x", "N", 3, 2, 2, 2, 2)
    y = net.add("high", "batch_norm", x)
    y = net.add("none", "batch_norm", y, track=False, affine=False)
    graph = net.build(y=y)
    module = torch_fx.lower(graph, weights(graph))
    assert module.state_dict().keys() == graph.parameters.keys()
    given = images(2, 3, 2, 2, 2, 2)
    assert not torch.equal(module.eval()(given), module.train()(given))
    assert int(module.state_dict()["high.num_batches_tracked"]) == 1


def _owners() -> list[str]:
    """The operators with parameters that read real numbers."""
    return [
        name
        for name, op in STANDARD.items()
        if op.params and {t.dtype for sample in op.samples for t in sample.inputs} == {"f32"}
    ]


@pytest.mark.parametrize("op", _owners())
def test_renamed_parameters_change_no_result(net: Any, op: str) -> None:
    """torch's own layer and the function that takes its tensors as arguments agree."""
    for sample in STANDARD[op].samples:
        stream = np.random.Generator(np.random.PCG64(0))
        feeds = {}
        for number, type_ in enumerate(sample.inputs):
            shape = tuple(int(size) for size in type_.shape if isinstance(size, int))
            feeds[f"x{number}"] = np.asarray(stream.standard_normal(shape), np.float32)
        found: list[Any] = []
        held: dict[str, Any] = {}
        for prefix in ("node", "elsewhere"):
            fresh = type(net)()
            given = [fresh.input(name, *x.shape) for name, x in feeds.items()]
            roles = {p.role: f"{prefix}.{p.role}" for p in STANDARD[op].params}
            value = fresh.add("node", op, *given, params=roles, **sample.attrs)
            graph = fresh.build(y=value)
            held = held or {path.rpartition(".")[2]: w for path, w in weights(graph).items()}
            drawn = {path: held[path.rpartition(".")[2]] for path in graph.parameters}
            found.append(torch_fx.forward(graph, drawn, feeds)[0])
            keys = torch_fx.lower(graph, drawn).state_dict().keys()
            assert keys == graph.parameters.keys()
        assert np.array_equal(*found)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_stochastic_depth_draws_as_torchvision_does(net: Any, mode: str, p: float) -> None:
    vision = pytest.importorskip("torchvision")
    x = net.input("x", "N", 3, 2)
    graph = net.build(y=net.add("drop", "stochastic_depth", x, p=p, mode=mode))
    module, other = torch_fx.lower(graph), vision.ops.StochasticDepth(p, mode)
    given = images(64, 3, 2)
    for train in (True, False):
        found = []
        for each in (module, other):
            torch.manual_seed(2)
            found.append(each.train(train)(given))
        assert torch.equal(*found)
    rows = module.train()(given).flatten(1)
    if mode == "row" and p == 0.4:
        dropped = (rows == 0).all(1)
        assert 10 <= int(dropped.sum()) <= 40
        assert (rows[~dropped] - given.flatten(1)[~dropped] / 0.6).abs().max() <= 1e-6


def test_what_is_no_probability_is_refused(net: Any) -> None:
    for op in ("dropout", "stochastic_depth"):
        fresh = type(net)()
        graph = fresh.build(y=fresh.add("drop", op, fresh.input("x", "N", 3), p=1.5))
        with pytest.raises(ArchirError, match="is no probability"):
            torch_fx.lower(graph)


def test_free_parameters(net: Any) -> None:
    x = net.input("x", "N", 3, 2)
    scale = net.add("scale", "parameter", shape=(3, 1), init=2.0)
    mean = net.add("stats.mean", "parameter", shape=(2,), init=-1.0, buffer=True)
    graph = net.build(y=net.add("y", "mul", net.add("sum", "add", x, mean), scale))
    module = torch_fx.lower(graph)
    assert dict(module.named_parameters()).keys() == {"scale"}
    assert dict(module.named_buffers()).keys() == {"stats.mean"}
    given = images(4, 3, 2)
    assert torch.equal(module(given), (given - 1) * 2)


def test_layers_below_layers(net: Any) -> None:
    x = net.input("x", "N", 3)
    y = net.add("a.b", "linear", x, out=3)
    y = net.add("a", "linear", y, out=3)
    y = net.add("a.c", "linear", y, out=3)
    graph = net.build(y=net.add("a.c.act", "relu", y))
    module = torch_fx.lower(graph)
    assert module.state_dict().keys() == graph.parameters.keys()
    assert copy.deepcopy(module)(images(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    "path",
    [
        "half",
        "stage.type.conv",
        "graph",
        "class",
        "a.in.b",
        'x"), print("y',
        "a\\b",
        "a\nb",
        "a{0}",
        "ﬁ",
        "0." * 99 + "0",
    ],
)
def test_names_that_torch_cannot_hold_are_refused(net: Any, path: str) -> None:
    x = net.input("x", "N", 3)
    graph = net.build(y=net.add(path, "linear", x, out=3))
    with pytest.raises(ArchirError) as caught:
        torch_fx.lower(graph)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.status) == ("A502", 3)
    assert found.node.startswith(path)
    assert found.hint


@pytest.mark.parametrize("path", ["half", "class", 'x"), print("y', "conv.weight"])
def test_layers_without_parameters_may_have_any_name(net: Any, path: str) -> None:
    x = net.input("x", "N", 3, 2, 2)
    y = net.add("conv", "conv", x, out=3)
    graph = net.build(y=net.add(path, "relu", y))
    if path == "conv.weight":
        # Unless they stand where a tensor is.
        assert "conv.weight" in torch_fx.lower(graph).state_dict()
    assert (torch_fx.lower(graph)(images(1, 3, 2, 2)) >= 0).all()


def test_a_layer_may_be_named_like_a_wrapper(net: Any) -> None:
    x = net.input("x", "N", 3)
    y = net.add("module.fc", "linear", x, out=3)
    graph = net.build(y=net.add("_orig_mod", "linear", y, out=3))
    module = torch_fx.lower(graph)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for each in (module, averaged, nn.DataParallel(module)):
        assert torch_fx.weights_of(each, graph).keys() == graph.parameters.keys()


@pytest.mark.parametrize("path", ["0", "a-b", "a b", "日本", "conv.1x1", "_x", "features.0.3"])
def test_odd_names_that_torch_can_hold(net: Any, path: str) -> None:
    x = net.input("x", "N", 3)
    graph = net.build(y=net.add(path, "linear", x, out=3))
    module = torch_fx.lower(graph)
    assert module.state_dict().keys() == {f"{path}.weight", f"{path}.bias"}
    assert copy.deepcopy(module)(images(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", ["torch", "self", "class", "a b", "x): import os #", "1", "input"])
def test_inputs_may_have_any_name(net: Any, name: str) -> None:
    x = net.input(name, "N", 3)
    other = net.input(name + " ", "N", 3)
    graph = net.build(y=net.add("add", "add", x, net.add("relu", "relu", other)))
    given = images(2, 3)
    assert torch.equal(torch_fx.lower(graph)(given, given), given + given.relu())


def test_forward_changes_nothing_and_returns_any_value(small_net: Graph) -> None:
    given = weights(small_net)
    for array in given.values():
        array.flags.writeable = False
    x = images(3, 3, 8, 8).numpy()
    feeds = {"image": x.copy()}
    asked = [Value("stem.bn"), Value("stem.relu"), Value("image"), Value("fc")]
    found = torch_fx.forward(small_net, given, feeds, values=asked)
    module = torch_fx.lower(small_net, given).eval()
    with torch.no_grad():
        normal = module.stem.bn(module.stem.conv(torch.from_numpy(x)))
        y = module(torch.from_numpy(x))
    assert np.array_equal(found[0], normal.numpy())
    assert np.array_equal(found[1], normal.relu().numpy())
    assert np.array_equal(found[2], x)
    assert np.array_equal(found[3], y.numpy())
    found[2][:] = 0
    assert np.array_equal(feeds["image"], x)
    (only,) = torch_fx.forward(small_net, given, feeds)
    assert np.array_equal(only, y.numpy())
    torch_fx.forward(small_net, given, feeds, train=True)
    assert all(np.array_equal(given[k], v) for k, v in weights(small_net).items())


def test_a_value_read_twice_is_not_overwritten(net: Any) -> None:
    x = net.input("x", "N", 3)
    y = net.add("fc", "linear", x, out=3)
    z = net.add("relu", "relu", y)
    both = net.build(sum=net.add("add", "add", y, z), kept=y)
    module = torch_fx.lower(both)
    given = images(4, 3)
    value = module.fc(given)
    total, kept = module(given)
    assert (value < 0).any()
    assert torch.equal(kept, value)
    assert torch.equal(total, value + value.relu())
    builder = both.edit()
    builder.outputs.pop()
    alone = torch_fx.lower(builder.build(), torch_fx.weights_of(module, both))
    assert torch.equal(alone(given), total)


def test_uses_that_torch_cannot_run_are_refused(net: Any) -> None:
    x = net.input("x", "N", 3, 8, 8)
    padded = net.build(y=net.add("pool", "max_pool", x, kernel=2, padding=2))
    with pytest.raises(ArchirError, match=r"A502: .*more than half of a window"):
        torch_fx.lower(padded)
    certain = net.build(y=net.add("drop", "dropout", x, p=1.5))
    with pytest.raises(ArchirError, match="A502"):
        torch_fx.lower(certain)


def test_weights_that_do_not_fit_are_refused(small_net: Graph) -> None:
    given = weights(small_net)
    given["fc.weight"] = given["fc.weight"].T
    with pytest.raises(ArchirError, match=r"A612: `fc.weight` is float32\[96, 4\]"):
        torch_fx.lower(small_net, given)


def test_low_precision_networks(net: Any) -> None:
    x = net.input("x", "N", 3, dtype="bf16")
    graph = net.build(y=net.add("fc", "linear", x, out=2))
    module = torch_fx.lower(graph)
    assert module.fc.weight.dtype is torch.bfloat16
    back = torch_fx.weights_of(module, graph)
    assert all(np.array_equal(back[p], w) for p, w in init_weights(graph, STANDARD, 0).items())
    (y,) = torch_fx.forward(graph, back, {"x": np.ones((2, 3), back["fc.weight"].dtype)})
    assert y.dtype.name == "bfloat16"


@pytest.mark.parametrize("shape", [("N", 3), ("N", 3, 1), ("N", 3, 1, 1)])
@pytest.mark.parametrize("op", ["group_norm", "instance_norm"])
def test_a_batch_of_one_with_one_number_a_channel(net: Any, op: str, shape: Any) -> None:
    """Torch's own layers refuse to normalise a single number; it is the bias."""
    if op == "instance_norm" and len(shape) == 2:
        return  # a channel has no places
    attrs = {"groups": 3} if op == "group_norm" else {"affine": True}
    graph = net.build(y=net.add("norm", op, net.input("x", *shape), **attrs))
    held = weights(graph)
    held["norm.bias"] = np.arange(3, dtype=np.float32)
    assert list(torch_fx.lower(graph, held).state_dict()) == ["norm.weight", "norm.bias"]
    feeds = {"x": np.ones((1, 3) + (1,) * (len(shape) - 2), np.float32)}
    (found,) = torch_fx.forward(graph, held, feeds)
    assert found.ravel().tolist() == [0.0, 1.0, 2.0]
