"""EAS: a policy learns how to grow a network (Cai, Chen, Zhang, Yu, Wang 2018, arXiv 1707.04873).

In each episode a batch of networks grows from one start network: a few times the policy says which
layers become wider, then a few times where a layer is inserted. They are trained for some epochs
from the weights that they inherit, and their validation accuracies are the policy's rewards.
Importing this module needs no torch; a search does, for its policy.

What was not found, and is our choice: no noise is added to what is copied or inserted (the code
adds a thousandth to a hundredth of the spread), since the shares of `widen.shares` tell copies
apart; the statistics of inserted batch norms are those of 1,024 training images, the code has 64;
a network beyond the limits is grown by the part of the decisions that stays within, and the policy
learns from that part alone; a network that fails has the lowest reward of its episode; accuracies
are capped below 1, where the tangent has no value, by half a validation image; the second stage
starts from the first's best after its longer training, the policy stays, the baseline begins anew,
and so does the list of what was trained; the last training is of the most accurate network of all,
of equal ones as NASH has it. The validation images are the data set's, a tenth of CIFAR-10 as
theirs.

Figures are tagged: [C] the authors' code (han-cai/EAS); [M] memory of the paper, whose body was not
at hand when they were gathered; [own] nothing was found, our choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from archir.diag import error
from archir.ir.hash import graph_hash
from archir.rewrite.library import find_rule
from archir.rewrite.rule import Reshaping
from archir.rewrite.sites import Planner
from archir.search.dense_space import DenseSpace
from archir.search.nash import child_of, rank
from archir.search.parts import Evaluator, Kind, Member, Outcome, Proposal, scored_of, seed_of
from archir.search.plain_space import FILTERS, UNITS, PlainSpace
from archir.search.space import use_record
from archir.search.training import Training
from archir.train.entries import check_entries
from archir.train.recipe import Precision, TrainConfig

if TYPE_CHECKING:
    from archir.api import Application, Network
    from archir.ir.graph import Graph
    from archir.search.eas_policy import Actor, Decision, Wider
    from archir.search.engine import Search
    from archir.search.sequences import LayerSpace
    from archir.search.space import Move


@dataclass(frozen=True)
class EasConfig:
    """The numbers of EAS; the defaults are the paper's for plain networks."""

    space: Literal["plain", "dense"] = "plain"
    """Plain networks, or DenseNets with bottlenecks."""
    nets: int = 300
    """Networks that are sampled in the first stage [M]."""
    nets_second: int = 150
    """In the second, from the best of the first [M]; 0: there is none."""
    batch: int = 10
    """Networks in an episode, after which the policy learns [C]."""
    n_wider: int = 4
    """Times that the policy says which layers are widened: 4 [C], [M]; DenseNets: 10 [C]."""
    n_deeper: int = 5
    """Times that a layer is inserted then [C], [M]."""

    filters: tuple[int, ...] = FILTERS
    """Levels of width of convolutions: those for runs of the paper's size [C]."""
    units: tuple[int, ...] = UNITS
    """Levels of hidden linear layers [C]."""
    kernels: tuple[int, ...] = (1, 3, 5)
    """Of convolutions [C]."""
    growths: tuple[int, ...] = tuple(range(4, 49, 2))
    """Levels of the growth rate of each layer of a DenseNet [C]."""
    widen_rule: str = "widen.shares"
    """The rule that widens: ``widen`` copies channels as the paper does, and alike [own]."""

    reward: Literal["tan", "accuracy"] = "tan"
    """tan(accuracy * pi / 2), or the accuracy itself [C], [M]."""
    baseline: Literal["ema", "code"] = "ema"
    """A moving average of the mean reward of episodes: ``ema`` keeps ``decay`` of the old value
    [M], and begins with the first mean [own]; ``code`` takes ``decay`` of the newest mean and
    begins with 0 [C]."""
    decay: float = 0.95
    """[C]"""
    entropy: float = 1e-5
    """The weight of the policy's entropy [C]."""
    lr_policy: float = 2e-3
    """Of Adam, which trains the policy [C]."""

    epoch_start: int = 20
    """Training of the start network [own]: the authors' comes trained."""
    epoch_child: int = 20
    """Training of a sampled network [C]."""
    epoch_longer: int = 100
    """Training of the first stage's best, before the second [M]."""
    epoch_final: int = 300
    """Training of the best of all, on training and validation images [C], [M]."""
    lr_start: float = 0.1
    """The rate falls along half a cosine to nothing in each training: of the start network as of
    the final one [own]."""
    lr_child: float = 0.02
    """[C]"""
    lr_longer: float = 0.1
    """As of the final training [own]."""
    lr_final: float = 0.1
    """[C]"""
    momentum: float = 0.9
    """[C]"""
    nesterov: bool = True
    """[C]"""
    weight_decay: float = 1e-4
    """On all parameters [C]."""
    batch_size: int = 64
    """[C]"""
    flip: bool = True
    """C10+ [C]."""
    crop: int = 4
    """C10+ [C]; all nine offsets in each direction, the code draws from eight."""

    final_joins: bool = True
    """Whether the final training is on validation images too [own]."""
    precision: Precision = "f32"
    """[own]"""


RANGES: Mapping[str, tuple[float, float]] = {
    "nets": (1, 10**6),
    "nets_second": (0, 10**6),
    "batch": (1, 10**4),
    "n_wider": (0, 1_000),
    "n_deeper": (0, 1_000),
    "filters": (1, 10**6),
    "units": (1, 10**6),
    "kernels": (1, 99),
    "growths": (1, 10**6),
    "decay": (0, 1),
    "entropy": (0, 1e3),
    "lr_policy": (0, 1e3),
    "epoch_start": (1, 10**6),
    "epoch_child": (1, 10**6),
    "epoch_longer": (1, 10**6),
    "epoch_final": (1, 10**6),
    "lr_start": (0, 1e3),
    "lr_child": (0, 1e3),
    "lr_longer": (0, 1e3),
    "lr_final": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "batch_size": (1, 10**6),
    "crop": (0, 10**4),
}


def check_config(config: EasConfig) -> None:
    """Make sure that settings make sense.

    Raises:
        ArchirError: A763, with the entry and its range.
    """
    check_entries("A763", config, RANGES)
    for name in ("filters", "units", "kernels", "growths"):
        levels = getattr(config, name)
        if not levels or list(levels) != sorted(set(levels)):
            told = f"{name} is {list(levels)}, it should be numbers in rising order"
            raise error("A763", told)
    even = [k for k in config.kernels if k % 2 == 0]
    if even:
        raise error("A763", f"kernels holds {even[0]}, they should be odd")
    if not config.n_wider + config.n_deeper:
        raise error("A763", "n_wider and n_deeper are 0, so that no network would change")


def check_rule(name: str, start: Network) -> None:
    """Make sure that a rule widens.

    Raises:
        ArchirError: A763, it does something else; A604, there is none.
    """
    rule = start.rule(name)
    if not isinstance(rule.body, Reshaping) or [p.name for p in rule.parameters] != ["width"]:
        hint = "such as widen, widen.shares, widen.zero_outgoing"
        raise error("A763", f"widen_rule is `{name}`, which is no rule that widens", hint=hint)


def space_of(config: EasConfig) -> LayerSpace:
    """The networks that are searched."""
    if config.space == "plain":
        return PlainSpace(config.filters, config.units, config.kernels, config.widen_rule)
    return DenseSpace(config.growths, config.widen_rule)


def recipe(config: EasConfig, epochs: int, lr: float) -> TrainConfig:
    """A training: one half cosine."""
    return TrainConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        lr=lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        schedule="cosine",
        flip=config.flip,
        crop=config.crop,
        precision=config.precision,
    )


@dataclass
class _Grown:
    """A network that grows in an episode; no weight is touched."""

    search: Search
    graph: Graph
    uses: list[Application] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def grow(self, uses: Sequence[Application]) -> bool:
        """Apply rules; whether what they make is within the limits, else nothing is done."""
        start, graph = self.search.start, self.graph
        assert start is not None
        for use in uses:
            rule = find_rule(use.rule, start.library, start.ops)
            assert use.at is not None, "a space names its sites"
            graph = Planner(graph, start.ops).plan(rule, use.at, use.arguments).after
        if not self.search.allows(graph):
            return False
        self.graph = graph
        self.uses += uses
        return True

    def widen(self, space: LayerSpace, decision: Wider) -> None:
        """Widen layers, from the input to the output."""
        counted = list(decision.counted)
        for layer, yes in enumerate(decision.yes):
            if yes and not self.grow(space.widened(self.graph, layer)):
                counted[layer] = False
        self.decisions.append(replace(decision, counted=tuple(counted)))


@dataclass
class _Stage:
    """Episodes that grow one network."""

    base: Member
    nets: int
    seen: dict[str, Member] = field(default_factory=dict)
    """What was trained, by the hash of its graph."""
    baseline: float | None = None


@dataclass(frozen=True)
class Eas:
    """The strategy, and its baseline of the random policy."""

    config: EasConfig
    evaluator: Evaluator | None = None
    """Scores networks in the place of training; the last best is trained all the same."""
    name: str = "eas"

    def record(self) -> Mapping[str, Any]:
        """Its settings, as JSON values."""
        entries = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()
        }
        other = None if self.evaluator is None else dict(self.evaluator.record())
        return {"strategy": self.name, **entries, "evaluator": other}

    def expected(self) -> int:
        """The evaluations of a whole run, if no network is sampled twice."""
        longer = bool(self.config.nets_second) and self.evaluator is None
        return 2 + self.config.nets + self.config.nets_second + longer

    def run(self, search: Search) -> Outcome:
        """Sample networks, and learn.

        Raises:
            ArchirError: A761 and A762, the start network is not of the space; A722, it has no
                score; A764, nothing in it can grow.
        """
        config, start = self.config, search.start
        assert start is not None, "EAS needs a start network"
        check_rule(config.widen_rule, start)
        space = space_of(config)
        sequence = space.read(start.graph)
        wider = config.n_wider and any(layer.wider for layer in sequence.layers)
        if not wider and not (config.n_deeper and any(sequence.blocks)):
            raise error("A764", "no layer of the start network can be widened or gets another one")
        begin = self.evaluator or Training(recipe(config, config.epoch_start, config.lr_start))
        seed = seed_of(search, "start")
        first = Proposal({"kind": "start"}, lambda: start, (), seed)
        (base,) = search.evaluate("start", begin, [first])
        if base.status != "scored":
            raise error("A722", f"the start network was {base.status}: {base.reason}")
        actor, best = self._actor(search, space), base
        for stage in self._stages(search, base):
            best = min([stage.base, best], key=rank)
            best = self._sample(search, space, actor, stage, best)
        return Outcome(self._final(search, best))

    def _stages(self, search: Search, base: Member) -> Iterator[_Stage]:
        """The first stage, then the second, if there is one and time for it."""
        config = self.config
        first = _Stage(base, config.nets)
        yield first
        if not config.nets_second or not search.goes_on(config.epoch_final / config.epoch_child):
            return
        base = min([first.base, *scored_of(list(first.seen.values()))], key=rank)
        if self.evaluator is None:
            longer = Training(recipe(config, config.epoch_longer, config.lr_longer))
            base = self._again(search, "longer", longer, base)
        yield _Stage(base, config.nets_second)

    def _actor(self, search: Search, space: LayerSpace) -> Actor:
        from archir.search.eas_policy import Policy, Uniform  # noqa: PLC0415 - it needs torch

        if self.name == "eas_random":
            return Uniform(space)
        first, config = search.draw("policy"), self.config
        return Policy(space, first, rate=config.lr_policy, entropy=config.entropy)

    def _sample(
        self, search: Search, space: LayerSpace, actor: Actor, stage: _Stage, best: Member
    ) -> Member:
        """The episodes of a stage; returns the best network so far."""
        config = self.config
        evaluator = self.evaluator or Training(recipe(config, config.epoch_child, config.lr_child))
        for left in range(stage.nets, 0, -config.batch):
            # the last training is longer than those of an episode
            if not search.goes_on(config.epoch_final / config.epoch_child):
                break
            words = (stage.base.number, left)
            graph = search.network(stage.base).graph
            grown = [_Grown(search, graph) for _ in range(min(left, config.batch))]
            self._decide(search, space, actor, grown, words)
            members = self._evaluated(search, stage, evaluator, grown, words)
            best = min([best, *scored_of(members)], key=rank)
            self._learn(search, actor, stage, grown, members, best)
        return best

    def _decide(
        self,
        search: Search,
        space: LayerSpace,
        actor: Actor,
        grown: Sequence[_Grown],
        words: tuple[int, ...],
    ) -> None:
        """Let networks grow: all that is widened first, then what is inserted [C]."""
        for step in range(self.config.n_wider):
            stream = search.draw("wider", *words, step)
            decided = actor.wider([space.read(one.graph) for one in grown], stream)
            for one, wider in zip(grown, decided, strict=True):
                one.widen(space, wider)
        for step in range(self.config.n_deeper):
            stream = search.draw("deeper", *words, step)
            chosen = actor.deeper([space.read(one.graph) for one in grown], stream)
            for one, deeper in zip(grown, chosen, strict=True):
                if deeper is None:
                    continue
                kernel = space.kernels[deeper.kernel or 0]
                uses = space.deepened(one.graph, deeper.block, deeper.place, kernel)
                if one.grow(uses):
                    one.decisions.append(deeper)
        for one in grown:
            one.grow(space.finished(one.graph))

    def _evaluated(
        self,
        search: Search,
        stage: _Stage,
        evaluator: Evaluator,
        grown: Sequence[_Grown],
        words: tuple[int, ...],
    ) -> list[Member]:
        """The members that networks become; those of one architecture are one [C]."""
        hashes = [graph_hash(one.graph) for one in grown]
        new = {found: one for found, one in zip(hashes, grown, strict=True)
               if found not in stage.seen}  # fmt: skip
        proposals = []
        for place, one in enumerate(new.values()):
            stream = search.draw("child", *words, place)
            seed, scored = (int(n) for n in stream.integers(2**31, size=2))
            uses = [use_record(use) for use in one.uses]
            origin: dict[str, Any] = {"kind": "rewrite", "uses": uses, "seed": seed}
            inherits = evaluator.inherits
            make = partial(child_of, search, stage.base, one.uses, seed, inherits=inherits)
            if not uses:  # nothing was decided
                origin, make = {"kind": "parent"}, partial(search.network, stage.base)
            proposals.append(Proposal(origin, make, (stage.base.number,), scored))
        members = search.evaluate("sampled", evaluator, proposals) if proposals else []
        stage.seen |= dict(zip(new, members, strict=True))
        return [stage.seen[found] for found in hashes]

    def _learn(
        self,
        search: Search,
        actor: Actor,
        stage: _Stage,
        grown: Sequence[_Grown],
        members: Sequence[Member],
        best: Member,
    ) -> None:
        """Let the policy learn from an episode, and write down what it came to."""
        found = [self._reward(member, search) for member in members if member.status == "scored"]
        if not found:
            search.note("step", best=best.number, note="no network of this episode has a score")
            return
        rewards = [self._reward(m, search) if m.status == "scored" else min(found) for m in members]
        mean = math.fsum(rewards) / len(rewards)
        stage.baseline = self._baseline(stage.baseline, mean)
        told = actor.learn([one.decisions for one in grown], [r - stage.baseline for r in rewards])
        facts = {"reward": mean, "baseline": stage.baseline, **told}
        scores = [m.score for m in members if m.status == "scored"]
        facts["score"] = math.fsum(scores) / len(scores)
        kept = {name: round(value, 6) for name, value in facts.items()}
        search.note("step", best=best.number, nets=[m.number for m in members], **kept)

    def _reward(self, member: Member, search: Search) -> float:
        """Of a network that has a score; the score itself where it is no accuracy."""
        if self.config.reward == "accuracy" or member.accuracy is None:
            return member.score
        most = 1 - 1 / (2 * len(search.dataset.validation))
        return math.tan(min(member.accuracy, most) * math.pi / 2)

    def _baseline(self, old: float | None, mean: float) -> float:
        """The moving average, an episode's mean reward taken in."""
        decay = self.config.decay
        if self.config.baseline == "code":
            return (old or 0.0) + decay * (mean - (old or 0.0))
        return mean if old is None else decay * old + (1 - decay) * mean

    def _again(self, search: Search, stage: str, evaluator: Evaluator, best: Member) -> Member:
        """A member after another training; as it was, where that failed."""
        make = partial(search.network, best)
        last = Proposal({"kind": "parent"}, make, (best.number,), seed_of(search, stage))
        (trained,) = search.evaluate(stage, evaluator, [last])
        return trained if trained.status == "scored" else best

    def _final(self, search: Search, best: Member) -> Member:
        config = self.config
        last = recipe(config, config.epoch_final, config.lr_final)
        return self._again(search, "final", Training(last, join=config.final_joins), best)


def make(
    config: EasConfig,
    moves: Sequence[Move] | None = None,
    evaluator: Evaluator | None = None,
    name: str = "eas",
) -> Eas:
    """The strategy with its own training, or the user's evaluator.

    Raises:
        ArchirError: A763, the settings make no sense, or moves are stated.
    """
    check_config(config)
    if moves is not None:
        hint = "`widen_rule`, `filters`, `units` and `kernels` say how they grow"
        raise error("A763", "moves are stated, and EAS lets networks grow by its own", hint=hint)
    return Eas(config, evaluator, name)


SMALL = EasConfig(
    nets=80,
    nets_second=0,
    n_wider=2,
    n_deeper=2,
    filters=(4, 8, 12, 16, 20, 24, 28, 32, 36, 40),
    units=(8, 16, 24, 32, 40, 48, 56, 64, 72, 80),
    lr_policy=2e-2,
    epoch_start=3,
    epoch_child=1,
    epoch_final=20,
    lr_start=0.05,
    lr_final=0.05,
    flip=False,
    crop=0,
)
"""Under two minutes on two cores with ``examples/eas_digits.arch`` and digits [own]; levels [C].
One epoch leaves networks that differ: after a few more all of them tell nearly all digits."""

CPU20 = replace(
    SMALL, nets=40, batch=8, n_deeper=3, epoch_start=4, epoch_final=10, flip=True, crop=4
)
"""Within twenty CPU minutes with ``benchmarks/eas_cifar10.arch``, CIFAR-10 and 4 million MACs at
most [own]."""

PAPER = EasConfig()

PRESETS = {
    "small": SMALL,
    "paper": PAPER,
    "paper_dense": replace(PAPER, space="dense", n_wider=10),
    "cpu20": CPU20,
}

EAS = Kind(
    "eas",
    "A policy learns how to grow networks (Cai, Chen, Zhang, Yu, Wang 2018).",
    EasConfig,
    PRESETS,
    make,
)
EAS_RANDOM = Kind(
    "eas_random",
    "The baseline of EAS: networks grow alike, by a policy that draws uniformly.",
    EasConfig,
    PRESETS,
    partial(make, name="eas_random"),
)
