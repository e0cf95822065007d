"""Build and serialise ResNet-50 as ONNX, against torch's two exporters (no gate on any side).

uv run python benchmarks/export.py
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from measure import interleaved, machine, report

import archir
from archir.target import backends

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "resnet50.arch"


def torch_export(*, dynamo: bool) -> Callable[[], object]:
    model = torchvision.models.resnet50().eval()
    image = torch.randn(2, 3, 224, 224)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = str(Path(folder) / "net.onnx")
            if dynamo:
                batch = torch.export.Dim("batch")
                program = torch.onnx.export(
                    model, (image,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
                )
                assert program is not None
                program.save(target)
            else:
                torch.onnx.export(
                    model,
                    (image,),
                    target,
                    dynamo=False,
                    input_names=["image"],
                    dynamic_axes={"image": {0: "batch"}},
                )

    return work


def ours(network: archir.Network) -> Callable[[], object]:
    backend = backends()["onnx"]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            with path.open("wb") as file:
                file.writelines(backend.serialise(network.graph, network.weights))

    return work


def copy(network: archir.Network) -> Callable[[], object]:
    """The floor: the weights' bytes written once."""
    assert network.weights is not None
    arrays = list(network.weights.values())

    def work() -> None:
        with tempfile.TemporaryFile() as file:
            for array in arrays:
                file.write(array.tobytes() if array.ndim == 0 else array.data)

    return work


def main() -> None:
    logging.disable(logging.WARNING)
    print(machine(), f"torch {torch.__version__}")
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    network = archir.load(EXAMPLE).init(0)
    works = {
        "archir": lambda: ours(network),
        "torch.onnx, dynamo=False": lambda: torch_export(dynamo=False),
        "torch.onnx, dynamo=True": lambda: torch_export(dynamo=True),
        "writing the weights alone": lambda: copy(network),
    }
    report("ResNet-50 to ONNX: build, serialise, write", interleaved(works, repeats), "archir")


if __name__ == "__main__":
    main()
