"""How ONNX writes the operators of this package."""

from __future__ import annotations

from typing import Any


def _sloped(at: Any) -> None:
    at.emit("LeakyRelu", *at.args, alpha=at.attr("slope"))


LOWER = {"sloped": _sloped}
