"""CIFAR-10 from the packed copy that ARCHIR_DATA names: `--data benchmarks/cifar10.py:load`.

Decoding takes a quarter of a minute; an npz is loaded in a second:

    ARCHIR_DATA=../data python benchmarks/cifar10.py cifar10.npz
    archir train net.arch --data cifar10.npz ...

Bytes [N, 3, 32, 32], labels and the names of the classes; 20 of the 10,000 test images are JPEG
copies of the published ones.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from archir.files import writing
from archir.train.published import CIFAR10_CLASSES


def data_folder() -> Path:
    """The folder that ARCHIR_DATA names."""
    folder = os.environ.get("ARCHIR_DATA")
    if not folder:
        raise FileNotFoundError("ARCHIR_DATA names no folder with cifar10/ in it")
    return Path(folder)


@cache
def decoded(part: str) -> tuple[Any, Any]:
    """Images and labels of `train_a`, `train_b` or `test`, by the decoder that lies beside them."""
    place = data_folder() / "cifar10"
    spec = importlib.util.spec_from_file_location("medxz", place / "medxz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y, _ = module.decode(place / f"cifar10_{part}.medxz")
    return x, y


def load() -> dict[str, Any]:
    """All images, as archir takes them."""
    (x_a, y_a), (x_b, y_b), (x_test, y_test) = map(decoded, ("train_a", "train_b", "test"))
    return {
        "x_train": np.concatenate([x_a, x_b]),
        "y_train": np.concatenate([y_a, y_b]),
        "x_test": x_test,
        "y_test": y_test,
        "classes": np.array(CIFAR10_CLASSES),
    }


def main() -> int:
    """Write the npz."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".npz"):
        print("usage: python benchmarks/cifar10.py OUT.npz", file=sys.stderr)
        return 2
    start = time.perf_counter()
    arrays = load()
    read = time.perf_counter()
    with writing(sys.argv[1]) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    seconds = time.perf_counter() - read
    print(f"decoded in {read - start:.1f} s, wrote {sys.argv[1]} in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
