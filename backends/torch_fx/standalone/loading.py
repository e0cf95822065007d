"""The part of a written file that makes the network and reads its weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import torch

from .layout import Group, lay, literal

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
"""Element types as safetensors files call them."""

LOADER = '''\
WEIGHTS = Path(__file__).with_suffix(".safetensors")
{dtypes}


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name."""
    data = bytearray(Path(path).read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {{}}
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        start, end = entry["data_offsets"]
        if start == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        count = (end - start) // dtype.itemsize
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=begin + start)
        tensors[name] = flat.reshape(shape)
    return tensors


def load(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a network, in which each must have its place."""
    own = {{**dict(net.named_parameters()), **dict(net.named_buffers())}}
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ValueError(f"not the weights of this network: {{', '.join(odd[:5])}}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{{name}} has another shape than in this network")
            own[name].copy_(tensor)


def model(weights: str | Path | None = None) -> nn.Module:
    """The network, in training mode as modules are at first.

    Args:
        weights: A safetensors file, such as WEIGHTS; without, the network is untrained.
    """
    net = {name}()
'''

_LOADED = """\
    if weights is not None:
        load(net, read(weights))
    return net"""

_LOADED_CONSTANTS = """\
    if weights is not None:
        load(net, read(weights))
    else:  # constants of the network, which are no weights
        tensors = read(WEIGHTS)
        own = dict(net.named_buffers())
        for name in CONSTANTS:
            own[name].copy_(tensors[name])
    return net"""


def loader(name: str, dtypes: Collection[torch.dtype], constants: Sequence[str]) -> str:
    """The functions that read weights and make the network, a class of this name."""
    known = [(f'"{text}": ', f"{kind}") for kind, text in _NAMES.items() if kind in dtypes]
    stated = lay("DTYPES = ", Group("", tuple(known), "{}"), 0)
    if constants:
        items = tuple(("", literal(path)) for path in constants)
        stated += lay("CONSTANTS = ", Group("", items, "[]"), 0)
    text = LOADER.format(dtypes="\n".join(stated), name=name)
    return text + (_LOADED_CONSTANTS if constants else _LOADED)


def imports(body: str, more: Collection[str]) -> str:
    """The import statements that the classes and the loader need."""
    lines = [f"import {name}" for name in sorted({"json", *more})]
    if re.search(r"\bOrderedDict\(", body):
        lines.append("from collections import OrderedDict")
    lines += ["from pathlib import Path", "", "import torch", "from torch import Tensor, nn"]
    if re.search(r"\bfunctional\.", body):
        lines.append("from torch.nn import functional")
    return "\n".join(["from __future__ import annotations", "", *lines])
