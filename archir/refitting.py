"""Rewriting with a refit: after each replacement its last linear layer is fit to data.

Each use of a rule is a ``rewrite`` step of the certificate, and each fit a ``calibrate`` step
behind it. Such a step is attested by hashes as training is, and what it made is kept in the
lineage; where its data are at hand it can be done again (:func:`replayed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from archir.api import Application, Calibration, Network, Rewritten, engine, no_weights, rewrite
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance
from archir.proof.drift import measure
from archir.proof.history import History, redone
from archir.proof.refit import Recovery, refit
from archir.proof.replay import MALFORMED, Finding
from archir.proof.undo import history

KIND = "calibrate"
APART = 1e-4
"""How far, relative to the largest entry, a fit that is done again on another machine may be from
the certified one: sums of floats in another order differ by less."""


@dataclass(frozen=True)
class Refitted:
    """What a rewrite did, and what the fits after it recovered."""

    rewritten: Rewritten
    fits: tuple[Recovery, ...]


def rewrite_and_refit(
    network: Network,
    applications: Sequence[Application],
    calibration: Calibration,
    *,
    seed: int = 0,
    limits: Mapping[str, int] | None = None,
    unproved: bool = False,
    approximate: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Refitted:
    """Apply rules one use after the other, each followed by a refit; all, or none.

    Args:
        network: The parent, with weights.
        applications: The rules in order; a site may be a glob, ``all`` or ``random``.
        calibration: Data to fit to, and for statistics that rules ask for.
        seed: For random maps and random sites; it drew the images.
        limits: Largest ``params`` and ``macs`` of the result.
        unproved: Whether rules without a verdict may run.
        approximate: Whether rules may run where the weights are not as they assume.
        report: Called with a line about each step of the work.

    Raises:
        ArchirError: as :func:`archir.api.rewrite` does; A600, the network has no weights.
    """
    if network.weights is None:
        raise no_weights(network.path)
    current, fits = network, list[Recovery]()
    done: list[Rewritten] = []
    for number, application in enumerate(applications):
        rule = current.rule(application.rule)
        sites = list(current.planner.choose(rule, application.at, seed))
        for place, site in enumerate(sites, 1):
            one = replace(application, at=site)
            last = number == len(applications) - 1 and place == len(sites)
            made = rewrite(
                current,
                [one],
                seed=seed + number,
                calibration=calibration,
                limits=limits if last else None,
                unproved=unproved,
                approximate=approximate,
                report=report,
            )
            report(f"refit of {rule.name}@{site}")
            found, current = _refit(current, made, calibration, seed)
            fits += found
            done.append(made)
    assert current.weights is not None
    sides = (network.graph, network.weights), (current.graph, current.weights)
    drift = measure(*sides, network.ops, engine())
    uses = tuple(use for made in done for use in made.uses)
    whole = Rewritten(current, uses, drift, network.cost(), current.cost())
    return Refitted(whole, tuple(fits))


def _refit(
    before: Network, made: Rewritten, calibration: Calibration, seed: int
) -> tuple[list[Recovery], Network]:
    (use,) = made.uses
    after = made.network
    assert before.weights is not None
    assert after.weights is not None
    weights, fits = refit(use.plan, before.ops, before.weights, after.weights, calibration.feeds)
    if not any(fit.layer for fit in fits):
        return fits, after
    facts = {
        "data": calibration.name,
        "sha256": calibration.sha256,
        "count": len(next(iter(calibration.feeds.values()))),
        "seed": seed,
        "batch": _digest(calibration.feeds),
        "fits": [asdict(fit) for fit in fits],
    }
    return fits, after.with_weights(weights, KIND, facts)


def _digest(feeds: Mapping[str, Array]) -> str:
    """sha256 (hex) of the images that were fit to."""
    found = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.data.cast("B"))
    return found.hexdigest()


def replayed(network: Network, load: Callable[[int, int], Mapping[str, Array]]) -> list[Finding]:
    """Do every fit of a network's certificate again.

    Args:
        network: The network, with its certificate and lineage.
        load: Gives so many calibration images, drawn by a seed: a batch for each input.

    Returns:
        For each ``calibrate`` step whether it comes out as it is certified.

    Raises:
        ArchirError: A404, the lineage lacks what is needed.
    """
    steps = network.certificate.steps
    past = history(network.certificate, network.lineage, network.ops)
    found: list[Finding] = []
    for number, step in enumerate(steps, 1):
        if step.kind == KIND:
            try:
                holds, detail = _again(network, past, number, load)
            except MALFORMED as reason:
                holds = False
                detail = f"the step is malformed: {type(reason).__name__} {reason}"
            found.append(Finding(f"step {number}: {KIND}", "replay", holds, detail))
    return found


def _again(
    network: Network, past: History, number: int, load: Callable[[int, int], Mapping[str, Array]]
) -> tuple[bool, str]:
    """Do the fit of a step again; whether it comes out, and how near."""
    steps = network.certificate.steps
    facts = steps[number - 1].facts
    feeds = load(int(facts["count"]), int(facts["seed"]))
    if _digest(feeds) != facts["batch"]:
        return False, "these are not the images that were fit to"
    old, new = past.at(number - 2), past.at(number - 1)
    assert new.weights is not None
    *_, use = redone(steps[number - 2], old.program.graph, old.weights, network.ops)
    assert use.weights is not None
    weights, fits = refit(use.plan, network.ops, use.weights, new.weights, feeds)
    end = network.weights if number == len(steps) else past.at(number).weights
    assert end is not None
    return _compared(weights, end, fits, facts)


def _compared(
    made: Mapping[str, Array],
    certified: Mapping[str, Array],
    fits: Sequence[Recovery],
    facts: Mapping[str, Any],
) -> tuple[bool, str]:
    same = made.keys() == certified.keys()
    far = max((distance(certified[p], made[p]) for p in certified), default=0.0) if same else 1.0
    numbers = [(f.before, f.after) for f in fits]
    told = [(float(f["before"]), float(f["after"])) for f in facts["fits"]]
    if len(numbers) != len(told) or not np.allclose(numbers, told, rtol=APART, atol=APART):
        return False, "what was recovered does not come out as certified"
    if far > APART:
        return False, f"its weights come out {far:.1e} away from the certified ones"
    exact = all(np.array_equal(made[p], certified[p]) for p in certified)
    return True, "bit for bit" if exact else f"within {far:.1e}: sums in another order"
