"""NAT's policy: a graph network that reads a cell and gives each of its edges a cheaper operation.

Guo et al. 2019 (NAT, arXiv 1910.14488) and 2021 (NAT++, arXiv 2102.10301); what is said of their
code is marked [C], what is our choice [own]. Importing this module needs torch. A policy always
runs on the CPU, where it takes no time; all that it draws comes from NumPy generators.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from archir.diag import ArchirError, error
from archir.ops.arithmetic import Array
from archir.search.cells import (
    ACTIONS,
    OPS,
    Cell,
    Transitions,
    action,
    is_alive,
    targets,
    with_ops,
)
from archir.weights.store import load_metadata, load_weights, save_weights

INPUTS = 2
"""Nodes that have an embedding of their own: what the last two cells handed over [C]."""

ATTEMPTS = 100
"""How often in a row a cell may come up that hands on nothing."""

_KEY = "archir.nat_policy"
_VERSION = 1
_LARGEST = 1e5
"""Of a policy's numbers: with them the logits of one of the sizes of NAT's code stay finite."""


@dataclass(frozen=True)
class PolicyConfig:
    """The form of a policy; sizes are those of NAT's code."""

    transitions: Transitions = "nat"
    """What an operation may become."""
    self_loops: bool = True
    """Whether a node reads its own operations too: the adjacency is A + I, divided by the square
    roots of the degrees on both sides (Kipf, Welling 2017) [own]. Without, it is the published
    one, A alone: after two layers a node sees what lies two edges before it, and never itself."""
    embedding: int = 100
    """Of an operation; a node has two [C]."""
    features: int = 1024
    """Of a node, after a linear layer [C]."""
    hidden: int = 100
    """Of both graph layers [C]."""


class Policy(torch.nn.Module):
    """A policy: op embeddings, a linear layer, two graph layers, a linear layer [C].

    In what the authors' code has, an action that is none of an edge's is chosen too and taken as
    another; here each edge chooses among :func:`archir.search.cells.targets` alone.
    """

    def __init__(self, config: PolicyConfig, generator: np.random.Generator | None = None) -> None:
        """A new policy, its weights drawn; without a generator they are zeros, to be filled.

        Embeddings are drawn from N(0, 1), linear layers uniformly within 1 / sqrt(inputs), both as
        torch has them; graph layers within 1 / sqrt(outputs) [C].
        """
        super().__init__()
        self.config = config
        for name, shape in shapes_of(config).items():
            values = np.zeros(shape)
            if generator is not None:
                values = _initial(name, shape, config, generator)
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(values).float()))

    @property
    def transitions(self) -> Transitions:
        """What an operation may become."""
        return self.config.transitions

    def forward(self, cell: Cell) -> torch.Tensor:
        """The logits of all actions, legal or not, for each edge: float32 ``[edges, actions]``."""
        weights = dict(self.named_parameters())

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            return functional.linear(x, weights[f"{name}_weight"], weights[f"{name}_bias"])

        check_cell(cell)
        # of inputs the last is the cell before, the others are all older
        places = [max(0, INPUTS - cell.inputs + node) for node in range(cell.inputs)]
        rows = weights["inputs"][[min(place, INPUTS - 1) for place in places]]
        ops = weights["ops"][[OPS.index(edge.op) for edge in cell.edges]]
        x = torch.cat([rows, ops.reshape(-1, 2 * self.config.embedding)])
        adjacency = torch.from_numpy(adjacency_of(cell, self_loops=self.config.self_loops)).to(x)
        x = linear(x, "node")
        x = functional.relu(adjacency @ (x @ weights["gcn1_weight"]) + weights["gcn1_bias"])
        x = adjacency @ (x @ weights["gcn2_weight"]) + weights["gcn2_bias"]
        found = linear(x[cell.inputs :], "actions")
        return found.reshape(len(cell.edges), len(ACTIONS[self.transitions]))

    def logits(self, cell: Cell) -> NDArray[np.float64]:
        """The logits of all actions, legal or not, for each edge: ``[edges, actions]``."""
        with torch.no_grad():
            found: NDArray[np.float64] = self(cell).double().numpy()
        return found

    def choose(self, cell: Cell) -> list[str]:
        """The most likely legal operation for each edge; of equals the one that changes least."""
        chosen = []
        for edge, row in zip(cell.edges, self.logits(cell), strict=True):
            legal = targets(self.transitions, edge.op, strided=edge.strided)
            places = [action(self.transitions, edge.op, target) for target in legal]
            chosen.append(legal[int(np.argmax(row[places]))])
        return chosen

    def sample(
        self, cell: Cell, generator: np.random.Generator, *, living: bool = False
    ) -> list[str]:
        """A legal operation for each edge, drawn with the policy's probabilities."""
        with torch.no_grad():
            return self.sampled(cell, generator, living=living).ops

    def sampled(
        self, cell: Cell, generator: np.random.Generator, *, living: bool = False
    ) -> Sampled:
        """A sample with what its gradient takes; one number is drawn for each edge.

        Args:
            cell: Whose edges they are.
            generator: What draws.
            living: Whether it is drawn again where the cell would hand on nothing. The gradient of
                samples whose advantages are 0 on the average is right all the same: what all
                of their probabilities have in common falls out.
        """
        found = self._drawn(cell, generator)
        for _ in range(ATTEMPTS * living):
            if is_alive(with_ops(cell, found.ops)):
                break
            found = self._drawn(cell, generator)
        return found

    def _drawn(self, cell: Cell, generator: np.random.Generator) -> Sampled:
        ops, likelihood, entropy = [], torch.zeros(()), torch.zeros(())
        for edge, row in zip(cell.edges, self(cell), strict=True):
            legal = targets(self.transitions, edge.op, strided=edge.strided)
            places = [action(self.transitions, edge.op, target) for target in legal]
            logs = functional.log_softmax(row[places], 0)
            bounds = np.cumsum(np.exp(logs.detach().double().numpy()))
            drawn = int(np.searchsorted(bounds[:-1], generator.random() * bounds[-1], "right"))
            ops.append(legal[drawn])
            likelihood = likelihood + logs[drawn]
            entropy = entropy - (logs.exp() * logs).sum()
        return Sampled(ops, likelihood, entropy)


@dataclass(frozen=True)
class Sampled:
    """Operations that were drawn for the edges of a cell."""

    ops: list[str]
    log_prob: torch.Tensor
    """Of all of them together: a scalar."""
    entropy: torch.Tensor
    """Summed over the edges: a scalar."""


def surrogate(samples: Sequence[Sampled], advantage: float, entropy: float) -> torch.Tensor:
    """What is minimised after some samples: its gradient is REINFORCE's [C].

    Args:
        samples: All that was drawn for one reward, such as a normal and a reduction cell.
        advantage: The reward above the baseline.
        entropy: The weight of the entropy.
    """
    likelihood = torch.stack([sample.log_prob for sample in samples]).sum()
    return -likelihood * advantage - entropy * torch.stack([s.entropy for s in samples]).sum()


def check_cell(cell: Cell) -> None:
    """Make sure that a cell is one: its operations are known, each node has two edges to it.

    Raises:
        ValueError: it is none.
    """
    for number, edge in enumerate(cell.edges):
        target = cell.inputs + number // 2
        if edge.op not in OPS or edge.target != target or not 0 <= edge.source < target:
            raise ValueError(f"edge {number} of a cell is {edge}, it should lead to {target}")
    if cell.inputs < 1 or len(cell.edges) % 2:
        raise ValueError(f"a cell has {cell.inputs} inputs and {len(cell.edges)} edges")


def adjacency_of(cell: Cell, *, self_loops: bool) -> NDArray[np.float32]:
    """How many edges lead from a node (column) to another (row): ``[nodes, nodes]``.

    With ``self_loops`` each node leads to itself too, and all is divided by the square roots of
    the rows' sums on both sides. An edge that hands over nothing is one all the same [C].
    """
    found = np.zeros((cell.nodes, cell.nodes), np.float32)
    for edge in cell.edges:
        found[edge.target, edge.source] += 1
    if self_loops:
        found += np.eye(cell.nodes, dtype=np.float32)
        scale = 1 / np.sqrt(found.sum(1))
        found = scale[:, None] * found * scale
    return found


def shapes_of(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a policy."""
    node, hidden = 2 * config.embedding, config.hidden
    actions = 2 * len(ACTIONS[config.transitions])
    return {
        "ops": (len(OPS), config.embedding),
        "inputs": (INPUTS, node),
        "node_weight": (config.features, node),
        "node_bias": (config.features,),
        "gcn1_weight": (config.features, hidden),
        "gcn1_bias": (hidden,),
        "gcn2_weight": (hidden, hidden),
        "gcn2_bias": (hidden,),
        "actions_weight": (actions, hidden),
        "actions_bias": (actions,),
    }


def _initial(
    name: str, shape: Sequence[int], config: PolicyConfig, generator: np.random.Generator
) -> NDArray[np.float64]:
    if name in ("ops", "inputs"):
        return generator.standard_normal(shape)
    # a layer's inputs, or, of graph layers, its outputs; a bias is drawn as its weights are
    size = 2 * config.embedding if name.startswith("node") else config.hidden
    reach = 1 / math.sqrt(size)
    return generator.uniform(-reach, reach, shape)


# --- files ----------------------------------------------------------------------------------------


def save_policy(path: str | Path, policy: Policy) -> None:
    """Write a policy as a safetensors file, atomically; equal policies give equal bytes.

    Raises:
        ArchirError: A602, it cannot be written.
    """
    weights = {name: value.detach().numpy() for name, value in policy.named_parameters()}
    config = policy.config
    told = {
        "version": _VERSION,
        "transitions": config.transitions,
        "self_loops": config.self_loops,
        "ops": OPS,
    }
    save_weights(path, weights, {_KEY: json.dumps(told, sort_keys=True)})


def load_policy(path: str | Path) -> Policy:
    """Read a policy; nothing in the file is run, and no more memory is taken than it is long.

    Raises:
        ArchirError: A601, it cannot be read; A610, it is no whole safetensors file; A775, it holds
            no policy, or one of another version of archir.
    """
    weights = load_weights(path)
    config = _config(path, load_metadata(path), weights)
    wanted = shapes_of(config)
    for name in [*wanted, *(n for n in weights if n not in wanted)]:
        if name not in weights or name not in wanted:
            raise _unfit(path, f"`{name}` is {'missing' if name in wanted else 'no part of one'}")
        array = weights[name]
        if array.shape != wanted[name] or array.dtype != np.float32:
            found = f"{array.dtype}{list(array.shape)}"
            raise _unfit(path, f"`{name}` is {found}, it should be float32{list(wanted[name])}")
        if not np.isfinite(array).all():
            raise _unfit(path, f"`{name}` holds numbers that are not finite")
        if np.abs(array).max() > _LARGEST:
            raise _unfit(path, f"`{name}` holds numbers beyond {_LARGEST:g}: logits would overflow")
    policy = Policy(config)
    fill(policy, weights)
    return policy


def fill(policy: Policy, weights: Mapping[str, Array]) -> None:
    """Put weights into a policy, by name."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))


def _config(
    path: str | Path, metadata: Mapping[str, str], weights: Mapping[str, Array]
) -> PolicyConfig:
    """The form of a policy: what the file says, and the sizes of what it holds."""
    try:
        told: Any = json.loads(metadata[_KEY])
        version, transitions, loops, ops = (
            told[name] for name in ("version", "transitions", "self_loops", "ops")
        )
    except (KeyError, ValueError, TypeError, RecursionError):
        raise _unfit(path, "it does not say that it is one") from None
    if type(version) is not int or version != _VERSION or ops != list(OPS):
        raise _unfit(path, "it is of another version of archir, or knows other operations")
    if transitions not in get_args(Transitions) or type(loops) is not bool:
        raise _unfit(path, f"its transitions are {transitions!r:.40}, its loops {loops!r:.40}")
    sizes = [weights[name].shape for name in ("ops", "gcn1_weight") if name in weights]
    if [len(size) for size in sizes] != [2, 2] or 0 in (*sizes[0], *sizes[1]):
        raise _unfit(path, "`ops` or `gcn1_weight` is missing or no matrix")
    return PolicyConfig(transitions, loops, sizes[0][1], *sizes[1])


def _unfit(path: str | Path, what: str) -> ArchirError:
    hint = "`archir search FILE --strategy nat --run DIR` makes one: DIR/policy.safetensors"
    return error("A775", f"{path} holds no policy of NAT: {what}", hint=hint)
