"""The engine of a search: it makes, limits, evaluates and records what a strategy proposes.

A run is resumed by running its strategy again; the journal answers for what is done already. On a
CPU, equal runs give equal journals and results, byte for byte, whether they were cut off or not,
as long as nothing in them was decided by a clock (limits of time and of latency).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from archir.api import Application, Network, load
from archir.api import rewrite as apply_rules
from archir.applying import use_text
from archir.diag import ArchirError, error
from archir.files import writing, writing_all
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.ops import installed_ops
from archir.ops.cost import cost
from archir.proof.certificate import state_of, weights_hash
from archir.saving import certificate_path, weights_path
from archir.search.executors import Executor, InProcess
from archir.search.journal import TIMINGS, Ledger, entry_of, member_of
from archir.search.limits import Limits, measure_latency, too_slow
from archir.search.parts import Evaluator, Member, Proposal, front
from archir.search.work import DONE, KEPT, RESULT, DataRef, Job, environmental, placed, said
from archir.train.data import Dataset, calibration_of

MEMBERS, WORK, LINEAGE, START = "members", "work", "lineage", "start.arch"
_TIMES = ("seconds", "cpu_seconds")


@dataclass(frozen=True)
class Progress:
    """Where a search stands."""

    stage: str
    done: int
    """Members so far."""
    expected: int
    """About how many there will be."""
    member: Member | None
    """The one that was finished just now."""
    best: Member | None
    """The best of this stage."""
    front: int
    """Members on the Pareto front of this stage."""
    elapsed: float
    """Seconds, those before an interruption included."""
    note: str = ""


ProgressCallback = Callable[[Progress], object]


@dataclass
class _Slot:
    """A proposal on its way to the journal."""

    proposal: Proposal
    member: Member
    """What is known of it."""
    begun: float = 0.0
    ready: bool = False
    twin: int | None = None
    """The member whose evaluation it shares, which may be under way too."""
    result: Mapping[str, Any] = field(default_factory=dict)


class Search:
    """What a strategy sees of the engine."""

    def __init__(
        self,
        strategy: str,
        *,
        start: Network | None,
        dataset: Dataset,
        data: DataRef,
        seed: int,
        limits: Limits,
        folder: Path,
        ledger: Ledger,
        executor: Executor | None = None,
        device: str = "auto",
        threads: int = 1,
        cost: str = "macs",
        expected: int = 0,
        progress: ProgressCallback = lambda _: None,
    ) -> None:
        self.strategy = strategy
        self.start, self.dataset, self.seed, self.limits = start, dataset, seed, limits
        self.members: list[Member] = []
        self.folder = folder
        self._data, self._device, self._threads = data, device, threads
        self._executor = executor or InProcess()
        self._ledger = ledger
        self.cost, self._expected, self._progress = cost, expected, progress
        self.stages: dict[str, Mapping[str, Any]] = {}
        """What each stage is evaluated by."""
        self._keys: dict[str, int] = {}
        self._latencies: dict[str, Mapping[str, Any]] = {}
        """By the hash of the graph: each is measured once, so that a member stays within limits."""
        self._held: dict[int, Network] = {}
        self._times = times_of(folder)
        """Seconds of each member's evaluation, and those of the search when it was finished."""
        self._step: list[Member] = []
        """The members of the last step."""
        self._before = elapsed_before(folder)
        self._begun = time.perf_counter()

    # --- what strategies draw and ask ---------------------------------------------------------

    def draw(self, *words: str | int) -> np.random.Generator:
        """A stream of random numbers of its own for each tuple of words, from the run's seed."""
        text = json.dumps([self.seed, *words])
        found = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        return np.random.Generator(np.random.PCG64(found))

    def allows(self, graph: Graph) -> bool:
        """Whether a network's parameters and MACs are within the limits."""
        return self.limits.over(cost(graph, installed_ops())) is None

    def network(self, member: Member) -> Network:
        """A member as it was after its evaluation.

        Raises:
            ArchirError: A703, its files are gone or were changed.
        """
        number = member.number if member.same_as is None else member.same_as
        if number not in self._held:
            path = self.folder / MEMBERS / f"{number:04d}.arch"
            try:
                found = load(path)
            except ArchirError as reason:
                why = reason.diagnostics[0].message
                raise error("A703", f"member {number} cannot be read again: {why}") from None
            steps = found.certificate.steps
            if steps and steps[-1].after != state_of(found.text, found.graph, found.weights):
                hint = f"`archir verify {path}` tells which of its files"
                raise error("A703", f"member {number} was changed since it was scored", hint=hint)
            while len(self._held) >= 4:  # networks may be large; few are asked for again
                del self._held[next(iter(self._held))]
            self._held[number] = found
        return self._held[number]

    def kept(self, member: Member, name: str) -> Path:
        """A file that a member's evaluator left in its folder ``kept``.

        Raises:
            ArchirError: A703, it is gone.
        """
        number = member.number if member.same_as is None else member.same_as
        path = self.folder / MEMBERS / f"{number:04d}.{name}"
        if not path.is_file():
            raise error("A703", f"{path} is gone, which member {number} left")
        return path

    def rewritten(
        self, parent: Network | Member, applications: Sequence[Application], seed: int
    ) -> Network:
        """A network after some rules: one step of its certificate, within the limits.

        Statistics that rules ask for are those of training images.

        Raises:
            ArchirError: A30x, a rule does not apply; A312, the result is too large; A40x.
        """
        network = self.network(parent) if isinstance(parent, Member) else parent
        calibration = calibration_of(network.graph, self.dataset, seed) if network.weights else None
        sizes = {"params": self.limits.params, "macs": self.limits.macs}
        limits = {name: most for name, most in sizes.items() if most is not None}
        done = apply_rules(network, applications, seed=seed, calibration=calibration, limits=limits)
        return done.network

    def goes_on(self, then: float = 0.0) -> bool:
        """Whether time and evaluations are left for another step; asked between two of them.

        The answer is kept in the journal: a run that is resumed stops where it stopped. A step is
        taken to need the time of the one before.

        Args:
            then: The time that the strategy needs after its steps, in evaluations as long as the
                longest of the step before.
        """
        coming = self._ledger.coming
        if coming is not None:
            if coming["event"] != "stop":
                return True
            self._ledger.put(coming)
            return False
        most, seconds = self.limits.evaluations, self.limits.time
        spent = sum(m.same_as is None and m.status != "refused" for m in self.members)
        reason = ""
        if most is not None and spent >= most:
            reason = "evaluations"
        elif seconds is not None and self.elapsed + self._needed(then) >= seconds:
            reason = "time"
        if not reason:
            return True
        self.note("stop", reason=reason)
        return False

    def _needed(self, then: float) -> float:
        """Seconds that another step may take, and what comes then."""
        times = [self._times[m.number] for m in self._step if m.number in self._times]
        if not times:
            return 0.0
        _, before = self._times.get(self._step[0].number - 1, (0.0, 0.0))
        return times[-1][1] - before + then * max(seconds for seconds, _ in times)

    @property
    def _late(self) -> bool:
        """Whether nothing more is to be begun, since the time is over and there is something."""
        most = self.limits.time
        scored = any(member.status == "scored" for member in self.members)
        return most is not None and self.elapsed >= most and scored

    def note(self, event: str, **facts: Any) -> None:
        """Write down what a strategy decided, as JSON values."""
        self._ledger.put({"event": event, **facts})
        self._tell(event, None, note=str(facts.get("note", "")))

    @property
    def elapsed(self) -> float:
        """Seconds of this search, those before an interruption included."""
        return self._before + time.perf_counter() - self._begun

    # --- evaluating -----------------------------------------------------------------------------

    def evaluate(
        self, stage: str, evaluator: Evaluator, proposals: Sequence[Proposal]
    ) -> list[Member]:
        """Score some proposals; returns when all of them are in the journal, in their order.

        Args:
            stage: What they are scored for. A stage has one evaluator.
            evaluator: It.
            proposals: The networks; equal ones are evaluated once.

        Returns:
            The members, those that were refused or failed among them.

        Raises:
            ArchirError: A701, a resumed run does not do what it did before; A602 and others that
                are no fault of a network: the run can be resumed.
        """
        evaluator = placed(evaluator, self._device)
        self._begin(stage, evaluator)
        first = len(self.members)
        left = list(proposals)
        while left and (member := self._answered(stage, left[0])) is not None:
            self._add(member)
            left.pop(0)
        slots = [_Slot(p, self._blank(len(self.members) + i, stage, p)) for i, p in enumerate(left)]
        waiting = list(slots)

        def done(job: Job) -> None:
            _read_result(next(s for s in slots if s.member.number == job.number), job.folder)
            self._settle(waiting)

        if slots:
            self._tell(stage, None)
            self._executor.run(self._jobs(slots, waiting, evaluator), done)
            self._settle(waiting)
        self._step = self.members[first:]
        return self._step

    def _begin(self, stage: str, evaluator: Evaluator) -> None:
        record = json.loads(json.dumps(evaluator.record()))
        if stage not in self.stages:
            self._ledger.put({"event": "stage", "stage": stage, "evaluator": record})
        if self.stages.setdefault(stage, record) != record:
            raise ValueError(f"stage `{stage}` has an evaluator already, another one")

    def _answered(self, stage: str, proposal: Proposal) -> Member | None:
        """The member that the journal has for the next proposal."""
        coming = self._ledger.coming
        if coming is None:
            return None
        said = entry_of(self._blank(len(self.members), stage, proposal))
        names = ("event", "number", "stage", "parents", "origin", "seed")
        said = json.loads(json.dumps({name: said[name] for name in names}))
        if any(coming.get(name) != value for name, value in said.items()):
            raise self._ledger.unlike(said)
        self._ledger.put(coming)
        return member_of(coming)

    def _blank(self, number: int, stage: str, proposal: Proposal) -> Member:
        """A member of which nothing is known yet."""
        return Member(
            number, stage, proposal.parents, proposal.origin, proposal.seed, status="refused"
        )

    def _add(self, member: Member) -> None:
        self.members.append(member)
        if member.latency is not None:
            self._latencies.setdefault(member.graph, member.latency)
        if member.key and member.same_as is None:
            self._keys.setdefault(member.key, member.number)

    def _jobs(
        self, slots: Sequence[_Slot], waiting: list[_Slot], evaluator: Evaluator
    ) -> Iterator[Job]:
        """Make the candidates; a job for each that has to be evaluated."""
        keys = dict(self._keys)
        jobs = (job for slot in slots if (job := self._made(slot, evaluator, keys)) is not None)
        for job in list(jobs) if self._measures else jobs:  # latencies are taken undisturbed
            self._settle(waiting)
            yield job

    def _made(self, slot: _Slot, evaluator: Evaluator, keys: dict[str, int]) -> Job | None:
        """Make a candidate; its job, or None where nothing is left to be evaluated."""
        slot.begun = time.perf_counter()
        number = slot.member.number
        if self._late:
            told = f"not begun: the {self.limits.time:g} seconds of this search are over"
            slot.member, slot.ready = replace(slot.member, reason=told), True
            return None
        try:
            network = slot.proposal.make()
        except ArchirError as reason:
            if environmental(reason):
                raise
            slot.member, slot.ready = replace(slot.member, reason=said(reason)), True
            return None
        # what a genome spells has no certificate yet, nor has a text that left its weights behind
        network = network.established({"origin": dict(slot.proposal.origin)})
        size = cost(network.graph, network.ops)
        graph = graph_hash(network.graph)
        key = self._key(network, graph, evaluator, slot.proposal.seed)
        slot.member = replace(slot.member, params=size.params, macs=size.macs, graph=graph, key=key)
        if key in keys:
            slot.twin, slot.ready = keys[key], True
            return None
        folder = self.folder / WORK / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        over = self.limits.over(size)
        if over is None and self._measures:
            try:
                latency, over = self._latency(network, folder, graph)
                slot.member = replace(slot.member, latency=latency)
            except ArchirError as reason:  # it cannot be exported, say
                if environmental(reason):
                    raise
                over = said(reason)
        if over is not None:
            slot.member, slot.ready = replace(slot.member, reason=over, key=""), True
            return None
        keys[key] = number
        lineage = self.folder / MEMBERS / LINEAGE
        start = network.save(folder / START, force=True, lineage=lineage)
        return Job(
            number=number,
            key=key,
            evaluator=evaluator,
            network=start,
            lineage=lineage,
            data=self._data,
            seed=slot.proposal.seed,
            folder=folder,
            device=self._device,
            threads=self._threads,
        )

    def _key(self, network: Network, graph: str, evaluator: Evaluator, seed: int) -> str:
        """What a score depends on, hashed."""
        weights = None
        if evaluator.inherits and network.weights is not None:
            weights = weights_hash(network.graph, network.weights)
        depends = [graph, weights, evaluator.record(), self.dataset.sha256, seed]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    @property
    def _measures(self) -> bool:
        return self.limits.latency is not None or self.cost == "latency"

    def _latency(
        self, network: Network, folder: Path, graph: str
    ) -> tuple[Mapping[str, Any], str | None]:
        """A candidate's latency, and why it is refused for it."""
        limit = self.limits.latency
        found = self._latencies.get(graph)
        if found is None:
            found = measure_latency(network, folder, threads=self._threads, limit=limit)
            self._latencies[graph] = found
        return found, None if limit is None else too_slow(found, limit)

    def _settle(self, waiting: list[_Slot]) -> None:
        """Write down what is finished, in the order of proposal."""
        while waiting and waiting[0].ready:
            slot = waiting.pop(0)
            if slot.twin is not None:
                twin = self.members[slot.twin]
                slot.member = replace(
                    slot.member,
                    same_as=twin.number,
                    status=twin.status,
                    reason=twin.reason,
                    scores=twin.scores,
                    latency=twin.latency,
                )
            # as a resumed run would read it
            member = member_of(json.loads(json.dumps(entry_of(slot.member))))
            place(self.folder, member)
            self._ledger.put(entry_of(member))
            elapsed = round(self.elapsed, 3)
            self._times[member.number] = (slot.result.get("seconds", 0.0), elapsed)
            self._ledger.time(
                {
                    "number": member.number,
                    **{k: slot.result[k] for k in _TIMES if k in slot.result},
                    "since": round(time.perf_counter() - slot.begun, 3),
                    "elapsed": elapsed,
                }
            )
            self._add(member)
            shutil.rmtree(self.folder / WORK / f"{member.number:04d}", ignore_errors=True)
            self._tell(member.stage, member)

    def _tell(self, stage: str, member: Member | None, note: str = "") -> None:
        peers = [m for m in self.members if m.stage == stage and m.status == "scored"]
        best = max(peers, key=lambda m: (m.score, -m.number), default=None)
        self._progress(
            Progress(
                stage,
                len(self.members),
                max(self._expected, len(self.members)),
                member,
                best,
                len(front(peers, self.cost)),
                self.elapsed,
                note,
            )
        )


def _read_result(slot: _Slot, folder: Path) -> None:
    """Take up what an evaluation left in its folder."""
    slot.result = json.loads((folder / RESULT).read_text("utf-8"))
    found = slot.result
    slot.member = replace(
        slot.member,
        status=found["status"],
        reason=found["reason"],
        scores=found["scores"],
        history=tuple(found["history"]),
    )
    slot.ready = True


def place(folder: Path, member: Member) -> None:
    """Put the files of a member that was evaluated among the others.

    They stay in its own folder too, until its line is in the journal.

    Raises:
        ArchirError: A602.
    """
    work = folder / WORK / f"{member.number:04d}"
    target = folder / MEMBERS / f"{member.number:04d}.arch"
    target.parent.mkdir(parents=True, exist_ok=True)
    uses = member.origin.get("uses")
    if uses:
        script = target.with_suffix(".rules")
        lines = [use_text(u["rule"], u["at"], u["arguments"]) for u in uses]
        with writing(script) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    if member.status == "refused" or member.same_as is not None:
        return
    source = work / (DONE if (work / DONE).exists() else START)
    pairs = [
        (name(source), name(target))
        for name in (weights_path, certificate_path, Path)
        if name(source).exists()
    ]
    pairs += [
        (kept, target.with_suffix(f".{kept.name}")) for kept in sorted((work / KEPT).glob("*"))
    ]
    with writing_all([to for _, to in pairs]) as temporaries:
        for (found, _), temporary in zip(pairs, temporaries, strict=True):
            shutil.copyfile(found, temporary)


def times_of(folder: Path) -> dict[int, tuple[float, float]]:
    """The times of members, as far as they were written down.

    Returns:
        By number the seconds of the evaluation, and those of the search when it was finished.
    """
    try:
        lines = (folder / TIMINGS).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # one may have been cut off
            entry = json.loads(line)
            seconds = float(entry.get("seconds", 0.0)), float(entry["elapsed"])
            found[int(entry["number"])] = seconds
    return found


def elapsed_before(folder: Path) -> float:
    """The seconds that a run took before it was interrupted, as far as they were written down."""
    return max((elapsed for _, elapsed in times_of(folder).values()), default=0.0)
