"""A network as a Python file: its classes, and a function that makes it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import fx

from archir.ir.graph import Graph, Output, Value
from archir.ops.record import OpSet
from archir.weights.init import initial

from .formals import Class, Formal, class_of
from .layout import WIDTH, Group, header, lay, literal
from .loading import imports, loader
from .making import Maker, is_plain
from .regions import Finder, Kind, Region
from .running import Runner
from .source import Carried
from .tree import Tree, grow

RESERVED = ("Tensor", "Path", "OrderedDict", "PREPROCESS", "WEIGHTS", "DTYPES", "CONSTANTS")
_CONSTANT_STARTS = {"zeros": 0.0, "ones": 1.0, "quarter": 0.25}


@dataclass(frozen=True)
class Words:
    """What the author of a network called its parts."""

    blocks: Mapping[str, str] = field(default_factory=dict)
    """The block that is instantiated at a path."""
    values: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """By the path of a block's instance, the names in its text and the values they stand for."""
    about: Sequence[str] = ()
    """Lines on where the network comes from."""
    module: str = "model"
    """What the file is imported as."""


@dataclass(frozen=True)
class Written:
    """The text of a file, and the constants that it reads from the weights' file."""

    text: str
    constants: Mapping[str, torch.Tensor]


def write(graph: Graph, module: fx.GraphModule, ops: OpSet, words: Words) -> Written:
    """Write a lowered network as the source of a file that needs torch alone.

    Raises:
        ArchirError: A562, a layer of the network has no source that could go along.
    """
    carried = Carried()
    tree = grow(graph, module, _starts(graph, ops))
    finder = Finder(tree, carried)
    root = finder.run()
    classes: dict[int, Class] = {}
    for kind in finder.kinds.values():
        if not kind.inline:
            made = class_of(kind, classes)
            if _is_laboured(made, words):
                kind.inline = True
            else:
                classes[kind.number] = made
    kinds = [k for k in finder.kinds.values() if not k.inline]
    names = _names(graph, kinds, words, {*carried.owners, *RESERVED})
    wished = _wished(tree, graph, words)
    written = [
        _class(classes[kind.number], classes, names, tree, carried, wished) for kind in kinds
    ]
    held = {
        f"{place.path}.{name}" if place.path else name: held
        for place in tree.root.walk()
        for name, held in place.tensors.items()
        if held.kind == "constant"
    }
    constants = {path: each.tensor for path, each in held.items()}
    read = [path for path, each in held.items() if not each.is_small]
    dtypes = {tensor.dtype for tensor in (*module.state_dict().values(), *constants.values())}
    body = "\n\n\n".join([*(text.rstrip() for text in carried.texts.values()), *written])
    head = [_docstring(graph, words), imports(body, carried.imports), _preprocess(graph)]
    parts = [
        "\n\n".join(part for part in head if part),
        body,
        loader(names[root.kind.number], dtypes, read),
    ]
    return Written("\n\n\n".join(parts) + "\n", constants)


def _starts(graph: Graph, ops: OpSet) -> dict[str, float | None]:
    """The number that each tensor is filled with at first; None for a random start."""
    found: dict[str, float | None] = {}
    for node in graph:
        for role, path in node.params.items():
            if path not in found:
                first = initial(node, role, graph.parameters[path], ops, 0)
                start = _CONSTANT_STARTS.get(first.initialiser)
                found[path] = first.fill if first.fill is not None else start
    return found


# -- names


def _names(graph: Graph, kinds: Sequence[Kind], words: Words, taken: set[str]) -> dict[int, str]:
    """A name for each class: that of the author's block, else the last word of its path."""
    found: dict[int, str] = {}
    taken = {*taken, "nn"}
    for kind in kinds:
        prefixes = [region.prefix for region in kind.regions]
        if prefixes == [""]:
            wish = graph.name
        else:
            wish = next((words.blocks[p] for p in prefixes if p in words.blocks), "")
            wish = wish or _last_word(prefixes[0])
        wish = _camel(wish) or "Network"
        name, number = wish, 1
        while name in taken:
            number += 1
            name = f"{wish}{number}"
        taken.add(name)
        found[kind.number] = name
    return found


def _last_word(path: str) -> str:
    for segment in reversed(path.split(".")):
        word = segment.rstrip("0123456789").rstrip("_")
        if _camel(word):
            return word
    return "block"


def _camel(text: str) -> str:
    """``conv_bn`` as ``ConvBn``; empty where there is no letter to begin with."""
    parts = "".join(c if c.isascii() and c.isalnum() else " " for c in text).split()
    name = "".join(part[:1].upper() + part[1:] for part in parts)
    return name if name[:1].isalpha() else ""


def _is_laboured(made: Class, words: Words) -> bool:
    """Whether a row of layers is easier to read where it is used than as a class."""
    kind = made.kind
    ours = not any(region.prefix in words.blocks for region in kind.regions)
    return kind.chain and ours and len(made.formals) > len(kind.regions)


def _wished(tree: Tree, graph: Graph, words: Words) -> dict[str, dict[fx.Node, str]]:
    """The author's names of values, by the path of the text's block and the calls that give them.

    Where a node is several calls, its results are the last of them.
    """
    last: dict[str, list[fx.Node]] = {}
    for call in tree.calls:
        last.setdefault(tree.homes[call], []).append(call)
    last.update(zip(graph.inputs, ([call] for call in tree.inputs), strict=True))
    found: dict[str, dict[fx.Node, str]] = {}
    for path, names in words.values.items():
        for name, value in names.items():
            count = len(graph.node(value.node).types) if value.node in graph else 0
            calls = last.get(value.node, [])[-count:] if count else []
            plain = "x" if name == "input" else "".join(c if c.isalnum() else "_" for c in name)
            if len(calls) == count > 0 and plain.isascii() and is_plain(plain):
                found.setdefault(path, {}).setdefault(calls[value.port], plain)
    return found


# -- classes


def _class(
    own: Class,
    classes: Mapping[int, Class],
    names: Mapping[int, str],
    tree: Tree,
    carried: Carried,
    wished: Mapping[str, Mapping[fx.Node, str]],
) -> str:
    """The text of a class."""
    kind = own.kind
    region = kind.regions[0]
    maker = Maker(region, own, classes, names, carried)
    forward: list[str] = []
    if not kind.chain:
        forward = ["", *Runner(region, own, tree, maker, carried, _within(region, wished)).lines()]
    made = lay("", maker.row(), 8) if kind.chain else ["        super().__init__()"]
    if not kind.chain:
        kept = [formal.name for formal in own.ordered if formal.kept]
        made += [f"        self.{name} = {name}" for name in kept]
        made += maker.statements()
    base = "nn.Sequential" if kind.chain else "nn.Module"
    return "\n".join(
        [
            f"class {names[kind.number]}({base}):",
            *_class_docstring(kind),
            "",
            *header("__init__", ["self", *map(_parameter, own.ordered)], "None", 4),
            *made,
            *forward,
        ]
    )


def _within(region: Region, wished: Mapping[str, Mapping[fx.Node, str]]) -> dict[fx.Node, str]:
    """The names that hold in a region: its own, and those of scopes that it has taken up."""
    inner = [item.prefix for item in region.items if isinstance(item, Region)]
    found = dict(wished.get(region.prefix, {}))
    for path, names in wished.items():
        apart = any(path == p or path.startswith(f"{p}.") for p in inner)
        if path != region.prefix and region.holds(path) and not apart:
            found = {**{n: name for n, name in names.items() if name != "x"}, **found}
    return found


def _parameter(formal: Formal) -> str:
    typed = f"{formal.name}: {formal.annotation}" if formal.annotation else formal.name
    if not formal.optional:
        return typed
    equals = " = " if formal.annotation else "="
    return f"{typed}{equals}{literal(formal.default)}"


def _class_docstring(kind: Kind) -> list[str]:
    paths = [region.prefix for region in kind.regions]
    if paths == [""]:
        return ['    """The network."""']
    text, shown = _cleaned(paths[0]), 1
    for path in paths[1:]:
        longer = f"{text}, {_cleaned(path)}"
        if len(longer) > WIDTH - 24:
            break
        text, shown = longer, shown + 1
    more = f" and {len(paths) - shown} more" if shown < len(paths) else ""
    return [f'    """{text}{more}."""']


# -- what stands around


def _cleaned(text: str) -> str:
    """Text for a docstring: printable, and unable to end it."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain.replace("\\", "/").replace('"', "'")


def _docstring(graph: Graph, words: Words) -> str:
    lines = [f"{_cleaned(graph.name)}: a network that archir wrote as a torch module.", ""]
    for line in words.about:
        lines += textwrap.wrap(_cleaned(line), WIDTH, subsequent_indent="    ") or [""]
    lines += [
        "",
        "This file needs torch alone:",
        "",
        f"    from {words.module} import WEIGHTS, model",
        "",
        "    net = model(WEIGHTS).eval()",
        "",
        *(f"Input: {_stated(name, graph.node(name).types[0])}" for name in graph.inputs),
        *(f"Output: {_output(graph, output)}" for output in graph.outputs),
    ]
    kept = [line for line, after in pairwise([*lines, ""]) if line or after]
    return "\n".join(['"""' + kept[0], *kept[1:], '"""'])


def _output(graph: Graph, output: Output) -> str:
    return _stated(output.name, graph.type_of(output.value))


def _stated(name: str, type_: object) -> str:
    return f"{_cleaned(name)}, {type_}"


def _preprocess(graph: Graph) -> str:
    """What the images are before they go in, where the network says so."""
    entries = graph.meta.get("preprocess")
    if not isinstance(entries, tuple):
        return ""
    pairs = [entry for entry in entries if isinstance(entry, tuple) and len(entry) == 2]
    items = tuple((f"{literal(name)}: ", literal(value)) for name, value in pairs)
    return "\n".join(lay("PREPROCESS = ", Group("", items, "{}"), 0))
