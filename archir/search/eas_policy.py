"""The policy of EAS: what is widened, and where a layer is inserted (arXiv 1707.04873).

A bidirectional LSTM reads the layers of a network. The wider actor says yes or no to each layer
that can be widened; the deeper actor, an LSTM that begins where the encoder ended, chooses a block,
a place in it and a kernel. REINFORCE makes what was rewarded above a baseline more likely. This
module needs torch, which works on the CPU here, with 64-bit floats; all that is drawn comes from
numpy's generators, so that a search that is resumed repeats it.

Sizes are those of the authors' code [C], like the embedding's start. How the other weights
start was not found: uniformly within one over the root of the state's size, torch's own rule for
LSTMs. Choices that do not exist (blocks, places) are masked; the code masks places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from archir.search.sequences import LayerSequence, LayerSpace

EMBEDDING = 16
"""[C]"""
STATE = 50
"""Of the encoder's LSTM, in each direction [C]; the decoder has both sides' together."""


@dataclass(frozen=True)
class Wider:
    """What was decided about the layers of a network."""

    sequence: LayerSequence
    yes: tuple[bool, ...]
    """By layer; those that cannot be widened have no decision."""
    counted: tuple[bool, ...]
    """By layer, whether its decision is learned from."""


@dataclass(frozen=True)
class Deeper:
    """Where a layer was inserted."""

    sequence: LayerSequence
    block: int
    place: int
    kernel: int | None
    """An index into the space's kernels; None where there is nothing to be chosen."""


Decision = Wider | Deeper


class Actor(Protocol):
    """Decides, and may learn from what comes of it."""

    def wider(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Wider]:
        """Decide which layers are widened, for each network."""

    def deeper(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Deeper | None]:
        """Decide where a layer is inserted, for each network; None where none can be."""

    def learn(
        self, decisions: Sequence[Sequence[Decision]], advantages: Sequence[float]
    ) -> dict[str, float]:
        """Learn from the decisions of an episode's networks; returns what is written down."""


@dataclass(frozen=True)
class Uniform:
    """The baseline: yes for half of the layers, and any block, place and kernel alike [C]."""

    space: LayerSpace

    def wider(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Wider]:
        """Toss a coin for each layer."""
        return [
            _wider(s, np.full(len(s.layers), 0.5), generator.random(len(s.layers)))
            for s in sequences
        ]

    def deeper(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Deeper | None]:
        """Draw a block that takes a layer, then a place, then a kernel."""
        return [self._drawn(sequence, *generator.random(3)) for sequence in sequences]

    def _drawn(self, sequence: LayerSequence, *at: float) -> Deeper | None:
        blocks = np.array([float(bool(block)) for block in sequence.blocks])
        if not blocks.any():
            return None
        block = _drawn(blocks, at[0])
        place = _drawn(np.ones(len(sequence.blocks[block])), at[1])
        kernels = len(self.space.kernels)
        chosen = _has_kernel(self.space, sequence, block)
        return Deeper(sequence, block, place, _drawn(np.ones(kernels), at[2]) if chosen else None)

    def learn(
        self, decisions: Sequence[Sequence[Decision]], advantages: Sequence[float]
    ) -> dict[str, float]:
        """Learn nothing."""
        return {}


class Policy(nn.Module):
    """The learned one.

    Args:
        space: The networks that it reads.
        generator: Draws its first weights.
        rate: Of Adam.
        entropy: The weight of the entropy in what is made as large as it can.
    """

    def __init__(
        self,
        space: LayerSpace,
        generator: np.random.Generator,
        *,
        rate: float = 2e-3,
        entropy: float = 1e-5,
    ) -> None:
        super().__init__()
        self.space, self.entropy = space, entropy
        self.words = {word: index for index, word in enumerate(space.vocabulary, start=1)}
        _, blocks, places = space.most
        both = 2 * STATE
        self.tokens = nn.Embedding(1 + len(self.words), EMBEDDING)
        self.encoder = nn.LSTM(EMBEDDING, STATE, bidirectional=True, batch_first=True)
        self.widen = nn.Linear(both, 1)
        self.begin = nn.Parameter(torch.zeros(EMBEDDING))
        self.block_tokens = nn.Embedding(blocks, EMBEDDING)
        self.place_tokens = nn.Embedding(places, EMBEDDING)
        self.decoder = nn.LSTMCell(EMBEDDING, both)
        self.block, self.place = nn.Linear(both, blocks), nn.Linear(both, places)
        self.kernel = nn.Linear(both, len(space.kernels))
        self.double()
        for name, weights in self.named_parameters():
            embeds = "tokens" in name or name == "begin"
            bound = 3**0.5 if embeds else both**-0.5 if "encoder" not in name else STATE**-0.5
            with torch.no_grad():
                weights.copy_(torch.from_numpy(generator.uniform(-bound, bound, weights.shape)))
        self.optimizer = torch.optim.Adam(self.parameters(), rate, foreach=False)

    def encode(self, sequences: Sequence[LayerSequence]) -> tuple[Tensor, Tensor, Tensor]:
        """Read networks.

        Returns:
            A state for each layer, [networks, longest, 100], and the two that the LSTM ends with,
            both directions beside each other, [networks, 100].
        """
        lengths = [len(sequence.layers) for sequence in sequences]
        held = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
        for row, sequence in zip(held, sequences, strict=True):
            found = [self.words[layer.token] for layer in sequence.layers]
            row[: len(found)] = torch.tensor(found)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tokens(held), torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        states, (output, cell) = self.encoder(packed)
        layers, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        return layers, torch.cat([*output], dim=-1), torch.cat([*cell], dim=-1)

    def wider_logits(self, sequences: Sequence[LayerSequence]) -> Tensor:
        """Of yes, for each layer: [networks, longest]."""
        logits: Tensor = self.widen(self.encode(sequences)[0]).squeeze(-1)
        return logits

    @torch.no_grad()
    def wider(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Wider]:
        """Decide for all layers at once."""
        found = torch.sigmoid(self.wider_logits(sequences)).numpy()
        return [
            _wider(s, row[: len(s.layers)], generator.random(len(s.layers)))
            for s, row in zip(sequences, found, strict=True)
        ]

    @torch.no_grad()
    def deeper(
        self, sequences: Sequence[LayerSequence], generator: np.random.Generator
    ) -> list[Deeper | None]:
        """Decide where each network gets a layer."""
        takers = [i for i, sequence in enumerate(sequences) if any(sequence.blocks)]
        found: list[Deeper | None] = [None] * len(sequences)
        at = generator.random((len(sequences), 3))[takers]
        chosen: list[list[int]] = []

        def choose(logs: Tensor) -> Tensor:
            chances = np.exp(logs.numpy())
            drawn = [_drawn(row, u) for row, u in zip(chances, at[:, len(chosen)], strict=True)]
            chosen.append(drawn)
            return torch.tensor(drawn)

        if takers:
            self._walk([sequences[i] for i in takers], choose)
        for i, block, place, kernel in zip(takers, *chosen, strict=True) if takers else ():
            has = _has_kernel(self.space, sequences[i], block)
            found[i] = Deeper(sequences[i], block, place, kernel if has else None)
        return found

    def _walk(
        self, sequences: Sequence[LayerSequence], choose: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The deeper actor's steps.

        Args:
            sequences: Networks, each of which takes a layer somewhere.
            choose: The choices of a step by their log-probabilities, a row for each network.

        Returns:
            The log-probabilities of blocks, places and kernels; -inf of what there is not.
        """
        _, output, cell = self.encode(sequences)
        state = self.decoder(self.begin.expand(len(sequences), -1), (output, cell))
        offered = [[len(block) > 0 for block in s.blocks] for s in sequences]
        blocks = _masked(self.block(state[0]), offered)
        chosen = choose(blocks)
        state = self.decoder(self.block_tokens(chosen), state)
        counts = [len(s.blocks[b]) for s, b in zip(sequences, chosen.tolist(), strict=True)]
        places = _masked(self.place(state[0]), [[True] * count for count in counts])
        chosen = choose(places)
        state = self.decoder(self.place_tokens(chosen), state)
        kernels = torch.log_softmax(self.kernel(state[0]), dim=-1)
        choose(kernels)
        return [blocks, places, kernels]

    def loss(
        self, decisions: Sequence[Sequence[Decision]], advantages: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """What is made small: -A log p, summed over decisions and averaged over networks.

        Args:
            decisions: Those of each network.
            advantages: The reward of each network less the baseline.

        Returns:
            The loss, the weighted entropy taken off it, and the mean entropy of a decision in
            nats: over the layers of a wider decision, over the heads of a deeper one [C].
        """
        share = [a / len(advantages) for a in advantages]
        wider = [(d, a) for row, a in zip(decisions, share, strict=True) for d in row
                 if isinstance(d, Wider) and any(d.counted)]  # fmt: skip
        deeper = [(d, a) for row, a in zip(decisions, share, strict=True) for d in row
                  if isinstance(d, Deeper)]  # fmt: skip
        gains, entropies = [torch.zeros(1, dtype=torch.double)], []
        if wider:
            logs, entropy = self._wider_terms([decision for decision, _ in wider])
            gains.append(logs * torch.tensor([a for _, a in wider], dtype=torch.double))
            entropies.append(entropy)
        if deeper:
            logs, entropy = self._deeper_terms([decision for decision, _ in deeper])
            gains.append(logs * torch.tensor([a for _, a in deeper], dtype=torch.double))
            entropies.append(entropy)
        mean = torch.cat(entropies).mean() if entropies else torch.zeros((), dtype=torch.double)
        return -torch.cat(gains).sum() - self.entropy * mean, mean

    def _wider_terms(self, decisions: Sequence[Wider]) -> tuple[Tensor, Tensor]:
        """The log-probability and the mean entropy of each decision."""
        logits = self.wider_logits([decision.sequence for decision in decisions])
        counted, yes = torch.zeros_like(logits), torch.zeros_like(logits)
        for row, decision in enumerate(decisions):
            length = len(decision.yes)
            counted[row, :length] = torch.tensor(decision.counted, dtype=torch.double)
            yes[row, :length] = torch.tensor(decision.yes, dtype=torch.double)
        softplus = nn.functional.softplus
        logs = yes * logits - softplus(logits)
        entropy = softplus(logits) - logits * torch.sigmoid(logits)
        return (logs * counted).sum(1), (entropy * counted).sum(1) / counted.sum(1)

    def _deeper_terms(self, decisions: Sequence[Deeper]) -> tuple[Tensor, Tensor]:
        """The log-probability and the mean entropy of each decision."""
        taken = [[d.block for d in decisions], [d.place for d in decisions],
                 [d.kernel or 0 for d in decisions]]  # fmt: skip
        columns = iter(taken)
        heads = self._walk([d.sequence for d in decisions], lambda _: torch.tensor(next(columns)))
        counted = torch.ones(len(decisions), 3, dtype=torch.double)
        counted[:, 2] = torch.tensor([float(d.kernel is not None) for d in decisions])
        each = zip(heads, taken, strict=True)
        logs = torch.stack([h.gather(1, torch.tensor(t)[:, None])[:, 0] for h, t in each], dim=1)
        entropy = torch.stack([_entropy(h) for h in heads], dim=1)
        return (logs * counted).sum(1), (entropy * counted).sum(1) / counted.sum(1)

    def learn(
        self, decisions: Sequence[Sequence[Decision]], advantages: Sequence[float]
    ) -> dict[str, float]:
        """One step of Adam."""
        self.optimizer.zero_grad()
        loss, entropy = self.loss(decisions, advantages)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"loss": float(loss.detach()), "entropy": float(entropy.detach())}


def _wider(
    sequence: LayerSequence, chances: NDArray[np.float64], drawn: NDArray[np.float64]
) -> Wider:
    can = tuple(layer.wider for layer in sequence.layers)
    yes = tuple(bool(c and u < p) for c, p, u in zip(can, chances, drawn, strict=True))
    return Wider(sequence, yes, can)


def _has_kernel(space: LayerSpace, sequence: LayerSequence, block: int) -> bool:
    return len(space.kernels) > 1 and sequence.kernels[block]


def _drawn(chances: NDArray[np.float64], at: float) -> int:
    """The choice at a point from 0 to 1 of their chances, never one that has none."""
    sums = np.cumsum(chances)
    found = int(np.searchsorted(sums, at * sums[-1], side="right"))
    return min(found, int(np.flatnonzero(chances)[-1]))


def _masked(logits: Tensor, offered: Sequence[Sequence[bool]]) -> Tensor:
    """Log-probabilities of what there is: the first choices of each row."""
    mask = torch.zeros_like(logits, dtype=torch.bool)
    for row, found in zip(mask, offered, strict=True):
        row[: len(found)] = torch.tensor(found)
    return torch.log_softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)


def _entropy(logs: Tensor) -> Tensor:
    """By row, in nats."""
    return -(torch.exp(logs) * logs.masked_fill(logs == -torch.inf, 0.0)).sum(1)
