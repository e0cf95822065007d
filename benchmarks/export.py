"""Build and serialise networks as ONNX, against torch's two exporters (no gate on any side).

The same torchvision modules on all sides; archir has them imported, which is not timed here
(benchmarks/imports.py times it). The floor is to write the weights' bytes once.

    uv run python benchmarks/export.py [--repeats 3] [--only resnet50] [--threads 1] [--cpu]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from archir.backends.torch_fx.raising.bring import Source, bring
from measure import interleaved, machine, ratio

from archir.target import Imported, ImportOptions, backends

NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "vit_b_16",
)


def torch_export(module: torch.nn.Module, *, dynamo: bool) -> Callable[[], object]:
    image = torch.randn(2, 3, 224, 224)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = str(Path(folder) / "net.onnx")
            if dynamo:
                batch = torch.export.Dim("batch")
                program = torch.onnx.export(
                    module, (image,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
                )
                assert program is not None
                program.save(target)
            else:
                torch.onnx.export(
                    module,
                    (image,),
                    target,
                    dynamo=False,
                    input_names=["image"],
                    dynamic_axes={"image": {0: "batch"}},
                )

    return work


def ours(found: Imported) -> Callable[[], object]:
    backend = backends()["onnx"]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            with path.open("wb") as file:
                file.writelines(backend.serialise(found.graph, found.weights))

    return work


def copy(found: Imported) -> Callable[[], object]:
    """The floor: the weights' bytes written once."""
    arrays = list(found.weights.values())

    def work() -> None:
        with tempfile.TemporaryFile() as file:
            for array in arrays:
                file.write(array.tobytes() if array.ndim == 0 else array.data)

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, on a busy machine")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    print(machine(), f"torch {torch.__version__}, {given.threads} threads")
    clock = time.process_time if given.cpu else time.perf_counter
    print("seconds of the processor" if given.cpu else "seconds on the clock")
    ratios: dict[str, list[float]] = {}
    for name in given.only:
        module: torch.nn.Module = torchvision.models.get_model(name, weights=None).eval()
        examples = (torch.randn(2, 3, 224, 224),)
        found = bring(Source(name, name, module, examples, {}), ImportOptions())
        works = {
            "archir": lambda found=found: ours(found),
            "dynamo=False": lambda module=module: torch_export(module, dynamo=False),
            "dynamo=True": lambda module=module: torch_export(module, dynamo=True),
            "the weights alone": lambda found=found: copy(found),
        }
        timings = interleaved(works, given.repeats, clock)
        print(f"\n{name}", flush=True)
        for what, timing in timings.items():
            middle, low, high = ratio(timings["archir"], timing)
            line = f"  {what:<18} {timing.median:8.3f} s  (best {timing.best:.3f})"
            print(line + f"  archir takes {middle:.2f} x [{low:.2f}, {high:.2f}]", flush=True)
            ratios.setdefault(what, []).append(timings["archir"].best / timing.best)
    for what, each in ratios.items():
        text = ", ".join(f"{r:.3f}" for r in each)
        print(f"archir / {what}, best times: {text}; median {statistics.median(each):.3f}")


if __name__ == "__main__":
    main()
