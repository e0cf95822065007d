"""Run as a script: pieces of work in two processes each, as torchrun starts them.

The processes are forked from this one, which has imported torch, and report by a JSON file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads do not outlive a fork

import numpy as np
import torch

from archir.diag import ArchirError
from archir.ir.graph import Graph
from archir.ops import STANDARD
from archir.train import distributed, loop
from archir.train.data import Dataset, Split
from archir.train.feed import order
from archir.train.loop import TrainResult, train
from archir.train.recipe import TrainConfig
from archir.weights.init import init_weights

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.train.nets import Net, small

CONFIG = TrainConfig(epochs=2, batch_size=32, device="cpu", log_every=2)


def images(count: int, seed: int) -> Split:
    stream = np.random.default_rng(seed)
    x = stream.random((count, 1, 8, 8), np.float32)
    return Split(x, (x.reshape(count, -1).sum(1) * 2).astype(np.int64) % 10)


DATA = Dataset(
    "made", images(150, 0), images(40, 1), images(10, 2), tuple(map(str, range(10))), "made"
)


def without_norms() -> Graph:
    net = Net(1, 8, 8, name="plain")
    net.add("conv", "conv", out=8, kernel=3, stride=2)
    net.add("relu", "relu")
    net.add("flatten", "flatten")
    net.add("fc", "linear", out=10)
    return net.graph()


def fit(graph: Graph, config: TrainConfig = CONFIG, **more: Any) -> TrainResult:
    return train(graph, init_weights(graph, STANDARD, 0), DATA, config, **more)


def outcome(act: Callable[[], object]) -> str:
    """How something ends: the code of its error, or nothing."""
    try:
        act()
    except ArchirError as failure:
        return failure.diagnostics[0].code
    return ""


def off(a: TrainResult, b: Mapping[str, Any]) -> float:
    """The largest difference of two networks' weights."""
    return max(float(np.abs(a.weights[k].astype(float) - np.asarray(b[k])).max()) for k in b)


# ---- what two processes do; each returns what is reported


def against_one(folder: Path) -> dict[str, Any]:
    """Without norms, the mean over two halves is the mean over the batch."""
    found = fit(without_norms(), run_dir=folder / "run")
    return {
        "files": sorted(p.name for p in (folder / "run").iterdir()),
        "weights": {k: a.tolist() for k, a in found.weights.items()},
        "losses": [line.train_loss for line in found.history],
        "steps": found.steps,
    }


def by_hand(folder: Path) -> dict[str, Any]:
    """With norms: torch's DDP over halves of each batch, written by hand."""
    graph = small(4)
    config = replace(CONFIG, schedule="constant", clip=0.5, ema=0.9)
    found = fit(graph, config)
    rank = int(os.environ["RANK"])
    module = loop.module_of(graph, init_weights(graph, STANDARD, 0), torch.device("cpu"))
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.SGD(
        module.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    averaged = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=False
    )
    averaged.update_parameters(module)  # the first call copies
    x, y = torch.from_numpy(DATA.train.x), torch.from_numpy(DATA.train.y)
    parallel.train()
    for epoch in (1, 2):
        for chosen in order(0, epoch, 150)[:128].split(32):
            mine = chosen[rank * 16 : rank * 16 + 16]
            loss = torch.nn.functional.cross_entropy(parallel(x[mine]), y[mine])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            averaged.update_parameters(module)
    live = found.live
    assert live is not None
    return {
        "off": off(replace(found, weights=loop.weights_of(live.module, graph)),
                   {k: v.detach().numpy() for k, v in module.named_parameters()}),
        "average off": off(found, {k: v.detach().numpy()
                                   for k, v in averaged.module.named_parameters()}),
        "statistics off": off(found, {k: v.numpy() for k, v in module.named_buffers()})
        if rank == 0 else 0.0,
    }  # fmt: skip


def resumed(folder: Path) -> dict[str, Any]:
    """A run that ends after its first epoch goes on as if it had not."""
    graph = small(4, dropout=0.2)
    config = replace(CONFIG, ema=0.9, flip=True, mixup=0.3, keep="best", optimizer="adamw")
    whole = fit(graph, config, run_dir=folder / "whole")
    loop.SAVE_EVERY = -1.0
    step = loop._Run._update

    def cut(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    loop._Run._update = cut  # type: ignore[method-assign]
    try:
        fit(graph, config, run_dir=folder / "cut")
        raise AssertionError
    except KeyboardInterrupt:
        pass
    loop._Run._update = step  # type: ignore[method-assign]
    again = fit(graph, config, run_dir=folder / "cut", existing="resume")
    done = fit(graph, config, run_dir=folder / "cut", existing="resume")  # at the end
    names = ("metrics.jsonl", "last.safetensors", "best.safetensors", "run.json")
    same = [(folder / "whole" / n).read_bytes() == (folder / "cut" / n).read_bytes() for n in names]
    first = os.environ["RANK"] == "0"
    return {
        "same files": same,
        "off": max(off(again, whole.weights), off(done, whole.weights)) if first else 0.0,
    }


def refused(folder: Path) -> dict[str, Any]:
    """What the first process refuses, all refuse, before any has begun."""
    graph, run = without_norms(), folder / "run"
    found = {
        "new": outcome(lambda: fit(graph, run_dir=run)),
        "again": outcome(lambda: fit(graph, run_dir=run)),
        "other": outcome(
            lambda: fit(graph, replace(CONFIG, lr=0.1), run_dir=run, existing="resume")
        ),
        "odd batch": outcome(lambda: fit(graph, replace(CONFIG, batch_size=33))),
        "no device": outcome(lambda: fit(graph, replace(CONFIG, device="cuda:7"))),
    }
    few = replace(DATA, train=images(1, 0))
    weights = init_weights(graph, STANDARD, 0)
    found["one image"] = outcome(lambda: train(graph, weights, few, CONFIG))
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        (run / "last.safetensors").write_bytes(b"damaged")
    torch.distributed.barrier()
    found["damaged"] = outcome(lambda: fit(graph, run_dir=run, existing="resume"))
    return found


def commands(folder: Path) -> dict[str, Any]:
    """`archir train` as the user types it; NAME says what is wrong."""
    from archir.cli.main import main

    name, rank = folder.name, os.environ["RANK"]
    (folder / "mine.py").write_text(
        "import os, torch, signal\n"
        "def make():\n    calls = []\n    def loss(logits, y):\n"
        "        calls.append(1)\n        if os.environ['RANK'] == '1' and len(calls) > 5:\n"
        f"            {_FAULTS.get(name, 'pass')}\n"
        "        return torch.nn.functional.cross_entropy(logits, y)\n    return loss\n"
    )
    os.chdir(folder)
    if name in ("no partner", "port taken"):
        distributed.JOIN = distributed.timedelta(seconds=2)
        if rank == "1":
            return {}
    if name == "bad numbers":
        os.environ["WORLD_SIZE"] = "two"
    words = "train net.arch --data digits --device cpu --epochs 2 --init 0 -o out.arch --json"
    more = {
        "fine": "--run run --log-every 5",
        "no file": "--data nobody.npz",
        "no recipe": "--lr -1",
        "astray": "--lr 900",
    }.get(name, "--loss mine.py:make --run run")
    sys.argv = ["archir", *words.split(), *more.split()]
    main()
    return {}


_FAULTS = {
    "fails": "raise ValueError('on purpose')",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "no memory": "raise torch.OutOfMemoryError",
}


# ---- starting them


def member(rank: int, world: int, port: int, act: Callable[[Path], Any], folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for number, stream in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / f"{stream}{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    if act is commands:
        act(folder)
        return
    with distributed.joined():
        found = act(folder)
    (folder / f"found{rank}").write_text(json.dumps(found))


def together(act: Callable[[Path], Any], folder: Path, world: int = 2) -> dict[str, Any]:
    """Do something in processes of their own; their statuses, words and reports."""
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "examples" / "digits.arch", folder / "net.arch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        jobs = [get_context("fork").Process(target=member, args=(r, world, port, act, folder))
                for r in range(world)]  # fmt: skip
    begun = time.perf_counter()
    taken = socket.create_server(("127.0.0.1", port)) if folder.name == "port taken" else None
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    hung = [job.is_alive() for job in jobs]
    for job in jobs:
        job.kill()
        job.join()
    if taken is not None:
        taken.close()

    def read(name: str) -> list[str]:
        return [(folder / f"{name}{r}").read_text() for r in range(world)]

    return {
        "hung": any(hung),
        "seconds": time.perf_counter() - begun,
        "status": [job.exitcode for job in jobs],
        "stdout": read("stdout"),
        "stderr": read("stderr"),
        "found": [json.loads(t) for t in read("found")] if (folder / "found0").exists() else [],
    }


if __name__ == "__main__":
    import importlib

    for module in ("sklearn.datasets", "torch._dynamo", "archir.cli.train"):
        importlib.import_module(module)
    home = Path(sys.argv[1])
    everything = {act.__name__: together(act, home / act.__name__)
                  for act in (against_one, by_hand, resumed, refused)}  # fmt: skip
    everything["one"] = together(against_one, home / "one", world=1)
    for name in ("fine", "no file", "no recipe", "astray", "fails", "is killed", "no memory",
                 "no partner", "port taken", "bad numbers"):  # fmt: skip
        everything[name] = together(commands, home / name)
    print(json.dumps(everything, indent=1))
