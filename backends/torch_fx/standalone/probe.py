"""What a module computes, observed the same way here and in a process that has torch alone.

This file is run as a script there: it imports nothing of archir.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BANNED = ("archir", "safetensors", "torchvision", "timm", "onnx")
"""What a written file must do without."""

Observed = dict[str, Any]


def observe(net: nn.Module, batches: Sequence[Sequence[Tensor]]) -> Observed:
    """A module's outputs in eval mode, and in train mode its outputs and its state after it.

    In train mode nothing is dropped (which rows go is drawn in the order of the calls, and that
    may differ where branches run side by side); the probabilities are reported instead.
    """
    found: Observed = {"keys": list(net.state_dict()), "train": None, "state": {}}
    with torch.no_grad():
        net.eval()
        found["eval"] = [_outputs(net, inputs) for inputs in batches]
        net.train()
        found["drop"] = sorted(_still(layer) for layer in net.modules() if _drops(layer))
        try:
            found["train"] = _outputs(net, batches[-1])
            found["state"] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        except (RuntimeError, ValueError) as reason:  # too small an image for batch statistics
            found["failed"] = type(reason).__name__
    return found


def _outputs(net: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    given = net(*(tensor.clone() for tensor in inputs))
    return [value.clone() for value in (given if isinstance(given, tuple) else (given,))]


def _drops(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "p", None), float)


def _still(layer: Any) -> tuple[str, float]:
    """Let a layer drop nothing; what it is and how often it would."""
    found = type(layer).__name__, float(layer.p)
    layer.p = 0.0
    return found


def main(words: Sequence[str]) -> None:
    """Run a written file: the text, its weights, the inputs, where the findings go, threads."""
    source, weights, inputs, target, threads = words
    for name in BANNED:  # an import of these fails from here on
        sys.modules[name] = None  # type: ignore[assignment]
    torch.set_num_threads(int(threads))
    space: dict[str, Any] = {"__name__": "model", "__file__": source}
    text = Path(source).read_text(encoding="utf-8")
    exec(compile(text, "model.py", "exec"), space)
    space["WEIGHTS"] = weights
    net = space["model"](weights)
    found = observe(net, torch.load(inputs, weights_only=True))
    constants = dict(net.named_buffers())
    fresh = dict(space["model"]().named_buffers())
    for name in space.get("CONSTANTS", ()):
        if not torch.equal(constants[name], fresh[name]):
            raise ValueError(f"{name} is not there without weights")
    torch.save(found, target)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    main(sys.argv[2:])
