"""The rules on single layers: what they do to weights, and that nothing changes but what they say.

That a rule is proved is tested with the prover; here each is used: on a small network against a
map written by hand, on a network of the examples, and, where torch has the same thing, against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir
from archir.diag import Source
from archir.ir.graph import Graph
from archir.ir.same import equal as same
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.arithmetic import Array, Floating
from archir.rewrite.plan import Plan
from archir.weights.functions import evaluate
from archir.weights.init import init_weights

from .nets import HEAD, IMAGE, LIBRARY, drift, equal, net, plan

BOTH = {"eval", "train"}
CONV = IMAGE + "end = x |> a: conv(4, 3)" + HEAD
PLAIN = IMAGE + "end = x |> a: conv(4, 3) |> r: relu |> c: conv(6)" + HEAD
FLAT = "input x: f32[N, 6]\noutput y = x |> a: linear(4) |> r: relu |> b: linear(3)"
NORMED = IMAGE + "end = x |> a: conv(4, 3, 2, bias = false) |> n: batch_norm |> r: relu" + HEAD
WINDOW = IMAGE + "end = x |> a: conv(4, 3) |> p: avg_pool(2)" + HEAD

Weights = Mapping[str, Array]
Made = Callable[[Weights], Mapping[str, Array]]


def scaled(old: Weights) -> tuple[Array, Array]:
    """Scale and shift of the batch normalisation `n`."""
    s = old["end.n.weight"] / np.sqrt(old["end.n.running_var"] + 1e-5)
    return s, old["end.n.bias"] - old["end.n.running_mean"] * s


def dirac(out: int, group: int, *kernel: int) -> Array:
    """The kernel that repeats channels, written entry by entry."""
    w = np.zeros((out, group, *kernel))
    for o in range(out):
        w[(o, o % group, *(k // 2 for k in kernel))] = 1
    return w


def ringed(w: Array, rows: int, columns: int) -> Array:
    out = np.zeros((*w.shape[:2], w.shape[2] + 2 * rows, w.shape[3] + 2 * columns))
    out[:, :, rows : rows + w.shape[2], columns : columns + w.shape[3]] = w
    return out


def spread(w: Array, step: int) -> Array:
    out = np.zeros((*w.shape[:2], *(step * (k - 1) + 1 for k in w.shape[2:])))
    out[:, :, ::step, ::step] = w
    return out


def blocks(w: Array, groups: int) -> Array:
    out = np.zeros((w.shape[0], w.shape[1] * groups, *w.shape[2:]))
    for o in range(w.shape[0]):
        g = o // (w.shape[0] // groups)
        for i in range(w.shape[1]):
            out[o, g * w.shape[1] + i] = w[o, i]
    return out


def folded(old: Weights) -> Mapping[str, Array]:
    s, t = scaled(old)
    bias = old.get("end.a.bias")
    weight = old["end.a.weight"]
    return {
        "end.a.weight": weight * s.reshape(-1, *[1] * (weight.ndim - 1)),
        "end.a.bias": t if bias is None else bias * s + t,
    }


def folded_ahead(old: Weights) -> Mapping[str, Array]:
    s, t = scaled(old)
    w = old["end.c.weight"]
    return {
        "end.c.weight": w * s[None, :, None, None],
        "end.c.bias": np.einsum("oihw,i->o", w, t),
    }


def merged(old: Weights) -> Mapping[str, Array]:
    v, w = old["end.d.weight"][:, :, 0, 0], old["end.c.weight"]
    return {
        "end.c.weight": np.einsum("om,mihw->oihw", v, w),
        "end.c.bias": v @ old["end.c.bias"] + old["end.d.bias"],
    }


USES: Mapping[str, tuple[str, str, Mapping[str, Any], set[str], Made]] = {
    "kernel.grow": (
        IMAGE + "end = x |> a: conv(4, [1, 3], 2, padding = [0, 1], dilation = [1, 2])" + HEAD,
        "end",
        {"by": 2},
        BOTH,
        lambda w: {"end.a.weight": ringed(w["end.a.weight"], 2, 2)},
    ),
    "kernel.grow.height": (
        IMAGE + "end = x |> a: conv(4, [1, 3])" + HEAD,
        *("end", {}, BOTH),
        lambda w: {"end.a.weight": ringed(w["end.a.weight"], 1, 0)},
    ),
    "kernel.grow.width": (
        IMAGE + "end = x |> a: conv(4, [3, 1], dilation = 2)" + HEAD,
        *("end", {}, BOTH),
        lambda w: {"end.a.weight": ringed(w["end.a.weight"], 0, 1)},
    ),
    "kernel.undilate": (
        IMAGE + "end = x |> a: conv(4, 3, dilation = 2)" + HEAD,
        *("end", {}, BOTH),
        lambda w: {"end.a.weight": spread(w["end.a.weight"], 2)},
    ),
    "kernel.unstride": (
        IMAGE + "end = x |> a: conv(4, 3, 2)" + HEAD,
        *("end", {}, BOTH, lambda w: {}),
    ),
    "kernel.stride": (
        IMAGE + "end = x |> a: conv(4, 3) |> p: avg_pool(1, 2)" + HEAD,
        *("end", {}, BOTH, lambda w: {}),
    ),
    "kernel.subsample": (
        IMAGE + "end = x |> a: conv(4, 1, 2)" + HEAD,
        *("end", {}, BOTH, lambda w: {}),
    ),
    "grouped.dense": (
        IMAGE + "i = x |> conv(6)\nend = i |> a: conv(9, 3, groups = 3)" + HEAD,
        *("end", {}, BOTH),
        lambda w: {"end.a.weight": blocks(w["end.a.weight"], 3)},
    ),
    "activation.prelu": (PLAIN, "r", {}, BOTH, lambda w: {"end.new.weight": np.zeros(4)}),
    "activation.prelu.leaky": (
        IMAGE + "end = x |> a: conv(4, 3) |> r: leaky_relu(0.2)" + HEAD,
        *("r", {}, BOTH, lambda w: {"end.new.weight": np.full(4, 0.2)}),
    ),
    "activation.prelu.insert": (CONV, "a", {}, BOTH, lambda w: {"end.new.weight": np.ones(4)}),
    "activation.blend.silu": (PLAIN, "r", {}, BOTH, lambda w: {"end.gate": np.zeros(1)}),
    "activation.blend.gelu": (PLAIN, "r", {}, BOTH, lambda w: {"end.gate": np.zeros(1)}),
    "norm.batch": (
        CONV,
        *("a", {}, {"eval"}),
        lambda w: {
            "end.new.weight": np.full(4, np.sqrt(1 + 1e-5)),
            "end.new.bias": np.zeros(4),
            "end.new.running_mean": np.zeros(4),
            "end.new.running_var": np.ones(4),
        },
    ),
    "norm.layer": (FLAT, "a", {}, BOTH, lambda w: {"gate": np.zeros(1)}),
    "norm.rms": (FLAT, "a", {}, BOTH, lambda w: {"gate": np.zeros(1)}),
    "norm.group": (CONV, "a", {"groups": 2}, BOTH, lambda w: {"end.gate": np.zeros(1)}),
    "fold.batch_norm": (NORMED, "n", {}, {"eval"}, folded),
    "fold.batch_norm.biased": (
        NORMED.replace("bias = false", "groups = 1"),
        *("n", {}, {"eval"}, folded),
    ),
    "fold.batch_norm.linear": (
        "input x: f32[N, 6]\nend = x |> a: linear(4) |> n: batch_norm\noutput y = end",
        *("n", {}, {"eval"}, folded),
    ),
    "fold.batch_norm.ahead": (
        IMAGE + "end = x |> a: conv(4, 3) |> n: batch_norm "
        "|> c: conv(5, 3, padding = 0, bias = false)" + HEAD,
        *("c", {}, {"eval"}, folded_ahead),
    ),
    "bias.insert": (NORMED, "a", {}, BOTH, lambda w: {"end.a.bias": np.zeros(4)}),
    "bias.insert.linear": (
        "input x: f32[N, 6]\noutput y = x |> a: linear(4, bias = false)",
        *("a", {}, BOTH, lambda w: {"a.bias": np.zeros(4)}),
    ),
    "deepen.linear": (
        FLAT,
        *("r", {}, BOTH),
        lambda w: {"new.weight": np.eye(4), "new.bias": np.zeros(4)},
    ),
    "deepen.grouped": (
        PLAIN,
        *("r", {"kernel": 5, "groups": 2}, BOTH),
        lambda w: {"end.new.weight": dirac(4, 2, 5, 5), "end.new.bias": np.zeros(4)},
    ),
    "deepen.separable": (
        PLAIN,
        *("r", {}, BOTH),
        lambda w: {
            "end.depthwise.weight": dirac(4, 1, 3, 3),
            "end.pointwise.weight": dirac(4, 4, 1, 1),
            "end.pointwise.bias": np.zeros(4),
        },
    ),
    "deepen.prelu": (
        CONV,
        *("a", {}, BOTH),
        lambda w: {
            "end.new.weight": dirac(4, 4, 3, 3),
            "end.new.bias": np.zeros(4),
            "end.slope.weight": np.ones(4),
        },
    ),
    "deepen.residual": (
        PLAIN,
        *("r", {}, BOTH),
        lambda w: {"end.last.weight": np.zeros((4, 4, 3, 3)), "end.last.bias": np.zeros(4)},
    ),
    "deepen.residual.batch_norm": (
        PLAIN,
        *("r", {}, BOTH),
        lambda w: {"end.last_bn.weight": np.zeros(4), "end.last_bn.bias": np.zeros(4)},
    ),
    "deepen.residual.linear": (
        FLAT,
        *("r", {}, BOTH),
        lambda w: {"last.weight": np.zeros((4, 4)), "last.bias": np.zeros(4)},
    ),
    "deepen.gated": (PLAIN, "a", {}, BOTH, lambda w: {"end.gate": np.zeros(1)}),
    "squeeze_excite.insert": (PLAIN, "r", {}, BOTH, lambda w: {"end.gate": np.zeros(1)}),
    "scale.insert": (PLAIN, "a", {}, BOTH, lambda w: {"end.scale": np.ones((4, 1, 1))}),
    "scale.insert.last": (FLAT, "a", {}, BOTH, lambda w: {"scale": np.ones(4)}),
    "dropout.insert": (PLAIN, "r", {"p": 0.3}, {"eval"}, lambda w: {}),
    "remove.dropout": (
        PLAIN.replace("r: relu", "r: relu |> dropout(0.3)"),
        *("dropout", {}, {"eval"}, lambda w: {}),
    ),
    "remove.stochastic_depth": (
        PLAIN.replace("r: relu", "r: relu |> stochastic_depth(0.3)"),
        *("stochastic_depth", {}, {"eval"}, lambda w: {}),
    ),
    "pool.as_conv": (
        WINDOW.replace("avg_pool(2)", "avg_pool(3, 2, padding = 1)"),
        *("p", {"kernel": 3}, BOTH),
        lambda w: {"end.new.weight": np.full((4, 1, 3, 3), 1 / 9)},
    ),
    "pool.ahead": (WINDOW.replace("4, 3", "4"), "p", {}, BOTH, lambda w: {}),
    "pool.behind": (
        PLAIN,
        *("fc", {}, BOTH),
        lambda w: {"new.weight": w["fc.weight"][:, :, None, None], "new.bias": w["fc.bias"]},
    ),
    "pool.global_ahead": (
        PLAIN,
        *("global_avg_pool", {}, BOTH),
        lambda w: {"new.weight": w["end.c.weight"][:, :, 0, 0], "new.bias": w["end.c.bias"]},
    ),
    "merge.linear": (
        "input x: f32[N, 5, 6]\nend = x |> a: linear(7) |> b: linear(3)\noutput y = end",
        *("b", {}, BOTH),
        lambda w: {
            "end.a.weight": w["end.b.weight"] @ w["end.a.weight"],
            "end.a.bias": w["end.b.weight"] @ w["end.a.bias"] + w["end.b.bias"],
        },
    ),
    "merge.conv_pointwise": (
        IMAGE + "end = x |> c: conv(4, 3, 2) |> d: conv(7)" + HEAD,
        *("d", {}, BOTH, merged),
    ),
    "merge.pointwise_conv": (
        IMAGE + "end = x |> c: conv(4, bias = false) |> d: conv(7, 3, 2, dilation = 2)" + HEAD,
        *("d", {}, BOTH),
        lambda w: {
            "end.d.weight": np.einsum(
                "omhw,mi->oihw", w["end.d.weight"], w["end.c.weight"][:, :, 0, 0]
            )
        },
    ),
}
"""For each rule a network, a site, arguments, the modes, and the new weights written by hand."""


def sides(made: Plan) -> tuple[Weights, Weights]:
    """The weights before and after, in float64, statistics far from 0 and 1."""
    k = Floating(np.float64)
    old = init_weights(made.before, STANDARD, 3, random_statistics=True)
    old = {path: np.asarray(a, np.float64) for path, a in old.items()}
    new = {
        p: evaluate(made.terms[p], k, old) if p in made.terms else old[p]
        for p in made.after.parameters
    }
    return old, new


@pytest.mark.parametrize("name", sorted(USES))
def test_use(name: str) -> None:
    body, at, arguments, modes, by_hand = USES[name]
    made = plan(net(body), name, at, **arguments)
    assert equal(made) == modes == set(LIBRARY[name].contract.function)
    assert all(drift(made, mode) < 1e-12 for mode in modes)  # type: ignore[arg-type]
    old, new = sides(made)
    wanted = by_hand(old)
    assert wanted.keys() <= made.terms.keys()
    for path, array in wanted.items():
        assert new[path].shape == array.shape
        assert np.allclose(new[path], array, rtol=1e-12, atol=1e-12), path
    outputs = [[g.type_of(o.value) for o in g.outputs] for g in (made.before, made.after)]
    assert outputs[0] == outputs[1]


BACK: Mapping[str, tuple[str, str, str, str]] = {
    "kernel.shrink": (CONV, "kernel.grow", "a", "a"),
    "kernel.dilate": (
        IMAGE + "end = x |> a: conv(4, 3, dilation = 2)" + HEAD,
        *("kernel.undilate", "a", "a"),
    ),
    "grouped.sparse": (
        IMAGE + "i = x |> conv(6)\nend = i |> a: conv(8, 3, groups = 2)" + HEAD,
        *("grouped.dense", "a", "a"),
    ),
    "activation.relu": (PLAIN, "activation.prelu", "r", "new"),
    "bias.remove": (NORMED, "bias.insert", "a", "a"),
    "bias.remove.linear": (
        "input x: f32[N, 6]\noutput y = x |> a: linear(4, bias = false)",
        *("bias.insert.linear", "a", "a"),
    ),
    "remove.identity_conv": (PLAIN, "deepen.prelu", "c", "new"),
    "remove.identity_conv.relu": (PLAIN, "deepen", "r", "relu"),
    "remove.identity_linear": (FLAT, "deepen.linear", "r", "new"),
    "remove.batch_norm": (CONV, "norm.batch", "a", "new"),
    "remove.prelu": (CONV, "activation.prelu.insert", "a", "new"),
}
"""Rules that assume something of weights: a network, the rule that makes it so, and both sites."""

PARTLY = {"activation.relu", "remove.identity_conv", "remove.identity_linear"}
"""Where the way back has another name for what comes back, or leaves an activation in place."""


@pytest.mark.parametrize("name", sorted(BACK))
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """What a rule has inserted is found and taken out, and nothing else is."""
    body, first, at, where = BACK[name]
    file = tmp_path / "test.arch"
    file.write_text(f"version 1\narch test {{\n{body}\n}}\n", encoding="utf-8")
    start = archir.load(file).init(3, random_statistics=True)
    assert not [site for site in start.sites() if site.rule == name]
    there = start.rewrite(first, at)
    (site,) = [site for site in there.sites() if site.rule == name]
    assert site.at.split(".")[-1] == where
    back = there.rewrite(name, site.at)
    if name not in PARTLY:
        assert same(back.graph, start.graph)
    assert start.weights is not None
    assert back.weights is not None
    for path, array in start.weights.items():
        assert np.allclose(back.weights[path], array, rtol=1e-6, atol=0), path


EXAMPLES = (
    ("kernel.grow", "resnet20", "stage2.0.conv1"),
    ("kernel.grow.height", "googlenet", "inception4c.branch2.0.conv"),
    ("kernel.grow.width", "mobilenet_v2", "features.9.conv.2"),
    ("kernel.undilate", "darts_v2", "cells.10._ops.7.op.1"),
    ("kernel.unstride", "resnet20", "stage3.0.conv1"),
    ("kernel.subsample", "resnet50", "layer3.0.downsample.0"),
    ("grouped.dense", "shufflenet_v2_x1_0", "stage3.3.branch2.3"),
    ("activation.prelu", "densenet_bc_40_12", "denseblock2.3.relu1"),
    ("activation.prelu.insert", "vit_tiny", "blocks.5.mlp.act"),
    ("activation.blend.silu", "resnet20", "stage1.0.relu1"),
    ("activation.blend.gelu", "lenet_300_100", "fc2.relu"),
    ("norm.batch", "resnet20", "stage2.1.relu1"),
    ("norm.layer", "vit_tiny", "blocks.5.mlp.fc2"),
    ("norm.rms", "lenet_300_100", "fc2.linear"),
    ("norm.group", "resnet20", "stage2.1.bn1"),
    ("fold.batch_norm", "mobilenet_v2", "features.9.conv.3"),
    ("fold.batch_norm.biased", "vgg16_bn", "stage5.2.bn"),
    ("fold.batch_norm.ahead", "shufflenet_v2_x1_0", "stage4.3.branch2.5"),
    ("bias.insert", "resnet20", "stem.conv"),
    ("deepen.linear", "lenet_300_100", "fc2.relu"),
    ("deepen.grouped", "resnet20", "stage2.1.relu1"),
    ("deepen.separable", "densenet_bc_40_12", "denseblock1.0.relu1"),
    ("deepen.prelu", "mobilenet_v2", "features.9.conv.2"),
    ("deepen.residual", "resnet20", "stage3.2.relu2"),
    ("deepen.residual.batch_norm", "resnet20", "stage1.0.relu1"),
    ("deepen.residual.linear", "vit_tiny", "blocks.5.mlp.fc2"),
    ("deepen.gated", "densenet_bc_40_12", "denseblock2.3.norm1"),
    ("squeeze_excite.insert", "resnet20", "stage2.1.bn2"),
    ("scale.insert", "mobilenet_v2", "features.9.conv.3"),
    ("scale.insert.last", "vit_tiny", "blocks.5.mlp.fc2"),
    ("dropout.insert", "resnet20", "global_avg_pool"),
    ("remove.dropout", "mobilenet_v2", "classifier.0"),
    ("remove.stochastic_depth", "efficientnet_b0", "features.5.1.stochastic_depth"),
    ("pool.as_conv", "densenet_bc_40_12", "transition1.pool"),
    ("pool.ahead", "densenet_bc_40_12", "transition2.pool"),
    ("pool.behind", "resnet20", "fc"),
)
"""Sites of the networks in examples/. No example has two linear layers in a row, a leaky ReLU, a
linear layer that is normalised or lacks a bias, or pools single entries.
"""
NOWHERE = {
    *("activation.prelu.leaky", "fold.batch_norm.linear", "bias.insert.linear", "kernel.stride"),
    *("pool.global_ahead", "merge.linear", "merge.conv_pointwise", "merge.pointwise_conv"),
}
_LOADED: dict[str, Graph] = {}


def example(name: str) -> Graph:
    if name not in _LOADED:
        path = Path(__file__).parents[2] / "examples" / f"{name}.arch"
        _LOADED[name] = load(Source(name, path.read_text(encoding="utf-8")), STANDARD).graph
    return _LOADED[name]


@pytest.mark.parametrize(("name", "network", "at"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_use_in_an_example(name: str, network: str, at: str) -> None:
    given = {p.name: p.default for p in LIBRARY[name].parameters}
    made = plan(example(network), name, at, **given)
    assert equal(made) == set(LIBRARY[name].contract.function)
    assert made.terms or [n.name for n in made.after] != [n.name for n in made.before]


def test_every_rule_is_used() -> None:
    assert {e[0] for e in EXAMPLES} == USES.keys() - NOWHERE
    assert NOWHERE <= USES.keys() <= {rule.name for rule in LIBRARY.values()}


# --- where torch has the same -------------------------------------------------------------------


def tensors(*arrays: Array) -> list[Any]:
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def image(channels: int) -> Array:
    return np.random.Generator(np.random.PCG64(7)).standard_normal((2, channels, 8, 8))


def near(a: Any, b: Any) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) < 1e-12


def test_a_dilated_kernel_against_torch() -> None:
    """`dilation` of torch.nn.functional.conv2d is what `kernel.undilate` writes out."""
    functional = pytest.importorskip("torch.nn.functional")
    body, at, given, *_ = USES["kernel.undilate"]
    old, new = sides(plan(net(body), "kernel.undilate", at, **given))
    x, w, v = tensors(image(3), old["end.a.weight"], new["end.a.weight"])
    near(functional.conv2d(x, w, padding=2, dilation=2), functional.conv2d(x, v, padding=2))


def test_groups_against_torch() -> None:
    functional = pytest.importorskip("torch.nn.functional")
    body, at, given, *_ = USES["grouped.dense"]
    old, new = sides(plan(net(body), "grouped.dense", at, **given))
    x, w, v = tensors(image(6), old["end.a.weight"], new["end.a.weight"])
    near(functional.conv2d(x, w, padding=1, groups=3), functional.conv2d(x, v, padding=1))


@pytest.mark.parametrize("name", ["fold.batch_norm", "fold.batch_norm.biased"])
def test_folding_against_torch(name: str) -> None:
    """torch.nn.utils.fuse_conv_bn_weights makes the same weights."""
    utils = pytest.importorskip("torch.nn.utils.fusion")
    body, at, given, *_ = USES[name]
    old, new = sides(plan(net(body), name, at, **given))
    bias = tensors(old["end.a.bias"])[0] if "end.a.bias" in old else None
    roles = ("running_mean", "running_var", "weight", "bias")
    mean, var, scale, shift = tensors(*(old[f"end.n.{r}"] for r in roles))
    (w,) = tensors(old["end.a.weight"])
    fused = utils.fuse_conv_bn_weights(w, bias, mean, var, 1e-5, scale, shift)
    for found, array in zip(fused, tensors(new["end.a.weight"], new["end.a.bias"]), strict=True):
        near(found.detach(), array)


def test_an_average_pooling_against_torch() -> None:
    functional = pytest.importorskip("torch.nn.functional")
    body, at, given, *_ = USES["pool.as_conv"]
    _, new = sides(plan(net(body), "pool.as_conv", at, **given))
    x, w = tensors(image(4), new["end.new.weight"])
    near(functional.avg_pool2d(x, 3, 2, 1), functional.conv2d(x, w, stride=2, padding=1, groups=4))


@pytest.mark.parametrize("name", ["activation.prelu", "activation.prelu.leaky"])
def test_slopes_against_torch(name: str) -> None:
    functional = pytest.importorskip("torch.nn.functional")
    body, at, given, *_ = USES[name]
    _, new = sides(plan(net(body), name, at, **given))
    x, w = tensors(image(4), new["end.new.weight"])
    same = functional.relu(x) if name == "activation.prelu" else functional.leaky_relu(x, 0.2)
    near(functional.prelu(x, w), same)
