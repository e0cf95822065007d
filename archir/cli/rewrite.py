"""``archir rewrite``: apply verified rules."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.cells import Chosen, check_words, chosen_by
from archir.cli.common import Report, parse_settings
from archir.cli.common import command as make
from archir.cli.options import human
from archir.diag import error
from archir.files import read_source
from archir.ir.types import AttrValue

if TYPE_CHECKING:
    from archir.api import Application, Calibration, Network, Rewritten
    from archir.proof.refit import Recovery
    from archir.train.state import Moved, State


def _applications(
    network: Network,
    rules: tuple[str, ...],
    script: str | None,
    at: str | None,
    settings: dict[str, AttrValue],
) -> list[Application]:
    """The rules to apply, from flags or from a script of lines `RULE[@SITE] name=value ...`."""
    from archir.api import Application
    from archir.applying import named_applications
    from archir.rewrite.library import split_site

    found = named_applications(network, rules, at, settings)
    if script is not None:
        for number, line in enumerate(read_source(script).text.splitlines(), 1):
            words = line.split("#")[0].split()
            if words:
                name, site = split_site(words[0])
                arguments = parse_settings(tuple(words[1:]), f"{script}:{number}:")
                found.append(Application(name, site or at, arguments))
    if not found:
        raise error("A609", "no rule is named", hint="--rule RULE, or --script FILE")
    return found


def calibration_of(
    network: Network, name: str, seed: int, *, download: bool, data_seed: int = 0
) -> Calibration:
    """Training images of a data set, as statistics are measured on them."""
    from archir.train.data import calibration_of as measured_on

    dataset = options.dataset(name, network.graph, download=download, seed=data_seed)
    return measured_on(network.graph, dataset, seed)


def rewrite(
    file: str,
    rule: tuple[str, ...],
    script: str | None,
    at: str | None,
    settings: tuple[str, ...],
    policy: str | None,
    sample: bool,
    seed: int,
    calibrate: str | None,
    data_seed: int,
    download: bool,
    refit: bool,
    with_optimizer: bool,
    max_params: int | None,
    max_macs: int | None,
    dry_run: bool,
    unproved: bool,
    approximate: bool,
    output: str | None,
    force: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
    rule_files: tuple[str, ...],
) -> Report:
    """Apply rules to a network: all of them, or nothing is written.

    Every use is checked exactly in GF(p) at its real size, then once more in floating point
    with the real weights. Without weights the text alone is rewritten. With --rule nat a policy
    of NAT chooses cheaper operations for the edges of the network's cells.
    """
    from archir.api import check_output
    from archir.api import rewrite as apply

    if refit and calibrate is None:
        raise error("A609", "--refit needs data to fit to", hint="--calibrate DATA")
    if refit and with_optimizer:
        raise error("A609", "--refit and --with-optimizer exclude each other: it makes new weights")
    if output is None and not dry_run:
        raise error("A609", "nothing says where to write", hint="-o OUTPUT, or --dry-run")
    others = {"--script": script, "--at": at, "--set": settings}
    by_policy = check_words(rule, policy, others, sample=sample)
    if output is not None and not dry_run:
        check_output(Path(output), force=force)
    network = options.network(file, param, weights=weights, init=init, rules=rule_files)
    data = None
    if calibrate is not None:
        data = calibration_of(network, calibrate, seed, download=download, data_seed=data_seed)
    limits: dict[str, int | None] = {"params": max_params, "macs": max_macs}
    cells: Chosen | None = None
    if by_policy and policy is not None:
        cells = chosen_by(network, policy, sample=sample, seed=seed)
        chosen = cells.uses
        limits = _no_dearer(network, limits)
    else:
        chosen = _applications(network, rule, script, at, parse_settings(settings, "--set"))
    state = _state(file, network) if with_optimizer else None
    fits: tuple[Recovery, ...] = ()
    moved: Moved | None = None
    with options.spinner("rewriting") as report:
        how: dict[str, Any] = {
            "seed": seed,
            "limits": {name: most for name, most in limits.items() if most is not None},
            "unproved": unproved,
            "approximate": approximate,
            "report": report,
        }
        if refit and data is not None:
            from archir.refitting import rewrite_and_refit

            refitted = rewrite_and_refit(network, chosen, data, **how)
            done, fits = refitted.rewritten, refitted.fits
        elif state is not None:
            moved = state.apply(chosen, calibration=data, **how)
            done = moved.rewritten
        else:
            done = apply(network, chosen, calibration=data, **how)
        written = None
        if output is not None and not dry_run:
            report("writing")
            written = (moved.state if moved else done.network).save(output, force=force)
    diff = _diff(network.text, done.network.text, file, output or file)
    text = _text(done, fits, _optimizer_lines(moved), diff, written, dry_run)
    data_ = {**_data(done, fits, diff, written), **_optimizer_data(moved)}
    if cells is not None:
        data_["cells"], text = cells.cells, "\n".join([*cells.lines(), text])
    return Report(data_, text)


def _no_dearer(network: Network, limits: dict[str, int | None]) -> dict[str, int | None]:
    """Limits that no result passes that costs more than what it was made of."""
    cost = network.cost()
    own = {"params": cost.params, "macs": cost.macs}
    return {name: min(own[name], own[name] if m is None else m) for name, m in limits.items()}


def _state(file: str, network: Network) -> State:
    from archir.train.state import State

    return State.load(file, network)


def _optimizer_data(moved: Moved | None) -> dict[str, Any]:
    if moved is None:
        return {}
    step = moved.state.network.certificate.steps[-1]
    fates = {path: fate.facts() for path, fate in moved.fates.items()}
    held = {"kind": moved.state.optimizer.kind, "parameters": fates}
    return {"optimizer": {**held, **{k: step.facts["optimizer"][k] for k in ("before", "after")}}}


def _optimizer_lines(moved: Moved | None) -> list[str]:
    """One line on the optimizer's state, and one for each reason why some of it starts at zero."""
    if moved is None:
        return []
    fates = moved.fates.values()
    count = Counter(fate.what for fate in fates)
    found = f"{count['mapped']} parameters mapped, {count['kept']} kept"
    found += f", {count['zero']} start at zero" if count["zero"] else ""
    reasons = Counter(fate.reason for fate in fates if fate.what == "zero" and fate.reason != "new")
    lines = [f"  {n} of these: {reason}" for reason, n in reasons.items()]
    return [f"optimizer state ({moved.state.optimizer.kind}): {found}", *lines]


def _diff(a: str, b: str, old: str, new: str) -> list[str]:
    return list(difflib.unified_diff(a.splitlines(), b.splitlines(), old, new, lineterm="", n=1))


def _changed(diff: list[str]) -> int:
    return sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in diff)


def _data(
    done: Rewritten, fits: Sequence[Recovery], diff: list[str], written: Path | None
) -> dict[str, Any]:
    from dataclasses import asdict

    uses = []
    for use in done.uses:
        facts = use.facts()
        del facts["rule_text"], facts["measured"]
        facts["exact"] = {
            c.mode: {**facts["exact"][c.mode], "seconds": round(c.seconds, 4)} for c in use.checks
        }
        uses.append(facts)
    return {
        "output": None if written is None else str(written),
        "uses": uses,
        "equal": all(c.equal for use in done.uses for c in use.checks),
        "drift": None if done.drift is None else asdict(done.drift),
        "weights": done.network.weights is not None,
        "params": [done.before.params, done.after.params],
        "macs": [done.before.macs, done.after.macs],
        "diff": diff,
        "changed_lines": _changed(diff),
        "refit": [{**asdict(fit), "recovered": fit.recovered} for fit in fits],
    }


def _text(
    done: Rewritten,
    fits: Sequence[Recovery],
    optimizer: list[str],
    diff: list[str],
    written: Path | None,
    dry_run: bool,
) -> str:
    from archir.applying import setting

    lines = []
    for use in done.uses:
        kind = (use.verdict or {}).get("kind", "no verdict")
        modes = ", ".join(c.mode for c in use.checks)
        settings = " ".join(f"{k}={setting(v)}" for k, v in use.plan.arguments.items())
        lines.append(f"{use.plan.rule.name}@{use.plan.site} {settings}".rstrip())
        checked = f"equal in {use.checks[0].field} in {modes}" if use.checks else "shape only"
        lines.append(f"  rule {kind}; this use {checked}")
        if use.read:
            lines.append(
                f"  what goes is read: {use.read:.1%} of these weights (by norm), "
                "so the function changes by the drift below"
            )
        for apart in use.assumed:
            far = (
                "so it is" if apart.holds else f"{apart.path} is {apart.value:.3g} of its norm away"
            )
            lines.append(f"  assumes {apart.text}: {far}")
        if use.plan.assumed and not use.assumed:
            said = ", ".join(a.text for a in use.plan.assumed)
            lines.append(f"  assumes {said}: there are no weights to tell")
        lines += [f"  not claimed in {mode}: {why}" for mode, why in use.skipped.items()]
        if use.calibration:
            lines.append(
                f"  statistics of {use.calibration['count']} images of {use.calibration['data']}"
            )
    lines += [f"  {fit.text()}" for fit in fits]
    if done.drift is not None:
        lines.append(
            f"drift max|a-b|/max|a| = {done.drift.value:.1e} ({done.drift.engine}, float32)"
        )
    elif done.network.weights is None:
        lines.append("no weights: the text alone was rewritten")
    lines.append(
        f"parameters {done.before.params:,} -> {done.after.params:,}, "
        f"MACs {human(done.before.macs)} -> {human(done.after.macs)}, "
        f"{_changed(diff)} lines changed"
    )
    lines += optimizer
    lines += diff if dry_run else []
    if written is not None:
        also = " with weights and certificate" if done.network.weights is not None else ""
        lines.append(f"wrote {written}{also}")
    return "\n".join(lines)


command = make(
    "rewrite",
    options.file,
    click.option(
        "--rule",
        multiple=True,
        metavar="RULE[@SITE]",
        help="May be given several times; FILE.rule[:RULE] is a rule of a file.",
    ),
    click.option(
        "--script", type=click.Path(dir_okay=False), help="Lines of RULE[@SITE] name=value."
    ),
    click.option(
        "--at", metavar="SITE", help="A path, a glob, `all`, `random`. See `archir rules FILE`."
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="A rule's parameter; RULE.NAME=VALUE where there are several rules.",
    ),
    click.option(
        "--policy",
        type=click.Path(dir_okay=False),
        help="With --rule nat: the policy that chooses, of `archir search --strategy nat`.",
    ),
    click.option(
        "--sample",
        is_flag=True,
        help="Draw from the policy, by --seed; else its most likely choices are taken.",
    ),
    options.seed,
    click.option("--calibrate", metavar="DATA", help="Measure statistics on this data."),
    options.data_seed,
    options.download,
    click.option(
        "--refit",
        is_flag=True,
        help="Fit the last layer of each replacement to that data, in closed form.",
    ),
    click.option(
        "--with-optimizer",
        is_flag=True,
        help="Move the optimizer's state, FILE.optim.safetensors, along with the weights.",
    ),
    click.option("--max-params", type=int, help="Refuse a result with more parameters."),
    click.option("--max-macs", type=int, help="Refuse a result with more MACs."),
    click.option("--dry-run", is_flag=True, help="Check everything, show the diff, write nothing."),
    click.option("--unproved", is_flag=True, help="Run rules that have no verdict."),
    click.option(
        "--approximate",
        is_flag=True,
        help="Run rules where the weights are not as they assume.",
    ),
    click.option("-o", "--output", type=click.Path(dir_okay=False)),
    options.force,
    options.params,
    options.weights,
    options.init,
    options.rule_files,
    example="archir rewrite net.arch --rule deepen --at stem.relu -o deeper.arch",
)(rewrite)
