"""ONNX files that nobody wrote in good faith, and the code that each is refused with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

Write = Callable[[Path], None]


def value(name: str, *shape: int | str | None) -> object:
    """A float tensor of a graph's signature."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model(
    nodes: list[NodeProto],
    initializers: list[TensorProto] | None = None,
    *,
    inputs: list[object] | None = None,
    outputs: list[object] | None = None,
    opset: int = 17,
    **more: object,
) -> ModelProto:
    """A model from x [N, 3] to y, not checked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", "N", 3)] if inputs is None else inputs,
        [value("y", "N", 3)] if outputs is None else outputs,
        initializers or [],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def node(op: str, inputs: list[str], outputs: list[str], **attrs: object) -> NodeProto:
    """A node."""
    return helper.make_node(op, inputs, outputs, name=f"n_{outputs[0]}", **attrs)


def tensor(
    name: str, dims: list[int], raw: bytes = b"", kind: int = TensorProto.FLOAT
) -> TensorProto:
    """An initializer that declares what it likes."""
    made = TensorProto(name=name, dims=dims, data_type=kind)
    made.raw_data = raw
    return made


def whole(name: str, *values: int) -> TensorProto:
    """An initializer of whole numbers."""
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def _file(make: Callable[[], ModelProto]) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(make().SerializeToString())

    return write


def _bytes(data: bytes) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def relu() -> ModelProto:
    """A good model."""
    return model([node("Relu", ["x"], ["y"])])


def _with(initializer: TensorProto, op: str = "Add") -> Callable[[], ModelProto]:
    return lambda: model([node(op, ["x", initializer.name], ["y"])], [initializer])


def _external(location: str, **more: object) -> Callable[[], ModelProto]:
    made = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT)
    made.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **more}.items():
        made.external_data.add(key=key, value=str(text))
    return _with(made)


def _link(path: Path) -> None:
    outside = path.parent.parent / "outside.bin"
    outside.write_bytes(bytes(12))
    (path.parent / "w.bin").symlink_to(outside)
    path.write_bytes(_external("w.bin")().SerializeToString())


def _linked_folder(path: Path) -> None:
    (path.parent / "sub").symlink_to(path.parent.parent)
    (path.parent.parent / "outside.bin").write_bytes(bytes(12))
    path.write_bytes(_external("sub/outside.bin")().SerializeToString())


def _short_data(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(bytes(8))
    path.write_bytes(_external("w.bin")().SerializeToString())


def _bad_text(path: Path) -> None:
    data = relu().SerializeToString()
    assert data.count(b"Relu") == 1
    path.write_bytes(data.replace(b"Relu", b"R\xff\xfeu"))


def _bad_name(path: Path) -> None:
    data = _with(tensor("wwww", [3], bytes(12)))().SerializeToString()
    path.write_bytes(data.replace(b"wwww", b"w\xff\xfew"))


def _nested(levels: int) -> ModelProto:
    body = helper.make_graph([node("Relu", ["x"], ["b0"])], "b", [], [value("b0", None)])
    for level in range(1, levels):
        cond = node("Constant", [], [f"c{level}"], value=_truth())
        branch = node(
            "If", [f"c{level}"], [f"b{level}"], then_branch=body, else_branch=GraphProto(name="e")
        )
        body = helper.make_graph([cond, branch], "b", [], [value(f"b{level}", None)])
    top = node("If", ["c"], ["y"], then_branch=body, else_branch=GraphProto(name="e"))
    return model([node("Constant", [], ["c"], value=_truth()), top])


def _deep_bytes(path: Path) -> None:
    """Messages in messages: a node's attribute's graph's node, ..."""
    inner = b""
    for _ in range(200):
        graph = b"\x0a" + _varint(len(inner)) + inner  # GraphProto.node
        attribute = b"\x32" + _varint(len(graph)) + graph  # AttributeProto.g
        inner = b"\x2a" + _varint(len(attribute)) + attribute  # NodeProto.attribute
    graph = b"\x0a" + _varint(len(inner)) + inner
    path.write_bytes(b"\x08\x08\x3a" + _varint(len(graph)) + graph)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _bomb(path: Path) -> None:
    """Two bytes a node: protobuf would make a hundred of each."""
    graph = b"\x0a\x00" * 4_000_000
    path.write_bytes(b"\x08\x08\x3a" + _varint(len(graph)) + graph)


def _attribute_bomb(path: Path) -> None:
    attribute = b"\x40\x01" * 3_000_000  # AttributeProto.ints, one field a number
    inner = b"\x2a" + _varint(len(attribute)) + attribute
    graph = b"\x0a" + _varint(len(inner)) + inner
    path.write_bytes(b"\x08\x08\x3a" + _varint(len(graph)) + graph)


def _truth() -> TensorProto:
    return helper.make_tensor("t", TensorProto.BOOL, [], [True])


def _functions(levels: int, *, circular: bool = False) -> ModelProto:
    """Each function calls the next twice."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made = []
    for level in range(levels):
        last = level == levels - 1
        op, domain = ("Relu", "") if last else (f"f{level + 1}", "f")
        if last and circular:
            op, domain = "f0", "f"
        nodes = [
            helper.make_node(op, ["a"], ["b"], domain=domain),
            helper.make_node(op, ["b"], ["c"], domain=domain),
        ]
        made.append(helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, imports))
    found = model([helper.make_node("f0", ["x"], ["y"], domain="f")], functions=made)
    found.opset_import.append(helper.make_opsetid("f", 1))
    return found


def _attribute(kind: int) -> ModelProto:
    bad = node("Softmax", ["x"], ["y"])
    named = b"\x0a\x04axis\xa0\x01" + bytes([kind])  # a name and a type
    bad.attribute.append(AttributeProto.FromString(named))
    return model([bad])


def _huge_shape(op: str, *sizes: int) -> Callable[[], ModelProto]:
    return lambda: model(
        [node(op, ["s"], ["w"]), node("Add", ["x", "w"], ["y"])], [whole("s", *sizes)]
    )


def _expanded() -> ModelProto:
    small = tensor("v", [1], bytes(4))
    nodes = [node("Expand", ["v", "s"], ["w"]), node("Add", ["x", "w"], ["y"])]
    return model(nodes, [small, whole("s", 10**6, 10**6)])


def _many_weights() -> ModelProto:
    nodes, name = [], "x"
    for number in range(16):
        nodes += [
            node("ConstantOfShape", ["s"], [f"w{number}"]),
            node("MatMul", [name, f"w{number}"], [f"h{number}"]),
        ]
        name = f"h{number}"
    inputs = [value("x", "N", 11_000)]
    nodes.append(node("Relu", [name], ["y"]))
    return model(nodes, [whole("s", 11_000, 11_000)], inputs=inputs)


def _doubling() -> ModelProto:
    """Concat of a constant with itself, forty times."""
    nodes, name = [], "w"
    for number in range(40):
        nodes.append(node("Concat", [name, name], [f"c{number}"], axis=0))
        name = f"c{number}"
    return model([*nodes, node("Add", ["x", name], ["y"])], [tensor("w", [1024], bytes(4096))])


def _doubled_value() -> ModelProto:
    """The same with a value of the network."""
    nodes, name = [], "x"
    for number in range(60):
        nodes.append(node("Concat", [name, name], [f"c{number}"], axis=1))
        name = f"c{number}"
    return model([*nodes, node("Relu", [name], ["y"])])


def _changed(change: Callable[[ModelProto], None]) -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        made = relu()
        change(made)
        return made

    return make


def _ir(made: ModelProto) -> None:
    made.ir_version = 99


def _no_opset(made: ModelProto) -> None:
    del made.opset_import[:]


def _negative(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -3


def _wide(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 10**12


def _overflow(made: ModelProto) -> None:
    for _ in range(4):
        made.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2**60)


def _text_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _no_shape(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.ClearField("shape")


def _loop() -> ModelProto:
    body = helper.make_graph([], "b", [], [])
    return model([node("Loop", ["x", "x", "x"], ["y"], body=body)])


def _pair(first: NodeProto, second: NodeProto) -> Callable[[], ModelProto]:
    return lambda: model([first, second])


_GOOD = relu().SerializeToString()

HOSTILE: dict[str, tuple[str, Write]] = {
    "empty": ("A530", _bytes(b"")),
    "zeros": ("A530", _bytes(bytes(1000))),
    "noise": ("A530", _bytes(bytes(range(256)) * 8)),
    "text": ("A530", _bytes(b"version 1\narch x { }\n")),
    "pickle": ("A530", _bytes(b"\x80\x02}q\x00.")),
    "zip": ("A530", _bytes(b"PK\x03\x04" + bytes(60))),
    "truncated": ("A530", _bytes(_GOOD[: len(_GOOD) // 2])),
    "truncated at the end": ("A530", _bytes(_GOOD[:-1])),
    "no graph": ("A530", _bytes(ModelProto(ir_version=8).SerializeToString())),
    "an operator that is no text": ("A530", _bad_text),
    "a name that is no text": ("A530", _bad_name),
    "deep messages": ("A533", _deep_bytes),
    "a bomb of empty nodes": ("A533", _bomb),
    "a bomb of numbers": ("A533", _attribute_bomb),
    "a cycle": (
        "A531",
        _file(_pair(node("Add", ["x", "b"], ["y"]), node("Relu", ["y"], ["b"]))),
    ),
    "its own input": ("A531", _file(lambda: model([node("Add", ["x", "y"], ["y"])]))),
    "a missing input": ("A531", _file(lambda: model([node("Add", ["x", "z"], ["y"])]))),
    "a missing output": ("A531", _file(lambda: model([node("Relu", ["x"], ["z"])]))),
    "no inputs to a node": ("A531", _file(lambda: model([node("Add", [], ["y"])]))),
    "too many inputs": ("A531", _file(lambda: model([node("Relu", ["x", "x"], ["y"])]))),
    "duplicate results": (
        "A531",
        _file(_pair(node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"]))),
    ),
    "duplicate initializers": (
        "A531",
        _file(
            lambda: model(
                [node("Add", ["x", "w"], ["y"])],
                [tensor("w", [3], bytes(12)), tensor("w", [3], bytes(12))],
            )
        ),
    ),
    "duplicate inputs": (
        "A531",
        _file(lambda: model([node("Relu", ["x"], ["y"])], inputs=[value("x", 1), value("x", 1)])),
    ),
    "duplicate outputs": (
        "A531",
        _file(lambda: model([node("Relu", ["x"], ["y"])], outputs=[value("y", 1), value("y", 1)])),
    ),
    "an attribute of another type": ("A531", _file(lambda: _attribute(AttributeProto.STRING))),
    "an attribute of no type": ("A531", _file(lambda: _attribute(77))),
    "an attribute without a home": (
        "A531",
        _file(lambda: model([node("Relu", ["x"], ["y"], slope=1.0)])),
    ),
    "an attribute that is not there": (
        "A531",
        _file(lambda: model([node("Cast", ["x"], ["y"])])),
    ),
    "an attribute of a function": (
        "A531",
        _file(
            lambda: model(
                [
                    NodeProto(
                        op_type="Softmax",
                        input=["x"],
                        output=["y"],
                        attribute=[AttributeProto(name="axis", type=2, ref_attr_name="a")],
                    )
                ]
            )
        ),
    ),
    "10^9 elements in a small file": ("A533", _file(_with(tensor("w", [10**9], bytes(40))))),
    "10^8 elements in a small file": ("A531", _file(_with(tensor("w", [10**8], bytes(40))))),
    "sizes that overflow": ("A533", _file(_with(tensor("w", [2**62, 4], bytes(40))))),
    "a negative size": ("A531", _file(_with(tensor("w", [-3], bytes(12))))),
    "an unknown element type": ("A531", _file(_with(tensor("w", [3], bytes(12), 99)))),
    "no element type": ("A531", _file(_with(tensor("w", [3], bytes(12), 0)))),
    "texts as weights": ("A536", _file(_with(tensor("w", [3], b"", TensorProto.STRING)))),
    "an absolute path": ("A532", _file(_external("/etc/passwd"))),
    "a path upwards": ("A532", _file(_external("../../etc/passwd"))),
    "a path up and down": ("A532", _file(_external("a/../../w.bin"))),
    "a path of Windows": ("A532", _file(_external("C:\\w.bin"))),
    "a path with a zero": ("A532", _file(_external("w\0.bin"))),
    "a path of no file": ("A532", _file(_external("w.bin"))),
    "a path of a folder": ("A532", _file(_external("."))),
    "no path": ("A532", _file(_external(""))),
    "a link outwards": ("A532", _link),
    "a link of a folder outwards": ("A532", _linked_folder),
    "data that is too short": ("A532", _short_data),
    "an offset that is no number": ("A532", _file(_external("model.onnx", offset="-1"))),
    "an offset beyond the end": ("A532", _file(_external("model.onnx", offset=10**15))),
    "a length of its own": ("A531", _file(_external("model.onnx", length=7))),
    "nested graphs": ("A533", _file(lambda: _nested(20))),
    "functions that call each other twice": ("A533", _file(lambda: _functions(20))),
    "functions nested too deeply": ("A533", _file(lambda: _functions(40))),
    "a function that calls itself": ("A531", _file(lambda: _functions(3, circular=True))),
    "a constant of 10^12": ("A533", _file(_huge_shape("ConstantOfShape", 10**12))),
    "a constant of 10^6 by 10^6": ("A533", _file(_huge_shape("ConstantOfShape", 10**6, 10**6))),
    "a constant of a negative shape": ("A533", _file(_huge_shape("ConstantOfShape", -5))),
    "a number expanded": ("A533", _file(_expanded)),
    "many weights of nothing": ("A533", _file(_many_weights)),
    "a constant doubled forty times": ("A533", _file(_doubling)),
    "a value doubled sixty times": ("A533", _file(_doubled_value)),
    "an IR version of the future": ("A534", _file(_changed(_ir))),
    "no opset": ("A531", _file(_changed(_no_opset))),
    "an opset of the future": (
        "A534",
        _file(lambda: model([node("Relu", ["x"], ["y"])], opset=999)),
    ),
    "an opset of the past": ("A534", _file(lambda: model([node("Relu", ["x"], ["y"])], opset=3))),
    "a negative input": ("A531", _file(_changed(_negative))),
    "an input of 10^12": ("A533", _file(_changed(_wide))),
    "an input beyond numbers": ("A533", _file(_changed(_overflow))),
    "an input of text": ("A536", _file(_changed(_text_input))),
    "an input without a shape": ("A536", _file(_changed(_no_shape))),
    "a loop": ("A535", _file(_loop)),
    "an unknown operator": ("A535", _file(lambda: model([node("Frobnicate", ["x"], ["y"])]))),
    "a reshape to too much": (
        "A536",
        _file(lambda: model([node("Reshape", ["x", "s"], ["y"])], [whole("s", 2**40, 2**40, -1)])),
    ),
    "a convolution beyond its image": (
        "A536",
        _file(
            lambda: model(
                [node("Conv", ["x", "w"], ["y"])],
                [tensor("w", [1, 1, 9, 9], bytes(324))],
                inputs=[value("x", 1, 1, 4, 4)],
            )
        ),
    ),
    "a transpose of axes that are not there": (
        "A536",
        _file(lambda: model([node("Transpose", ["x"], ["y"], perm=[5, 6])])),
    ),
    "a pooling without windows": (
        "A536",
        _file(lambda: model([node("MaxPool", ["x"], ["y"], kernel_shape=[0, -1])])),
    ),
    "huge paddings": (
        "A536",
        _file(lambda: model([node("Pad", ["x", "p"], ["y"])], [whole("p", 0, 2**61, 0, 2**61)])),
    ),
}
"""By name: the code, and what writes the file."""
