"""The operators of ONNX that are raised, and why some are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .layering import LAYERS
from .moving import MOVES
from .pointwise import POINTWISE
from .pooling import POOLS
from .resizing import RESIZES
from .site import Site

Raise = Callable[[Site], None]

RAISE: Mapping[str, Raise] = MappingProxyType({**LAYERS, **POOLS, **POINTWISE, **MOVES, **RESIZES})
"""What each operator of the standard domain becomes."""

_QUANTISED = "archir has no quantised numbers"
_RECURRENT = "archir has no recurrent layers"
_CONTROL = "archir's networks have no loops"
_SEQUENCE = "archir has tensors only"
_COUNT = "how many results it has depends on their values"

NEVER: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("QLinearConv", "QLinearMatMul", "QuantizeLinear", "DynamicQuantizeLinear"), _QUANTISED
        ),
        **dict.fromkeys(("ConvInteger", "MatMulInteger"), _QUANTISED),
        **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
        **dict.fromkeys(("Loop", "Scan"), _CONTROL),
        **dict.fromkeys(
            ("SequenceConstruct", "SequenceAt", "SequenceInsert", "SplitToSequence", "Optional"),
            _SEQUENCE,
        ),
        **dict.fromkeys(("NonZero", "NonMaxSuppression", "Unique", "Compress"), _COUNT),
        **dict.fromkeys(
            ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"),
            "its results are random",
        ),
    }
)
"""Why some operators have no counterpart."""
