"""Opsets: which can be written, and the IR version each needs."""

from __future__ import annotations

from functools import lru_cache

import onnx
from onnx import helper

from archir.diag import error

OLDEST = 17
DEFAULT = 20


@lru_cache(maxsize=1)
def newest() -> int:
    """The newest opset that the installed onnx and ONNX Runtime both accept.

    ONNX Runtime does not say which opset it stops at, so it is shown one-node models.
    """
    from .runtime import accepts  # noqa: PLC0415 - building a model needs no runtime

    for opset in range(onnx.defs.onnx_opset_version(), OLDEST, -1):
        node = helper.make_node("Relu", ["x"], ["y"])
        x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
        model = helper.make_model(
            helper.make_graph([node], "probe", [x], [y]),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=lowest_ir(opset),
        )
        if accepts(model.SerializeToString()):
            return opset
    return OLDEST


def lowest_ir(opset: int) -> int:
    """The lowest IR version that may carry an opset."""
    return int(helper.OP_SET_ID_VERSION_MAP["ai.onnx", opset])


def resolve(opset: int, ir_version: int | None) -> tuple[int, int]:
    """Check a requested opset and IR version, and choose the IR version where none is given.

    Raises:
        ArchirError: A505, one of them cannot be written here.
    """
    if not OLDEST <= opset <= newest():
        raise error(
            "A505",
            f"opset {opset} cannot be written",
            hint=f"choose from {OLDEST} to {newest()}, what onnx {onnx.__version__} and the "
            "installed ONNX Runtime both accept",
        )
    lowest = lowest_ir(opset)
    if ir_version is None:
        return opset, lowest
    if not lowest <= ir_version <= lowest_ir(newest()):
        raise error(
            "A505",
            f"opset {opset} cannot be written with IR version {ir_version}",
            hint=f"choose from {lowest} to {lowest_ir(newest())}",
        )
    return opset, ir_version
