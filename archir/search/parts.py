"""What a search is made of: proposals, members, evaluators and strategies.

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from archir.api import Network
from archir.train.data import Dataset

if TYPE_CHECKING:
    from archir.search.engine import Search

Status = Literal["scored", "refused", "failed"]


@dataclass(frozen=True)
class Proposal:
    """A network that a strategy wants to be scored."""

    origin: Mapping[str, Any]
    """How it was made, as JSON values: ``{"kind": "start"}``, ``{"kind": "parent"}``,
    ``{"kind": "rewrite", "uses": [{"rule", "at", "arguments"}, ...], "seed": 3}`` or
    ``{"kind": "genome", "encoding": "nsga_micro", "genome": [...]}``."""
    make: Callable[[], Network]
    """Makes it; not called where the journal has its score already."""
    parents: tuple[int, ...] = ()
    """The numbers of the members that it comes from."""
    seed: int = 0
    """Of its evaluation."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluator found."""

    scores: Mapping[str, float]
    """``score`` always: what a search makes as large as it can. ``accuracy`` on the validation set
    (0 to 1) where the evaluator measures one, which is then its score too; others by name."""
    network: Network | None = None
    """The network afterwards, with its certificate; None where it is as it was."""
    history: tuple[Mapping[str, Any], ...] = ()
    """What is drawn as a curve, such as a line for each epoch, as JSON values."""


class Evaluator(Protocol):
    """Scores a network. A frozen dataclass: it travels to other processes."""

    @property
    def inherits(self) -> bool:
        """Whether the score depends on the weights that the network comes with."""

    def record(self) -> Mapping[str, Any]:
        """All that the score depends on beside network, data and seed, as JSON values."""

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Score a network; equal arguments give equal scores.

        ``folder`` is there, and is this evaluation's own: an evaluation that was cut off finds
        there what it had left. What it leaves in ``folder / "kept"`` stays with the member: see
        :meth:`archir.search.engine.Search.kept`.

        Raises:
            ArchirError: what is wrong with this network; it is recorded, and the search goes on.
        """


@dataclass(frozen=True)
class Member:
    """A network that was proposed, and what became of it: a line of the journal."""

    number: int
    stage: str
    """What it was evaluated for; each stage has one evaluator."""
    parents: tuple[int, ...]
    origin: Mapping[str, Any]
    seed: int
    status: Status
    """``refused``: over the limits, or it could not be made; ``failed``: in its evaluation."""
    reason: str = ""
    """Why it was refused or failed."""
    params: int = 0
    macs: int = 0
    graph: str = ""
    """The hash of its graph."""
    key: str = ""
    """What its score depends on: graph, weights, evaluator, data and seed."""
    same_as: int | None = None
    """The member whose evaluation had this key first; its score is that one's."""
    scores: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, Any] | None = None
    """Where it was measured: ``median``, ``low`` and ``high`` in seconds, ``engine``."""
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def score(self) -> float:
        """Larger is better; below every other where it was not scored."""
        return self.scores["score"] if self.status == "scored" else float("-inf")

    @property
    def accuracy(self) -> float | None:
        """On the validation set; None where its evaluator measures none (a proxy)."""
        return self.scores.get("accuracy")


@dataclass(frozen=True)
class Outcome:
    """What a strategy ends with."""

    best: Member
    ensemble: tuple[Member, ...] = ()
    """Members whose averaged outputs are another answer, if there are such."""
    stages: tuple[str, ...] = ()
    """The stages whose members compete for the Pareto front: their scores are comparable. Where
    none is named, all whose evaluator does not train on validation images (``join``)."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Weights that the search has found besides, by the names that they get in its folder, which
    end in ``.safetensors``."""


class Strategy(Protocol):
    """Proposes networks and learns from their scores.

    Its :meth:`run` is a plain function of what it is told: a search is resumed by running it
    again, while the journal answers for what was evaluated before. All that it draws comes from
    :meth:`archir.search.engine.Search.draw`.
    """

    @property
    def name(self) -> str:
        """What users call it."""

    def record(self) -> Mapping[str, Any]:
        """Its settings, as JSON values."""

    def expected(self) -> int:
        """About how many evaluations it takes; for the progress bar."""

    def run(self, search: Search) -> Outcome:
        """Search.

        Raises:
            ArchirError: A7xx, nothing could be scored, or the space offers nothing.
        """


@dataclass(frozen=True)
class Kind:
    """A strategy that users can name: an entry point of the group ``archir.strategies``."""

    name: str
    about: str
    """One sentence."""
    config: type[Any]
    """A frozen flat dataclass: every number, with its source beside it."""
    presets: Mapping[str, Any]
    """Values of it: ``paper`` and ``small`` at least; ``small`` is what is used without a word."""
    make: Callable[..., Strategy]
    """``make(config, moves=moves or None, evaluator=evaluator or None)``: moves and evaluator of
    the user's in place of the strategy's own."""
    needs_start: Callable[[Any], bool] = lambda config: True
    """Whether a search with this config starts from a network of the user's."""


def front(members: Sequence[Member], cost: str = "macs") -> list[Member]:
    """The scored members that no other beats in both score and a cost, the cheapest first.

    Of equals the first stays.

    Args:
        members: Those that compete: their scores must come from one evaluator.
        cost: ``macs``, ``params`` or ``latency`` (its median).
    """
    ordered = sorted(scored_of(members), key=lambda m: (cost_of(m, cost), -m.score, m.number))
    kept: list[Member] = []
    for member in ordered:
        if not kept or member.score > kept[-1].score:
            kept.append(member)
    return kept


def scored_of(members: Sequence[Member]) -> list[Member]:
    """Those that have a score, in their order."""
    return [member for member in members if member.status == "scored"]


def seed_of(search: Search, *words: str | int) -> int:
    """A seed of its own for each tuple of words, from the run's seed."""
    return int(search.draw(*words, "seed").integers(2**31))


def cost_of(member: Member, cost: str) -> float:
    """A member's cost by name; without end where it was not measured."""
    if cost == "latency":
        return float("inf") if member.latency is None else float(member.latency["median"])
    return float(getattr(member, cost))
