"""Raising ONNX files: what exporters write comes back as the layers it was, and computes the same.

The verdict of an import is part of it: `import_onnx` runs the file in ONNX Runtime beside the
network in torch and the network exported anew. A test that imports has compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import torch
from archir.backends import onnx as backend
from archir.backends.onnx.raising import import_onnx, naming, pointwise, raise_file, table
from onnx import TensorProto, helper, parser
from onnx.backend.test.case.node import collect_testcases
from torch import nn

import archir
from archir.diag import CHECK_FAILED, UNSUPPORTED, ArchirError
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.lang.printer import print_graph
from archir.ops import STANDARD
from archir.ops.closeness import distance
from archir.target import Imported, ImportOptions, backends
from archir.weights.store import check_weights

_EXAMPLES = Path(__file__).parents[2] / "examples"
_BOUND = 1e-4


def _import(path: Path, **options: Any) -> Imported:
    found = import_onnx(str(path), ImportOptions(**options))
    check_weights(found.graph, found.weights)
    compared = found.facts["compared"]
    assert max(compared["torch"].values()) <= _BOUND
    return found


def _saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _parsed(path: Path, text: str, **tensors: np.ndarray[Any, Any]) -> Path:
    model = parser.parse_model(text)
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return _saved(path, model)


def _ops(graph: Graph) -> list[str]:
    return [node.op for node in graph if node.op != "input"]


def _refusal(path: Path) -> ArchirError:
    with pytest.raises(ArchirError) as caught:
        import_onnx(str(path), ImportOptions())
    return caught.value


def _random(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    stream = np.random.Generator(np.random.PCG64(seed))
    return stream.standard_normal(shape).astype(np.float32)


# -- archir's own exports


@pytest.mark.parametrize("name", ["digits", "nash_start", "lenet_300_100", "resnet20"])
def test_an_export_comes_back_as_the_same_graph(name: str, tmp_path: Path) -> None:
    network = archir.load(str(_EXAMPLES / f"{name}.arch")).init(0, random_statistics=True)
    assert network.weights is not None
    model = backend.build(network.graph, network.weights)
    found = _import(_saved(tmp_path / "net.onnx", model))
    assert graph_hash(found.graph) == graph_hash(network.graph)
    assert set(found.weights) == set(network.weights)
    for path, array in network.weights.items():
        if not path.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found.weights[path], array)
    text = print_graph(found.graph, STANDARD)
    assert graph_hash(archir.lang.load(archir.diag.Source("t", text), STANDARD).graph) == (
        graph_hash(found.graph)
    )


def test_an_export_with_attention_keeps_its_names(tmp_path: Path) -> None:
    network = archir.load(str(_EXAMPLES / "vit_tiny.arch")).init(0)
    assert network.weights is not None
    found = _import(_saved(tmp_path / "net.onnx", backend.build(network.graph, network.weights)))
    assert set(found.weights) == set(network.weights)
    assert "scaled_dot_product_attention" in _ops(found.graph)


# -- onnx's own models


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_the_light_models_of_onnx(name: str) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    found = _import(folder / f"light_{name}.onnx")
    # Their weights are constants, so that all classes are equal: that is said.
    assert any("do not depend on the inputs" in line for line in found.notes)
    assert found.facts["compared"]["batches"] == [1]


_NOT_LIKE_RUNTIME = {
    # ONNX Runtime rounds the resized length first; the verdict is taken with it.
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
    # Its expected values are stated with four digits.
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
}
_HALF = {np.dtype(np.float16): 1e-2}


def _cases() -> list[tuple[str, Any]]:
    """For each operator the first cases of the standard's own tests that are raised."""
    found: dict[str, list[Any]] = {}
    for case in collect_testcases(None):
        kinds = {node.op_type for node in case.model.graph.node}
        if len(kinds) == 1 and case.name not in _NOT_LIKE_RUNTIME and "bf16" not in case.name:
            (kind,) = kinds
            if kind in table.RAISE:
                found.setdefault(kind, []).append(case)
    return sorted(found.items())


def _constants(case: Any) -> onnx.ModelProto:
    """All inputs but the first as initializers, as they are in networks."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values = dict(zip((i.name for i in model.graph.input), case.data_sets[0][0], strict=False))
    for name, array in list(values.items())[1:]:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    del model.graph.input[1:]
    return model


@pytest.mark.filterwarnings("ignore")
def test_the_tests_of_the_standard_agree_for_each_operator(tmp_path: Path) -> None:
    """Every operator that is raised agrees with all of the first four tests that it raises."""
    run: Any = backends()["torch"]
    silent, agreed = [], 0
    for kind, cases in _cases():
        seen = 0
        for case in cases:
            feed, outputs = case.data_sets[0][0][0], case.data_sets[0][1]
            if not isinstance(feed, np.ndarray) or seen == 4:
                continue
            try:
                raised, _ = raise_file(_saved(tmp_path / "m.onnx", _constants(case)))
            except (ArchirError, TypeError):
                continue
            found = run.runner(raised.graph, raised.weights)({next(iter(raised.inputs)): feed})
            for a, b in zip(outputs, found, strict=False):
                wide, other = (np.nan_to_num(np.asarray(x, np.float64), posinf=9.0) for x in (a, b))
                bound = _HALF.get(np.asarray(a).dtype, _BOUND)
                assert distance(wide, other) <= bound, (case.name, kind)
            seen += 1
        agreed += seen
        if not seen:
            silent.append(kind)
    assert agreed > 200
    # Operators whose tests are of an old opset, read further outputs, feed the second operand, or
    # give the types of archir as messages.
    never = {
        "Cast",
        "CastLike",
        "ConstantOfShape",
        "LayerNormalization",
        "Not",
        "Range",
        "Upsample",
    }
    assert set(silent) <= never


# -- torch's exporters


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return x + y * self.gate(y)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.layers = nn.Sequential(_Block(), _Block())
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.norm = nn.LayerNorm(4)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.stem(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return self.head(x[:, 0])


def _module() -> nn.Module:
    torch.manual_seed(0)
    made = _Small()
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        if tensor.is_floating_point():
            low = 0.5 if name.endswith(("running_var", "norm.weight")) else -0.5
            nn.init.uniform_(tensor.data, low, 1)
    return made.eval()


def _exported(path: Path, module: nn.Module, *, dynamo: bool, opset: int = 17) -> Path:
    x = torch.randn(2, 3, 16, 16)
    if dynamo:
        pytest.importorskip("onnxscript")
        sizes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(module, (x,), str(path), dynamo=True, dynamic_shapes=sizes, verbose=False)
    else:
        axes = {"input": {0: "batch"}}
        torch.onnx.export(
            module,
            (x,),
            str(path),
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=opset,
        )
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dynamo", "opset"), [(True, 20), (False, 17), (False, 14)])
def test_both_exporters_of_torch(*, dynamo: bool, opset: int, tmp_path: Path) -> None:
    module = _module()
    found = _import(_exported(tmp_path / "net.onnx", module, dynamo=dynamo, opset=opset))
    assert found.graph.node(found.graph.inputs[0]).types[0].shape[0] != 2  # the batch is open
    ops = _ops(found.graph)
    assert ops.count("conv") == 5
    assert ops.count("linear") == 4
    for op in ("layer_norm", "scaled_dot_product_attention", "gelu", "parameter"):
        assert ops.count(op) == 1, op
    state = module.state_dict()
    kept = ["stem.weight", "stem.bias", "head.0.weight", "head.2.bias", "token", "norm.weight"]
    for path in kept:
        np.testing.assert_array_equal(found.weights[path], state[path].numpy(), err_msg=path)
    assert {n.name for n in found.graph} >= {"stem", "layers.0.conv", "layers.1.conv", "head.1"}
    text = print_graph(found.graph, STANDARD)
    assert "2 * " in text or "layers.1" in text
    assert found.facts["producer"].startswith("pytorch")
    assert found.facts["compared"]["batches"] == [1, 3]


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    network = archir.load(str(_EXAMPLES / "digits.arch")).init(0)
    assert network.weights is not None
    model = backend.build(network.graph, network.weights)
    onnx.save_model(
        model,
        str(tmp_path / "net.onnx"),
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    found = _import(tmp_path / "net.onnx")
    assert graph_hash(found.graph) == graph_hash(network.graph)
    assert set(found.facts["sha256"]) == {"net.onnx", "net.data"}


# -- what converters from TensorFlow write

_TENSORFLOW = """
<ir_version: 8, opset_import: ["" : 13], producer_name: "tf2onnx">
tf2onnx (float[unk__12, 8, 8, 3] "model/input:0") => (float[unk__13, 5] "Identity:0")
<int64[4] pads = {0, 0, 1, 1}>
{
    turned = Transpose<perm = [0, 3, 1, 2]>("model/input:0")
    conv = Conv<auto_pad = "SAME_UPPER", strides = [2, 2], kernel_shape = [3, 3]>(
        turned, "model/conv/Conv2D/ReadVariableOp:0", "model/conv/bias:0")
    low = Constant<value = float {0.0}>()
    high = Constant<value = float {6.0}>()
    six = Clip(conv, low, high)
    same = Identity(six)
    pooled = AveragePool<auto_pad = "SAME_UPPER", kernel_shape = [3, 3], strides = [2, 2]>(same)
    back = Transpose<perm = [0, 2, 3, 1]>(pooled)
    shape = Shape(back)
    wide = Cast<to = 6>(shape)
    zero = Constant<value = int64[1] {0}>()
    one = Constant<value = int64[1] {1}>()
    batch = Slice(wide, zero, one)
    rest = Constant<value = int32[1] {-1}>()
    joined = Concat<axis = 0>(batch, rest)
    target = Cast<to = 7>(joined)
    flat = Reshape(back, target)
    product = MatMul(flat, "model/dense/MatMul/ReadVariableOp:0")
    sum = Add(product, "model/dense/BiasAdd/ReadVariableOp:0")
    "Identity:0" = Softmax<axis = 1>(sum)
}
"""


def test_graphs_in_the_style_of_tf2onnx(tmp_path: Path) -> None:
    tensors = {
        "model/conv/Conv2D/ReadVariableOp:0": _random(4, 3, 3, 3),
        "model/conv/bias:0": _random(4, seed=1),
        "model/dense/MatMul/ReadVariableOp:0": _random(16, 5, seed=2),
        "model/dense/BiasAdd/ReadVariableOp:0": _random(5, seed=3),
    }
    model = parser.parse_model(_TENSORFLOW)
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    found = _import(_saved(tmp_path / "net.onnx", model))
    ops = _ops(found.graph)
    assert ops[:4] == ["permute", "pad", "conv", "relu6"]
    assert ops[-3:] == ["flatten", "linear", "softmax"]
    assert str(found.graph.node(found.graph.inputs[0]).types[0]) == "f32[N, 8, 8, 3]"
    (linear,) = [node for node in found.graph if node.op == "linear"]
    assert linear.attrs["bias"]
    dense = tensors["model/dense/MatMul/ReadVariableOp:0"]
    np.testing.assert_array_equal(found.weights[linear.params["weight"]], dense.T)
    assert any(line.startswith("inputs were renamed") for line in found.notes)


# -- shapes, types, several inputs and outputs


def test_open_sizes_become_symbols_and_can_be_stated(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[batch_size, seq, 6] x, float[batch_size, seq, 1] m) => (float[batch_size, seq, 6] y)
    { y = Mul(x, m) }
    """
    path = _parsed(tmp_path / "net.onnx", text)
    found = _import(path)
    shapes = [str(found.graph.node(name).types[0]) for name in found.graph.inputs]
    assert shapes == ["f32[N, Seq, 6]", "f32[N, Seq, 1]"]
    single = "<ir_version: 8, opset_import: ['' : 17]> g (float[n, c, h, w] x) => (float y)"
    text = single.replace("'", '"') + "{ y = Relu(x) }"
    path = _parsed(tmp_path / "open.onnx", text.replace("(float y)", "(float[n, c, h, w] y)"))
    stated = _import(path, size=(3, 8, 9))
    assert str(stated.graph.node("x").types[0]) == "f32[N, 3, 8, 9]"
    with pytest.raises(ArchirError) as caught:
        _import(path, size=(3, 8))
    assert caught.value.diagnostics[0].code == "A531"


def test_whole_numbers_go_in_and_several_outputs_come_out(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[N, 7] tokens, float[N, 4] more) => (float[N, 4] a, float[N, 7, 4] b, int64[N] c)
    <int64[1] axes = {1}>
    {
        b = Gather(table, tokens)
        mean = ReduceMean<axes = [1], keepdims = 0>(b)
        a = Add(mean, more)
        c = ArgMax<axis = 1, keepdims = 0>(a)
    }
    """
    found = _import(_parsed(tmp_path / "net.onnx", text, table=_random(11, 4)))
    assert [output.name for output in found.graph.outputs] == ["a", "b", "c"]
    assert "embedding" in _ops(found.graph)
    assert found.facts["compared"]["torch"]["c"] == 0


def test_half_precision(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float16[N, 8] x) => (float16[N, 3] y) { y = Gemm<transB = 1>(x, w, b) }
    """
    held = {"w": _random(3, 8).astype(np.float16), "b": _random(3).astype(np.float16)}
    found = import_onnx(str(_parsed(tmp_path / "net.onnx", text, **held)), ImportOptions())
    assert found.facts["compared"]["torch"]["y"] <= 1e-2
    (linear,) = [node for node in found.graph if node.op == "linear"]
    assert found.weights[linear.params["weight"]].dtype == np.float16


def test_a_tensor_that_two_layers_hold_stays_one(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[N, 5] tokens) => (float[N, 5, 11] y)
    {
        h = Gather("emb.weight", tokens)
        turned = Transpose<perm = [1, 0]>("emb.weight")
        y = MatMul(h, turned)
    }
    """
    found = _import(_parsed(tmp_path / "net.onnx", text, **{"emb.weight": _random(11, 4)}))
    assert list(found.weights) == ["emb.weight"]
    assert _ops(found.graph) == ["embedding", "linear"]
    assert any("shared" in line for line in found.notes)


def test_local_functions_and_constant_branches_are_put_in_place(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[N, 3, 4] x) => (float[N, 3, 4] y)
    {
        shape = Shape<start = 1, end = 2>(x)
        three = Constant<value = int64[1] {3}>()
        same = Equal(shape, three)
        cond = Squeeze(same)
        h = If (cond) <
            then_branch = a () => (float[N, 3, 4] t) { t = Relu(x) },
            else_branch = b () => (float[N, 3, 4] e) { e = Neg(x) }
        >
        y = own.twice(h)
    }
    <domain: "own", opset_import: ["" : 17]>
    twice (a) => (b) { c = Tanh(a) b = Sigmoid(c) }
    """
    found = _import(_parsed(tmp_path / "net.onnx", text))
    assert _ops(found.graph) == ["relu", "tanh", "sigmoid"]


@pytest.mark.parametrize(
    ("mode", "places", "nearest", "op"),
    [
        ("nearest", "asymmetric", "floor", "upsample"),
        ("nearest", "half_pixel", "round_prefer_ceil", "upsample"),
        ("linear", "half_pixel", "floor", "upsample"),
        ("linear", "align_corners", "floor", "upsample"),
        ("nearest", "asymmetric", "ceil", "gather"),
        ("linear", "asymmetric", "floor", "matmul"),
        ("cubic", "half_pixel", "floor", "matmul"),
        ("cubic", "align_corners", "floor", "matmul"),
    ],
)
def test_images_are_resized(mode: str, places: str, nearest: str, op: str, tmp_path: Path) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2, 5, 6] x) => (float[N, 2, 10, 18] y)
    <float[4] scales = {{1.0, 1.0, 2.0, 3.0}}>
    {{
        y = Resize<mode = "{mode}", coordinate_transformation_mode = "{places}",
                   nearest_mode = "{nearest}">(x, , scales)
    }}
    """
    found = _import(_parsed(tmp_path / "net.onnx", text))
    assert op in _ops(found.graph)


# -- what is refused


def test_all_unknown_operators_are_named_at_once(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N, 3] x) => (float[N, 3] y)
    {
        a = com.microsoft.FastGelu(x)
        b, c, d = DynamicQuantizeLinear(a)
        e = DequantizeLinear(b, c, d)
        y = Relu(e)
    }
    """
    found = _refusal(_parsed(tmp_path / "net.onnx", text))
    assert found.status == UNSUPPORTED
    (only,) = found.diagnostics
    assert only.code == "A535"
    for word in ("com.microsoft.FastGelu", "`a`", "DynamicQuantizeLinear", "quantised numbers"):
        assert word in only.message


def test_all_nodes_that_cannot_be_raised_are_listed(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 4, 4] x, int64[1] k) => (float[N, 3, 4, 4] y, float z, float w)
    {
        s = Concat<axis = 0>(k, k)
        z = Reshape(x, s)
        p = LpPool<kernel_shape = [2, 2]>(x)
        y = Relu(x)
        w = Resize<mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize">(x, , f)
    }
    """
    scales = np.ones(4, np.float32)
    found = _refusal(_parsed(tmp_path / "net.onnx", text, f=scales))
    assert {d.code for d in found.diagnostics} == {"A536"}
    told = " ".join(d.message for d in found.diagnostics)
    assert "Reshape `z`" in told
    assert "tf_crop_and_resize" in told


def test_a_file_that_onnx_runtime_cannot_run(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (bfloat16[N, 3, 4, 4] x) => (bfloat16[N, 3, 2, 2] y)
    { y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) }
    """
    found = _refusal(_parsed(tmp_path / "net.onnx", text))
    assert [d.code for d in found.diagnostics] == ["A537"]


def test_a_network_that_computes_something_else_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**table.RAISE, "Relu": pointwise.POINTWISE["Abs"]}
    monkeypatch.setattr("archir.backends.onnx.raising.building.RAISE", wrong)
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 3] y) { a = Tanh(x) b = Relu(a) c = Sigmoid(b) y = Neg(c) }
    """
    found = _refusal(_parsed(tmp_path / "net.onnx", text))
    assert [d.code for d in found.diagnostics] == ["A538"]
    assert found.diagnostics[0].message.endswith("the first layer that differs is `abs`")
    assert found.status == CHECK_FAILED


def test_an_attribute_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], left_window_size=1)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2, 5, 4]) for name in "qkvy"
    ]
    graph = helper.make_graph([node], "g", values[:3], values[3:])
    opset = onnx.defs.onnx_opset_version()
    if "left_window_size" not in onnx.defs.get_schema("Attention", opset).attributes:
        pytest.skip("this onnx has no windows")
    imports = [helper.make_opsetid("", opset)]
    found = _refusal(_saved(tmp_path / "net.onnx", helper.make_model(graph, opset_imports=imports)))
    assert "left_window_size" in found.diagnostics[0].message


# -- names


@pytest.mark.parametrize(
    ("name", "op", "path"),
    [
        ("/layer1/layer1.0/conv1/Conv", "Conv", "layer1.0.conv1"),
        ("/features/features.1/block/block.0/block.0.0/Conv", "Conv", "features.1.block.0.0"),
        ("/Add_1", "Add", ""),
        (
            "StatefulPartitionedCall/model/conv2d/Conv2D",
            "Conv",
            "StatefulPartitionedCall.model.conv2d",
        ),
        ("stem.relu", "Relu", "stem.relu"),
        ("node_relu_3", "Relu", ""),
    ],
)
def test_the_module_of_a_node(name: str, op: str, path: str) -> None:
    assert naming.scope_of(helper.make_node(op, ["x"], ["y"], name=name)) == path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("model/conv/kernel:0", "model.conv"),
        ("conv1_w_0", "conv1"),
        ("onnx::Conv_193", ""),
        ("val_12", ""),
    ],
)
def test_the_layer_of_a_tensor(name: str, path: str) -> None:
    assert naming.stem(name, "weight") == path
