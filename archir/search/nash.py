"""NASH: hill climbing over network morphisms (Elsken, Metzen, Hutter 2017, arXiv 1711.04528).

The best network so far has children, each by a few random morphisms; they and it are trained for
some epochs from the weights that they inherit, with a learning rate that falls from its start to
nothing, and the best on validation images goes on. Importing this module needs no torch.

What was not found, and is our choice: of equal scores the lower loss wins, then the smaller
network, then the earlier; a skip by concatenation is read by one convolution, drawn from those
that read the target, and one by addition by all that read it; no pair is joined twice ([FRB]: of
pairs that were added); a widened class takes along all layers whose widths are tied to it; after a
failed final training the last best stays. The validation images are the data set's, a tenth of
CIFAR-10; the paper kept 10,000 of 50,000 [M].

Figures are tagged by where they come from, since the paper's body was not at hand when they were
gathered: [S] quick reviews of the paper with its tables; [M] memory of the paper; [ZJ], [FRB] two
public re-implementations (zhengjian2322/net2net; mirayyuce/NAS_updated of the authors' group, with
its report); [own] nothing was found, our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from archir.diag import error
from archir.search.parts import Evaluator, Kind, Member, Outcome, Proposal, scored_of, seed_of
from archir.search.space import Move, Space, use_record
from archir.search.training import Training
from archir.train.entries import check_entries
from archir.train.recipe import Precision, TrainConfig

if TYPE_CHECKING:
    from archir.api import Application, Network
    from archir.search.engine import Search


@dataclass(frozen=True)
class NashConfig:
    """The numbers of NASH; the defaults are the paper's."""

    n_steps: int = 5
    """Steps of hill climbing: 5 or 8 [S]."""
    n_neigh: int = 8
    """Networks that compete in a step, the parent among them: 8 [S]. 1 is the baseline of random
    networks: one child a step, taken whatever its score ([S] names the setting, [M] what it is)."""
    n_nm: int = 5
    """Morphisms in a row that make a child [M]; [FRB] has 5 too."""

    epoch_start: int = 20
    """Training of the start network before the first step: about 20 [M]; 20 [FRB], [ZJ]."""
    epoch_neigh: int = 17
    """Training of each network in a step [M], [ZJ]."""
    epoch_final: int = 100
    """Training of the last best on training and validation images [M], [ZJ]."""

    lr_start: float = 0.05
    """The rate falls along one half cosine in each training, from here ... [M], [ZJ]."""
    lr_end: float = 0.0
    """... to here [M]."""
    momentum: float = 0.9
    """[ZJ], [FRB]."""
    nesterov: bool = False
    """[own]"""
    weight_decay: float = 5e-4
    """[ZJ], [FRB]; on all parameters [own]."""
    batch_size: int = 128
    """[ZJ], [FRB]."""

    flip: bool = True
    """Flip and translation [M], flip [FRB]; which row of the tables used more: not found."""
    crop: int = 4
    """Pixels of translation: 12.5 % of 32 [FRB]."""
    cutout: int = 0
    """The side of the square: that NASH used cutout and mixup is said in [FRB], not how much."""
    mixup: float = 0.0
    """See ``cutout``."""

    kernels: tuple[int, ...] = (3, 5)
    """Of an inserted convolution, drawn uniformly [M]."""
    widen_factors: tuple[int, ...] = (2, 4)
    """Of a widened layer, drawn uniformly [M]."""
    max_channels: int = 600
    """No layer is widened beyond it [FRB]; 0: no limit. The paper: not found."""
    pool_factors: tuple[int, ...] = (2, 4)
    """How much finer the grid of a tensor may be that a skip by concatenation pools [FRB]."""

    final_joins: bool = True
    """Whether the final training is on validation images too [M]."""
    precision: Precision = "f32"
    """[own]: the paper's GPU had no other."""


RANGES: Mapping[str, tuple[float, float]] = {
    "n_steps": (1, 10_000),
    "n_neigh": (1, 10_000),
    "n_nm": (1, 1_000),
    "epoch_start": (1, 10**6),
    "epoch_neigh": (1, 10**6),
    "epoch_final": (1, 10**6),
    "lr_start": (0, 1e3),
    "lr_end": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "batch_size": (1, 10**6),
    "crop": (0, 10**4),
    "cutout": (0, 10**4),
    "mixup": (0, 10**3),
    "kernels": (1, 99),
    "widen_factors": (2, 64),
    "max_channels": (0, 10**6),
    "pool_factors": (2, 64),
}


def check_config(config: NashConfig) -> None:
    """Make sure that settings make sense.

    Raises:
        ArchirError: A721, with the entry and its range.
    """
    check_entries("A721", config, RANGES)
    for name in ("kernels", "widen_factors", "pool_factors"):
        if not getattr(config, name):
            raise error("A721", f"{name} is empty, it should be a list of whole numbers")
    even = [k for k in config.kernels if k % 2 == 0]
    if even:
        raise error("A721", f"kernels holds {even[0]}, they should be odd")
    if config.lr_end > config.lr_start:
        raise error("A721", f"lr_end is {config.lr_end:g}, more than lr_start, {config.lr_start:g}")


JOINED = ("relu", "max_pool", "add", "concat")
"""A skip goes from and to the results of these: ReLU and pooling [FRB], and earlier skips."""


def moves_of(config: NashConfig) -> tuple[Move, ...]:
    """The three operators, with equal chances; skips by concatenation or addition likewise [M].

    Inserted layers have the channels of the tensor that they are put behind. A skip by addition
    is the convex one (type IV), which mixes images of one shape [FRB]; one by concatenation has
    columns of zeros in the convolution that reads it (type II).
    """
    concat = "skip/concat"
    return (
        Move("deepen.batch_norm", "insert", {"kernel": config.kernels}),
        Move(
            "widen.zero_outgoing",
            "widen",
            times={"width": config.widen_factors},
            most=config.max_channels,
        ),
        Move("skip.concat", concat, tensors=JOINED),
        Move("skip.concat_pooled", concat, {"factor": config.pool_factors}, tensors=JOINED),
        Move("skip.convex", "skip/add", tensors=JOINED),
    )


def recipe(config: NashConfig, epochs: int) -> TrainConfig:
    """One cycle of SGDR."""
    return TrainConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        lr=config.lr_start,
        lr_min=config.lr_end,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        schedule="cosine",
        flip=config.flip,
        crop=config.crop,
        cutout=config.cutout,
        mixup=config.mixup,
        precision=config.precision,
    )


@dataclass(frozen=True)
class Nash:
    """The strategy, and with ``n_neigh = 1`` its baseline of random networks."""

    config: NashConfig
    moves: tuple[Move, ...]
    evaluator: Evaluator | None = None
    """Scores networks in the place of training; the last best is trained all the same."""
    name: str = "nash"

    def record(self) -> Mapping[str, Any]:
        """Its settings, as JSON values."""
        entries = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()
        }
        other = None if self.evaluator is None else dict(self.evaluator.record())
        moves = [move.record() for move in self.moves]
        return {"strategy": self.name, **entries, "moves": moves, "evaluator": other}

    def expected(self) -> int:
        """The evaluations of a whole run: start, steps, final training."""
        return 2 + self.config.n_steps * self.config.n_neigh

    def run(self, search: Search) -> Outcome:
        """Climb.

        Raises:
            ArchirError: A722, the start network has no score.
        """
        config, start = self.config, search.start
        assert start is not None, "NASH needs a start network"
        begin = self.evaluator or Training(recipe(config, config.epoch_start))
        seed = seed_of(search, "start")
        first = Proposal({"kind": "start"}, lambda: start, (), seed)
        (best,) = search.evaluate("start", begin, [first])
        if best.status != "scored":
            raise error("A722", f"the start network was {best.status}: {best.reason}")
        steps = self.evaluator or Training(recipe(config, config.epoch_neigh))
        space, snapshots = Space(start, self.moves), dict[int, Member]()
        for step in range(1, config.n_steps + 1):
            # the last training is longer than those of a step
            if not search.goes_on(config.epoch_final / config.epoch_neigh):
                break
            proposals = self._children(search, space, best, step)
            if not proposals:
                search.note("step", step=step, best=best.number, note="no move applies any more")
                break
            if config.n_neigh > 1:
                again = partial(search.network, best)
                seed = seed_of(search, self.name, step)
                proposals.append(Proposal({"kind": "parent"}, again, (best.number,), seed))
            best = self._chosen(search.evaluate("neighbours", steps, proposals), best)
            snapshots[best.number] = best
            search.note("step", step=step, best=best.number)
        trained = self.evaluator is None or self.evaluator.inherits  # else there are no weights
        return Outcome(self._final(search, best), tuple(snapshots.values()) if trained else ())

    def _children(self, search: Search, space: Space, best: Member, step: int) -> list[Proposal]:
        """Children of the best network; fewer where few moves apply."""
        inherits = self.evaluator is None or self.evaluator.inherits
        parent = search.network(best)
        children = []
        for child in range(1, max(2, self.config.n_neigh)):
            stream = search.draw(self.name, step, child)
            uses = space.draw(parent, stream, self.config.n_nm, search.allows)
            if not uses:
                continue
            seed, scored = (int(n) for n in stream.integers(2**31, size=2))
            origin = {"kind": "rewrite", "uses": [use_record(use) for use in uses], "seed": seed}
            make = partial(child_of, search, best, uses, seed, inherits=inherits)
            children.append(Proposal(origin, make, (best.number,), scored))
        return children

    def _chosen(self, members: Sequence[Member], best: Member) -> Member:
        """The member of the highest score; of equals that of the lower loss, where there is one.

        Then the smaller one, then the earlier [own]: scores on few images are often equal. Where
        none has a score, the best stays.
        """
        return min(scored_of(members), key=rank, default=best)

    def _final(self, search: Search, best: Member) -> Member:
        """The best after its last training; before it, where that failed."""
        config = self.config
        evaluator = Training(recipe(config, config.epoch_final), join=config.final_joins)
        make = partial(search.network, best)
        last = Proposal({"kind": "parent"}, make, (best.number,), seed_of(search, "final"))
        (trained,) = search.evaluate("final", evaluator, [last])
        return trained if trained.status == "scored" else best


def rank(member: Member) -> tuple[float, float, int, int]:
    """The best first: the higher score, the lower loss, the smaller, the earlier."""
    return -member.score, member.scores.get("loss", 0.0), member.params, member.number


def child_of(
    search: Search, best: Member, uses: Sequence[Application], seed: int, *, inherits: bool
) -> Network:
    """A child with inherited weights, or as a text alone where no score depends on them."""
    parent = search.network(best)
    return search.rewritten(parent if inherits else _bare(parent), uses, seed)


def _bare(network: Network) -> Network:
    return replace(network, weights=None)


def make(
    config: NashConfig,
    moves: Sequence[Move] | None = None,
    evaluator: Evaluator | None = None,
    name: str = "nash",
) -> Nash:
    """The strategy with its own moves and training, or the user's.

    Raises:
        ArchirError: A721, the settings make no sense.
    """
    check_config(config)
    if name == "random" and config.n_neigh != 1:
        raise error(
            "A721",
            f"n_neigh is {config.n_neigh}, the random baseline has one child in each step",
            hint="the strategy `nash` lets several compete",
        )
    return Nash(config, moves_of(config) if moves is None else tuple(moves), evaluator, name)


SMALL = NashConfig(
    n_steps=4,
    n_neigh=5,
    n_nm=3,
    epoch_start=5,
    epoch_neigh=6,
    epoch_final=20,
    batch_size=64,
    flip=False,
    crop=0,
    max_channels=64,
)
"""Under two minutes on two cores with ``examples/nash_digits.arch`` and digits [own]."""

CPU20 = NashConfig(n_steps=3, n_neigh=4, n_nm=2, epoch_start=2, epoch_neigh=2, epoch_final=10)
"""Within twenty CPU minutes with ``benchmarks/nash_cifar10.arch``, CIFAR-10 and 8 million MACs at
most [own]. Five morphisms in a row come to such a limit in the first step."""

PRESETS = {
    "small": SMALL,
    "paper": NashConfig(),
    "paper8": NashConfig(n_steps=8),
    "cpu20": CPU20,
}

NASH = Kind(
    "nash",
    "Hill climbing over network morphisms (Elsken, Metzen, Hutter 2017).",
    NashConfig,
    PRESETS,
    make,
)
RANDOM = Kind(
    "random",
    "The baseline of NASH: one random child a step, taken whatever its score.",
    NashConfig,
    {name: replace(preset, n_neigh=1) for name, preset in PRESETS.items()},
    partial(make, name="random"),
)
