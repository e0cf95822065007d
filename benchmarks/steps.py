"""A step of training on two sides: torchvision's module, and archir's of the same network.

Both have the same initial tensors, batch, memory format and settings of `torch.optim`. What a
step does can be counted, so that a difference of structure shows on a busy machine too: the calls
of ATen, the bytes that autograd keeps for the backward pass, and the most bytes that torch's
allocator has given out at once.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells stderr of its starts

import torch
import torchvision
from archir.backends import torch_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import archir

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NETWORKS: Mapping[str, tuple[str, str]] = {
    "resnet18": ("resnet18", "torchvision:resnet18"),
    "resnet50": ("resnet50", "torchvision:resnet50"),
    "mobilenet_v2": ("mobilenet_v2", "torchvision:mobilenet_v2"),
    "densenet121": ("densenet121", "torchvision:densenet121"),
    "resnet50.arch": ("resnet50", "resnet50.arch"),
    "mobilenet_v2.arch": ("mobilenet_v2", "mobilenet_v2.arch"),
}
"""Torchvision's name of each, and what archir's side is made from: an import or an example."""
SETTINGS: Mapping[str, Any] = {
    "lr": 0.02,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}
"""Of `torch.optim.SGD`, which chooses its implementation by itself."""


@dataclass(frozen=True)
class Recipe:
    """What a step is taken on, and how."""

    batch: int
    size: int
    device: str = "cpu"
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False

    @property
    def place(self) -> dict[str, Any]:
        """Where and how tensors of images and filters lie."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return {"device": self.device, "memory_format": layout}

    def casting(self) -> AbstractContextManager[Any]:
        """Autocast to bf16, or nothing."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of images and their labels, the same each time."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        y = torch.randint(1000, (self.batch,), generator=generator)
        return x.to(**self.place), y.to(self.device)


class Side:
    """A network that is being trained."""

    def __init__(self, module: torch.nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.module = module.to(**recipe.place).train()
        self.run: Callable[..., Any] = torch.compile(module) if recipe.compiled else module
        self.optimizer = torch.optim.SGD(self.module.parameters(), **SETTINGS)
        self.x, self.y = recipe.inputs()

    def loss(self) -> torch.Tensor:
        """The forward pass."""
        with self.recipe.casting():
            logits = self.run(self.x)
        return torch.nn.functional.cross_entropy(logits.float(), self.y)

    def step(self, seed: int = 0) -> torch.Tensor:
        """One step; the seed is dropout's. Returns the loss before it."""
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradient of each parameter, as the last step left it."""
        return {
            name: parameter.grad
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None
        }


def theirs(name: str) -> torch.nn.Module:
    """Torchvision's module, with the initial tensors of seed 0."""
    torch.manual_seed(0)
    kind, _ = NETWORKS[name]
    return torchvision.models.get_model(kind, weights=None)


def ours(name: str, network: archir.Network) -> torch.nn.Module:
    """Archir's module with the initial tensors of torchvision's."""
    start = {key: tensor.numpy() for key, tensor in theirs(name).state_dict().items()}
    return torch_fx.lower(network.graph, start)


def network_of(name: str) -> archir.Network:
    """What archir's module is lowered from."""
    _, source = NETWORKS[name]
    if source.startswith("torchvision:"):
        return archir.import_network(source)[0]
    return archir.load(EXAMPLES / source)


def both(name: str, recipe: Recipe, network: archir.Network | None = None) -> dict[str, Side]:
    """The two sides, freshly made."""
    network = network or network_of(name)
    return {
        "torchvision": Side(theirs(name), recipe),
        "archir": Side(ours(name, network), recipe),
    }


# -- whether both do the same


@dataclass(frozen=True)
class Agreement:
    """What is the same on both sides, bit for bit."""

    losses: tuple[bool, ...]
    """Of each step."""
    gradients: bool
    """Of all parameters at the last step."""

    @property
    def whole(self) -> bool:
        """Whether everything is."""
        return all(self.losses) and self.gradients


def compare(sides: Mapping[str, Side], steps: int = 3) -> Agreement:
    """Train both for some steps, side by side."""
    one, two = sides.values()
    losses = tuple(torch.equal(one.step(seed), two.step(seed)) for seed in range(steps))
    a, b = one.gradients(), two.gradients()
    return Agreement(losses, a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a))


# -- what a step does


class _Calls(TorchDispatchMode):
    """Counts the calls of ATen below autograd: forward, backward and the optimizer's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls(side: Side) -> Counter[str]:
    """The calls of ATen in one step, by name; the network must not be compiled."""
    side.step()  # the optimizer's state is made in the first
    with _Calls() as counted:
        side.step()
    return counted.found


def source(side: Side) -> list[str]:
    """The code that `torch.compile` writes for the forward and the backward pass.

    It takes one of each. The list is empty where torch hands no code out.
    """
    from torch._inductor.utils import run_and_get_code

    side.optimizer.zero_grad(set_to_none=True)
    _, found = run_and_get_code(lambda: side.loss().backward())
    return [str(text) for text in found]


def saved(side: Side) -> int:
    """The bytes that autograd keeps for the backward pass, beside parameters, buffers and batch.

    Tensors that share memory are counted once.
    """
    lasting = _memory(side)
    found: dict[int, torch.UntypedStorage] = {}  # which keeps them alive: no address comes twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.loss()
    return sum(storage.nbytes() for storage in found.values())


def peak(side: Side) -> int:
    """The most bytes at once in one step that torch's allocator has given out.

    Counted from its own reports to the profiler, so that it is the same each time, whatever else
    the machine does: parameters, buffers, the optimizer's state and the batch, and on top of these
    what the step takes and gives back.
    """
    side.step()
    side.optimizer.zero_grad(set_to_none=True)
    state = [t for each in side.optimizer.state.values() for t in each.values()]
    lasting = sum(_memory(side, [t for t in state if isinstance(t, torch.Tensor)]).values())
    gc.collect()  # what is given back in the step is of the step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        side.step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return lasting + most


def _memory(side: Side, more: Iterable[torch.Tensor] = ()) -> dict[int, int]:
    """The bytes at each address that lasts from step to step."""
    module = side.module
    tensors = [*module.parameters(), *module.buffers(), side.x, side.y, *more]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
