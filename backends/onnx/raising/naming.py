"""Paths for what an ONNX file calls by names of its own.

A layer is called like its tensors: `layer1.0.conv1.weight` makes the node `layer1.0.conv1`. What
has none of its own is called after the module that its code belongs to, where the exporter says
so, or after its node.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from onnx import NodeProto

from .site import Draft

MOST_SEGMENTS = 12
LONGEST = 120

_LEAF = re.compile(
    r"[._/](weight|bias|kernel|gamma|beta|scale|running_mean|running_var|moving_mean|"
    r"moving_variance|w|b|s|rm|riv|mean|var)(_?\d+)?(:\d+)?$"
)
_OWN = ("val_", "onnx::", "node_", "_")
"""How names begin that exporters make up."""
_TORCH = frozenset(
    {"type", "double", "float", "half", "bfloat16", "forward", "training", "train", "eval", "apply"}
    | {"to", "cpu", "cuda", "children", "modules", "parameters", "buffers", "code", "graph", "xpu"}
    | {"compile", "share_memory", "add_module", "zero_grad", "extra_repr", "state_dict", "print"}
)
"""Names that torch's modules use themselves."""


def cleaned(path: str) -> str:
    """A path out of any text: segments of letters, digits and underscores.

    >>> cleaned("gpu_0/conv1 7x7.1")
    'gpu_0.conv1_7x7.1'
    """
    parts = []
    for part in re.split(r"[./]+", path):
        word = part
        if not re.fullmatch(r"[0-9A-Za-z_]+", part):
            word = re.sub(r"[^0-9A-Za-z_]+", "_", part).strip("_") or ("_" if part else "")
        if word:
            parts.append(f"{word}_" if keyword.iskeyword(word) or word in _TORCH else word)
    parts = parts[-MOST_SEGMENTS:]
    text = ".".join(parts)[-LONGEST:].strip(".")
    return f"n{text}" if text[:1].isdigit() else text


def stem(name: str, role: str) -> str:
    """The layer that a tensor's name speaks of; empty where it speaks of none."""
    if name.startswith(_OWN) or not name:
        return ""
    found = _LEAF.search(name)
    if found is not None:
        base = name[: found.start()]
        # tf.keras: model/conv/Conv2D/ReadVariableOp
        return cleaned(base)
    if name.endswith(f"_{role}"):
        return cleaned(name.removesuffix(f"_{role}"))
    return ""


def scope_of(node: NodeProto) -> str:
    """The module that a node's code belongs to, as torch's exporters say it; else empty."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            names = re.findall(r"'([^']*)'", entry.value)[:-1]
            return cleaned(names[-1]) if names else ""
    name = node.name
    if "/" not in name:
        return cleaned(name) if "." in name and not name.startswith(_OWN) else ""
    parts = [part for part in name.split("/") if part]
    if name.startswith("/") or parts[-1].lower().startswith(node.op_type.lower()[:4]):
        parts = parts[:-1]
    elif len(parts) > 1:
        parts = parts[:-1]  # archir's own: PATH/role
    return cleaned(".".join(_unrepeated(parts)))


def _unrepeated(parts: Sequence[str]) -> list[str]:
    """Of a container's parts the whole path is repeated: /layer1/layer1.0/conv1."""
    out: list[str] = []
    before = ""
    for part in parts:
        head, _, tail = part.rpartition(".")
        out.append(tail if head and head == before else part)
        before = part
    return out


def arch(name: str, file: str) -> str:
    """The network's name: the graph's, or the file's where exporters say the same of all."""
    common = ("", "main_graph", "graph", "main", "network", "model", "tf2onnx", "onnx_model")
    given = cleaned(name).replace(".", "_")
    if given.lower() in common or "torch" in given.lower():
        given = cleaned(file).replace(".", "_")
    return given or "network"


def settle(drafts: Sequence[Draft], scopes: Mapping[str, str]) -> list[str]:
    """A path for each node: different ones, none of which lies below another."""
    wishes = [draft.fixed for draft in drafts]
    taken = {wish for wish in wishes if wish}
    for number, draft in enumerate(drafts):
        if not wishes[number] and draft.params:
            wish = _of_tensors(draft)
            if wish and wish not in taken:
                wishes[number] = wish
                taken.add(wish)
    layers = {wish for wish in wishes if wish}
    among = Counter(
        scopes.get(draft.source, "") for draft, wish in zip(drafts, wishes, strict=True) if not wish
    )
    parents = _prefixes([*layers, *(scope for scope in among if scope)])
    for number, draft in enumerate(drafts):
        if wishes[number]:
            continue
        scope = scopes.get(draft.source, "")
        alone = among[scope] == 1 and scope not in layers and scope not in parents
        if scope and alone:
            wishes[number] = scope
        else:
            wishes[number] = ".".join(part for part in (scope, draft.op) if part)
    return _different(drafts, wishes)


def _of_tensors(draft: Draft) -> str:
    if draft.op == "parameter":
        base = draft.params["value"].base
        return "" if base.startswith(_OWN) else cleaned(base)
    for role, held in draft.params.items():
        found = stem(held.base, role)
        if found:
            return found
    return ""


def _different(drafts: Sequence[Draft], wishes: Sequence[str]) -> list[str]:
    prefixes = _prefixes(wishes)
    wishes = [
        wish if wish not in prefixes or draft.fixed else f"{wish}.{draft.op.rpartition('.')[2]}"
        for wish, draft in zip(wishes, drafts, strict=True)
    ]
    prefixes = _prefixes(wishes)
    many = {wish for wish, count in Counter(wishes).items() if count > 1}
    taken = set(wishes)
    numbers: Counter[str] = Counter()
    found: list[str] = []
    fixed = {draft.fixed for draft in drafts if draft.fixed}
    for wish, draft in zip(wishes, drafts, strict=True):
        name = wish
        while not draft.fixed and (
            name in many or name in fixed or name in prefixes or (name != wish and name in taken)
        ):
            numbers[wish] += 1
            name = f"{wish}{'_' if wish[-1:].isdigit() else ''}{numbers[wish]}"
        found.append(name)
        taken.add(name)
    return found


def _prefixes(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        at = name.find(".")
        while at >= 0:
            found.add(name[:at])
            at = name.find(".", at + 1)
    return found


def symbol(text: str, axis: int, taken: Mapping[str, str]) -> str:
    """The symbol for an open size: capitalised; `N` for a batch."""
    if axis == 0 and (not text or re.fullmatch(r"(?i)n|none|\?|batch.*|.*batch|unk__\d+", text)):
        wish = "N"
    else:
        word = re.sub(r"[^0-9A-Za-z_]+", "_", text).strip("_")[:40]
        wish = word[:1].upper() + word[1:] if word[:1].isalpha() else f"S{axis}_{word}".rstrip("_")
    name, number = wish, 1
    while name in taken.values():
        number += 1
        name = f"{wish}{number}"
    return name
