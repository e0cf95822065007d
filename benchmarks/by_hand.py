"""ResNet-20 on CIFAR-10: `archir train` beside the same network and loop written in plain PyTorch.

The network below is written with torch.nn; its loop shuffles, crops and mirrors with numbers drawn
as docs/training.md says, in a Python loop over the images, and steps torch.optim.SGD. It imports
nothing of archir. Both start from the same tensors. Every epoch's mean loss, validation loss and
accuracy, and in the end every weight and statistic, must be equal to the last bit (on a CPU, with
one number of threads).

    ARCHIR_DATA=../data uv run python benchmarks/by_hand.py --epochs 2

`--images N` takes the first N images of each split. With `--device cuda` losses are compared with a
bound in place of bits: convolutions on a GPU do not sum in one order.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "resnet20.arch"
RECIPE = {"batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "crop": 4}
"""He et al. 2016, section 4.2, with a cosine for the steps."""


class Basic(nn.Module):
    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride != 1:
            self.conv = nn.Conv2d(planes, width, 1, stride, bias=False)
            self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "conv"):
            x = self.bn(self.conv(x))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = {"conv": nn.Conv2d(3, 16, 3, 1, 1, bias=False), "bn": nn.BatchNorm2d(16)}
        self.stem = nn.ModuleDict(stem)
        self.stage1 = nn.ModuleList([Basic(16, 16, 1) for _ in range(3)])
        self.stage2 = nn.ModuleList(
            [Basic(16 if n == 0 else 32, 32, 2 - (n > 0)) for n in range(3)]
        )
        self.stage3 = nn.ModuleList(
            [Basic(32 if n == 0 else 64, 64, 2 - (n > 0)) for n in range(3)]
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem["bn"](self.stem["conv"](x)))
        for block in [*self.stage1, *self.stage2, *self.stage3]:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def drawn(seed: int, number: int, purpose: int) -> torch.Generator:
    """The generator of an epoch (purpose 0) or of a step's augmentation (1)."""
    stream = np.random.SeedSequence((seed, number), spawn_key=(purpose,))
    return torch.Generator().manual_seed(int(stream.generate_state(1, np.uint64)[0]))


def augmented(x: torch.Tensor, crop: int, generator: torch.Generator) -> torch.Tensor:
    """Each image padded and cut, then perhaps mirrored, one after the other."""
    down, right = torch.randint(2 * crop + 1, (2, len(x)), generator=generator)
    flips = torch.randint(2, (len(x),), generator=generator)
    made = []
    for image, i, j, flip in zip(x, down.tolist(), right.tolist(), flips.tolist(), strict=True):
        padded = functional.pad(image, [crop] * 4)
        cut = padded[:, i : i + image.shape[1], j : j + image.shape[2]]
        made.append(torch.flip(cut, [2]) if flip else cut)
    return torch.stack(made)


def by_hand(
    start: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    epochs: int,
    device: torch.device,
    *,
    seed: int = 0,
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train; a line for each epoch, and the weights in the end."""
    net = ResNet20()
    net.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in start.items()})
    net.to(device)
    x, y = (torch.from_numpy(data[f"{k}_train"]).to(device) for k in "xy")
    vx, vy = (torch.from_numpy(data[f"{k}_validation"]).to(device) for k in "xy")
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=RECIPE["lr"],
        momentum=RECIPE["momentum"],
        nesterov=True,
        weight_decay=RECIPE["weight_decay"],
    )
    batch, lines, step = int(RECIPE["batch_size"]), [], 0
    per_epoch = len(y) // batch
    for epoch in range(1, epochs + 1):
        net.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        order = torch.randperm(len(y), generator=drawn(seed, epoch, 0)).to(device)
        for chosen in order[: per_epoch * batch].split(batch):
            images = augmented(x[chosen].float() / 255, int(RECIPE["crop"]), drawn(seed, step, 1))
            rate = RECIPE["lr"] * ((1 + math.cos(math.pi * step / (per_epoch * epochs))) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), y[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach()
            step += 1
        lines.append({"train_loss": float(total) / per_epoch, **scored(net, vx, vy)})
    return lines, net.state_dict()


def scored(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    net.eval()
    right, losses = 0, []
    with torch.inference_mode():
        for start in range(0, len(x), 256):
            logits = net(x[start : start + 256].float() / 255)
            target = y[start : start + 256]
            losses.append(functional.cross_entropy(logits, target, reduction="sum"))
            right += int((logits.argmax(1) == target).sum())
    total = float(torch.stack(losses).double().sum())
    return {"validation_loss": total / len(y), "validation_accuracy": right / len(y)}


def split(images: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """CIFAR-10's training images as archir splits them, as bytes: the same on both sides."""
    from archir.train.data import load_data

    found = load_data(f"{HERE / 'cifar10.py'}:load")
    for name in ("train", "validation", "test"):
        part = getattr(found, name)
        yield f"x_{name}", np.ascontiguousarray(part.x[:images])
        yield f"y_{name}", np.ascontiguousarray(part.y[:images])


def archirs(folder: Path, epochs: int, device: str) -> tuple[list[dict[str, Any]], float]:
    """Train by the command; its lines, and the seconds that it took."""
    archir = [sys.executable, "-m", "archir"]
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in RECIPE.items()]
    words = ["train", "net.arch", "--data", "data.npz", "--flip", *flags, "--epochs", str(epochs)]
    start = time.perf_counter()
    command = [*archir, *words, "--device", device, "--run", "run", "-o", "trained.arch"]
    subprocess.run(command, cwd=folder, check=True)
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()], time.perf_counter() - start


def compare(epochs: int, images: int | None, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = dict(split(images))
        np.savez(folder / "data.npz", **data)
        (folder / "net.arch").write_text(EXAMPLE.read_text())
        init = [sys.executable, "-m", "archir", "weights", "init", "net.arch"]
        subprocess.run(init, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        start = load_file(folder / "net.safetensors")
        theirs, seconds = archirs(folder, epochs, device)
        trained = load_file(folder / "trained.safetensors")
        began = time.perf_counter()
        mine, weights = by_hand(start, data, epochs, torch.device(device))
        by_hand_seconds = time.perf_counter() - began
    lines = [
        {"epoch": n + 1, "archir": {k: t[k] for k in m}, "by_hand": m}
        for n, (t, m) in enumerate(zip(theirs, mine, strict=True))
    ]
    exact = all(line["archir"] == line["by_hand"] for line in lines)
    same = [k for k, a in trained.items() if np.array_equal(a, weights[k].cpu().numpy())]
    apart = max(
        abs(line["archir"][k] / line["by_hand"][k] - 1)
        for line in lines
        for k in ("train_loss", "validation_loss")
    )
    return {
        "machine": machine(),
        "images": len(data["y_train"]),
        "epochs": lines,
        "lines_equal": exact,
        "tensors_equal": len(same),
        "tensors": len(trained),
        "largest_gap": apart,
        "seconds": {"archir": seconds, "by_hand": by_hand_seconds},
    }


def main() -> int:
    about = str(__doc__).partition("\n\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, help="Take the first so many of each split.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args.epochs, args.images, args.device)
    equal = found["lines_equal"] and found["tensors_equal"] == found["tensors"]
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for line in found["epochs"]:
            print(f"epoch {line['epoch']}")
            for side in ("archir", "by_hand"):
                shown = "  ".join(f"{k} {v!r}" for k, v in line[side].items())
                print(f"  {side:8} {shown}")
        print(f"{found['tensors_equal']} of {found['tensors']} tensors have the same bits")
        print(f"largest relative gap of a loss: {found['largest_gap']:.1e}")
    if args.device == "cpu":
        return 0 if equal else 1
    return 0 if found["largest_gap"] < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
