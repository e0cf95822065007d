"""torch's own SGD and AdamW over the parameters of a lowered network. Importing this needs torch.

Globs name parameters by their paths, or layers with all that lies below them: ``stage1``,
``*.bn*``, ``fc.weight``. ``*`` matches dots as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from archir.diag import error
from archir.ir.graph import Graph
from archir.train.recipe import TrainConfig


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How parameters are updated. The names are torch's."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    """Whether biases and the parameters of norms decay as well."""
    freeze: tuple[str, ...] = ()
    """Globs of what stays as it is, parameters and buffers."""
    rates: tuple[tuple[str, float], ...] = ()
    """Globs and factors of the rate; the last one that matches a parameter counts."""

    @classmethod
    def of(cls, config: TrainConfig) -> OptimizerConfig:
        """What a recipe says of the optimizer."""
        return cls(
            config.optimizer,
            config.lr,
            config.momentum,
            config.nesterov,
            (config.beta1, config.beta2),
            config.eps,
            config.weight_decay,
            config.decay_vectors,
            config.freeze,
            config.rates,
        )


def make_optimizer(
    module: torch.nn.Module, graph: Graph, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer of a module that :func:`archir.train.device.module_of` made.

    Frozen parameters get no gradient and are in no group. Parameters stand in the order of the
    module's; those with the same rate and decay are one group, which holds besides torch's entries
    ``paths``, and ``scale``, the factor of the rate.

    Raises:
        ArchirError: A632, torch refuses a setting; A670, a glob matches nothing; A671, nothing is
            left to train.
    """
    frozen = matched(graph, config.freeze)
    scales = {path: scale for glob, scale in config.rates for path in matched(graph, (glob,))}
    undecayed = set() if config.decay_vectors else _vectors(graph)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for path, parameter in module.named_parameters():
        if path in frozen:
            parameter.requires_grad = False
            continue
        scale, decay = scales.get(path, 1.0), 0.0 if path in undecayed else config.weight_decay
        group = groups.setdefault(
            (scale, decay),
            {
                "params": [],
                "lr": config.lr * scale,
                "weight_decay": decay,
                "paths": (),
                "scale": scale,
            },
        )
        group["params"].append(parameter)
        group["paths"] += (path,)
    if not groups:
        raise error("A671", f"all parameters of {graph.name} are frozen")
    try:
        return _made(list(groups.values()), config)
    except ValueError as reason:  # torch's word on a setting
        raise error("A632", f"{config.kind} of torch: {reason}") from reason


def _made(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    # How torch runs them is its own choice: on a CPU its fused SGD and AdamW are faster, but give
    # other bits, and take tensors of two memory formats for tensors of one.
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
    )


def adjust(optimizer: torch.optim.Optimizer, rate: float, momentum: float | None = None) -> None:
    """Set the rate of all groups, times their ``scale``, and the momentum (or first beta)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def freeze_statistics(module: torch.nn.Module, freeze: Sequence[str]) -> None:
    """Put the batch norms whose running statistics are frozen into eval mode.

    They then normalise by those statistics, in training too. To be called after each
    ``module.train()``.

    Args:
        module: As :func:`archir.train.device.module_of` makes it, without a wrapper.
        freeze: Globs; a batch norm counts where one of them names its ``running_mean``.
    """
    assert isinstance(module, torch.fx.GraphModule)
    for call in module.graph.nodes:
        if call.op != "call_module":
            continue
        layer = module.get_submodule(str(call.target))
        path = f"{call.target}.running_mean"
        if "running_mean" in call.kwargs:  # a batch norm whose tensors lie elsewhere
            path = str(getattr(call.kwargs["running_mean"], "target", ""))
        elif getattr(layer, "running_mean", None) is None:
            continue
        if any(_names(glob, path) for glob in freeze):
            layer.eval()


def matched(graph: Graph, globs: Iterable[str]) -> set[str]:
    """The paths of parameters and buffers that globs name.

    Raises:
        ArchirError: A670, a glob names none.
    """
    found: set[str] = set()
    for glob in globs:
        paths = [p for p in graph.parameters if _names(glob, p)]
        if not paths:
            raise _unmatched(graph, glob)
        found.update(paths)
    return found


def _names(glob: str, path: str) -> bool:
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}.*")


def _unmatched(graph: Graph, glob: str) -> Exception:
    paths = list(graph.parameters)
    layers = {path[:i] for path in paths for i, c in enumerate(path) if c == "."}
    close = get_close_matches(glob, [*sorted(layers), *paths], 1)
    hint = f"did you mean `{close[0]}`?" if close else "`archir show` lists the layers"
    return error("A670", f"no parameter of {graph.name} is named by `{glob}`", hint=hint)


def _vectors(graph: Graph) -> set[str]:
    """Parameters of at most one axis, biases among them, and all those of norms."""
    found = {path for path, parameter in graph.parameters.items() if parameter.type.rank <= 1}
    for node in graph:
        if node.op.endswith("_norm"):
            found.update(node.params.values())
    return found
