"""How torch runs the operators of this package."""

from __future__ import annotations

from typing import Any

from torch.nn import functional


def _sloped(at: Any) -> Any:
    return at.call(functional.leaky_relu, *at.args, at.attr("slope"))


LOWER = {"sloped": _sloped}
