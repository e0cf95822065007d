"""``archir weights``: initial weights, and those of other programs' checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import ArchirError, Diagnostic

if TYPE_CHECKING:
    from archir.api import Network
    from archir.loading import Loading

SHOWN = 12
"""How many names of one kind the text of a report lists; --json has all."""


def init(
    file: str, param: tuple[str, ...], seed: int, random_statistics: bool, force: bool
) -> Report:
    """Write initial weights beside a network, and the certificate that says so.

    With --random-statistics the vectors of batch norms are drawn far from 0 and 1, so that a
    trial cannot pass by forgetting them. Constants, which no seed gives, are kept from the weights
    that stand beside the network.
    """
    from archir.api import certificate_path, load, weights_path
    from archir.files import check_target, writing_all
    from archir.weights.init import constants_of
    from archir.weights.store import load_weights, save_weights

    target = Path(file)
    files = (weights_path(target), certificate_path(target))
    for path in files:
        check_target(path, force=force)
    chosen = options.given_params(param) or options.certified_params(target)
    found = load(target, params=chosen, ignore_weights=True)
    beside = weights_path(target)
    constants = load_weights(beside) if constants_of(found.graph) and beside.is_file() else {}
    held = replace(found, weights=constants)
    made = held.init(seed, random_statistics=random_statistics)
    assert made.weights is not None
    with writing_all(files, force=force) as (tensors, certificate):
        save_weights(tensors, dict(made.weights), {})
        certificate.write_text(made.certificate.to_json(), encoding="utf-8")
    count = sum(a.size for a in made.weights.values())
    digest = made.certificate.steps[-1].after.weights
    data = {"file": str(weights_path(target)), "seed": seed, "numbers": count, "weights": digest}
    return Report(data, f"wrote {weights_path(target)}: {count:,} numbers, seed {seed}")


def load(
    file: str,
    checkpoint: str,
    output: str | None,
    entry: str | None,
    map_: tuple[str, ...],
    map_file: tuple[str, ...],
    match: str,
    partial: bool,
    ignore: tuple[str, ...],
    replace_head: bool,
    fresh: tuple[str, ...],
    interpolate: tuple[str, ...],
    seed: int,
    force: bool,
    param: tuple[str, ...],
) -> Report:
    """Take the weights of another program's checkpoint into a network.

    The checkpoint is a safetensors file or a file of torch.save (read with weights_only: no code
    of it is run). Keys are matched as they are, then without the prefix that fits most of them
    (`module.`, `_orig_mod.`, ...); what is done is said. Every parameter must be found, in its
    shape, and every tensor must have a place; floats of another precision are cast. Without -o
    the weights and the certificate are put beside FILE.

    A network with another head or input: `--param classes=10 --replace-head` draws a new head,
    `--param size=384 --interpolate GLOB` resamples a table of positions.
    """
    from archir.api import certificate_path, check_output, weights_path
    from archir.files import check_target
    from archir.loading import fit, not_finite
    from archir.weights.fitting import Choice
    from archir.weights.keys import read_map, rename

    target = Path(file) if output is None else check_output(Path(output), force=force)
    if output is None:
        for path in (weights_path(target), certificate_path(target)):
            check_target(path, force=force)
    renames = [rename(text) for text in map_]
    renames += [line for path in map_file for line in read_map(Path(path))]
    choice = Choice(
        entry,
        tuple(renames),
        cast("Literal['name', 'shape']", match),
        partial,
        ignore,
        seed,
        replace_head,
        fresh,
        interpolate,
    )
    network = _network(Path(file), param)
    loading = fit(network, Path(checkpoint), choice)
    data = {"file": str(target), **loading.facts(), **_misfits(loading)}
    if not loading.fitting.fits:
        return _refusal(loading, data)
    made = loading.apply(_constants(network, loading, Path(file)))
    assert made.weights is not None
    _write(made, target, force=force, beside=output is None)
    odd = not_finite(made.weights)
    data |= {"weights": made.certificate.steps[-1].after.weights, "not_finite": odd}
    lines = _lines(loading)
    if odd:
        lines.append(f"values that are no finite numbers in {_listed(odd)}")
    held = len(made.weights)
    head = f"loaded {len(loading.fitting.pairs)} of {held} tensors of {network.graph.name}"
    text = "\n  ".join([f"{head} from {_source(loading)}", *lines])
    return Report(data, f"{text}\nwrote {target if output else weights_path(target)}")


def _network(file: Path, param: Sequence[str]) -> Network:
    """The network; where the weights beside it do not fit it any more, without them."""
    from archir.api import load as load_network

    given = options.given_params(param)
    try:
        return load_network(file, params=given)
    except ArchirError as failure:
        if not {d.code for d in failure.diagnostics} <= {"A611", "A612"}:
            raise
    chosen = options.certified_params(file) if given is None else given
    return load_network(file, params=chosen, ignore_weights=True)


def _constants(network: Network, loading: Loading, file: Path) -> Mapping[str, Any]:
    """Where the tensors are that no checkpoint holds: in the weights beside the network."""
    from archir.api import weights_path
    from archir.weights.store import load_weights

    if network.weights is not None or not loading.fitting.kept:
        return network.weights or {}
    beside = weights_path(file)
    return load_weights(beside) if beside.is_file() else {}


def _write(made: Network, target: Path, *, force: bool, beside: bool) -> None:
    """Put a network in place; ``beside`` its own text, which stays as it is."""
    from archir.api import certificate_path, weights_path
    from archir.files import writing_all
    from archir.proof.lineage import folder_of
    from archir.weights.store import save_weights

    if not beside:
        made.save(target, force=force)
        return
    assert made.weights is not None
    made.lineage.save(made.certificate, folder_of(target))
    files = (weights_path(target), certificate_path(target))
    with writing_all(files, force=force) as (tensors, certificate):
        save_weights(tensors, dict(made.weights), {})
        certificate.write_text(made.certificate.to_json(), encoding="utf-8")


def _refusal(loading: Loading, data: Mapping[str, Any]) -> Report:
    """The report on a checkpoint that does not fit."""
    fitting, name = loading.fitting, loading.checkpoint.path.name
    total = len(loading.network.graph.parameters)
    counts = [
        f"{len(found)} {what}"
        for found, what in (
            (fitting.missing, "missing"),
            (fitting.wrong_shape, "of another shape"),
            (fitting.wrong_dtype, "of another element type"),
            (fitting.unexpected, "unexpected"),
        )
        if found
    ]
    what = ", ".join(counts) or "it has no tensor of the network"
    problem = Diagnostic("A634", f"{name} does not fit {loading.network.graph.name}: {what}")
    lines = []
    for path, near in _some(fitting.missing.items()):
        type_ = loading.network.graph.parameters[path].type
        lines.append(f"missing  {path}: {type_}" + (f"; did you mean `{near}`?" if near else ""))
    lines += _more(fitting.missing)
    for kind, found in (("shape", fitting.wrong_shape), ("type", fitting.wrong_dtype)):
        for wrong in _some(found):
            key = "" if wrong.key == wrong.path else f" (its {wrong.key})"
            lines.append(
                f"{kind:<7}  {wrong.path}: network {wrong.network}, "
                f"checkpoint {wrong.checkpoint}{key}"
            )
        lines += _more(found)
    hints = list(dict.fromkeys(wrong.hint for wrong in fitting.wrong_shape if wrong.hint))[:3]
    if fitting.missing:
        hints.append("--map 'REGEX=REPLACEMENT' renames keys; --partial draws what is missing")
    elif fitting.unexpected:
        hints.append(
            "a network of the same kind and another size? --param sets it; --ignore GLOB leaves "
            "tensors out"
        )
    if fitting.offer:
        hints.append(
            f"--match shape pairs {fitting.offer} of them in order of equal shapes, and lists them"
        )
    text = "\n  ".join(
        [
            f"{len(fitting.pairs)} of {total} tensors are found and fit",
            *lines,
            *_lines(loading),
        ]
    )
    helps = "".join(f"\n  = help: {hint}" for hint in hints)
    return Report(data, f"{text}{helps}\nnothing was written", 1, (problem,))


def _misfits(loading: Loading) -> dict[str, Any]:
    from dataclasses import asdict

    fitting = loading.fitting
    return {
        "wrong_shape": [asdict(wrong) for wrong in fitting.wrong_shape],
        "wrong_dtype": [asdict(wrong) for wrong in fitting.wrong_dtype],
        "match_shape_would_pair": fitting.offer,
        "other_entries": list(loading.others),
    }


def _lines(loading: Loading) -> list[str]:
    """What was done to make the two sides meet, a line each."""
    fitting, choice = loading.fitting, loading.choice
    lines = []
    if loading.entry:
        others = [place or "the file itself" for place in loading.others]
        aside = f" (beside it, with no key of the network: {_listed(others)})"
        lines.append(f"state dict: `{loading.entry}`" + (aside if loading.others else ""))
    for line, count in zip(choice.renames, fitting.counts, strict=True):
        lines.append(f"map {line}: {count} keys")
    matching = fitting.matching
    if matching.removed:
        lines.append(f"prefix `{matching.removed}` taken from the keys")
    if matching.added:
        lines.append(f"prefix `{matching.added}` put before the keys")
    if matching.rivals and matching.pairs:
        lines.append(f"prefixes that fit equally well, none taken: {_listed(matching.rivals)}")
    lines += [f"by order: {path} <- {key}" for path, key in fitting.by_order.items()]
    lines += [f"cast {how}: {_listed(paths)}" for how, paths in fitting.cast.items()]
    lines += [f"resampled: {path}, {grid}" for path, grid in fitting.interpolated.items()]
    for found, what in (
        (fitting.zeroed, "num_batches_tracked, not in the checkpoint (an old one), is 0"),
        (fitting.kept, "constants, kept from the network's own weights"),
        (fitting.drawn, f"drawn anew with seed {choice.seed}"),
        (fitting.initialised, f"not in the checkpoint, drawn with seed {choice.seed}"),
        (fitting.unexpected, "in the checkpoint and not in the network"),
        (fitting.ignored, "in the checkpoint and not in the network, left out"),
    ):
        if found:
            lines.append(f"{what}: {_listed(found)}")
    return lines


def _source(loading: Loading) -> str:
    held = loading.checkpoint
    return f"{held.path.name} ({held.format}, {held.bytes:,} bytes, sha256 {held.sha256[:12]}...)"


def _some(found: Iterable[Any]) -> list[Any]:
    return list(found)[:SHOWN]


def _more(found: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    return [f"... and {len(found) - SHOWN} more (--json has all)"] if len(found) > SHOWN else []


def _listed(names: Sequence[str]) -> str:
    """The number of names, and the first of them."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} ({', '.join(names[:4])}{more})"


@click.group("weights")
def command() -> None:
    """Make weights for a network, or take them from a checkpoint."""


command.add_command(
    make(
        "init",
        options.file,
        options.params,
        options.seed,
        click.option(
            "--random-statistics", is_flag=True, help="Batch-norm vectors far from 0 and 1."
        ),
        options.force,
        example="archir weights init net.arch --seed 1",
    )(init)
)
command.add_command(
    make(
        "load",
        options.file,
        click.option(
            "--from",
            "checkpoint",
            required=True,
            type=click.Path(),
            metavar="CHECKPOINT",
            help="A safetensors file, or one of torch.save (.pt, .pth, .bin, .tar).",
        ),
        click.option(
            "-o", "--output", type=click.Path(dir_okay=False), help="A network's file to write."
        ),
        click.option("--entry", metavar="NAME", help="Which state dict of several: ema, model."),
        click.option(
            "--map",
            "map_",
            multiple=True,
            metavar="REGEX=REPLACEMENT",
            help="Replace what is found in the checkpoint's keys; several act in order.",
        ),
        click.option(
            "--map-file",
            multiple=True,
            type=click.Path(dir_okay=False),
            help="Such lines in a text file, or a JSON object.",
        ),
        click.option(
            "--match",
            type=click.Choice(["name", "shape"]),
            default="name",
            show_default=True,
            help="shape: pair what names do not in order of equal shapes, and list the pairs.",
        ),
        click.option(
            "--partial",
            is_flag=True,
            help="Draw what the checkpoint lacks, leave out what the network lacks.",
        ),
        click.option(
            "--ignore", multiple=True, metavar="GLOB", help="Leave out these keys of CHECKPOINT."
        ),
        click.option("--replace-head", is_flag=True, help="Draw the layers at the output anew."),
        click.option("--fresh", multiple=True, metavar="GLOB", help="Draw these parameters anew."),
        click.option(
            "--interpolate",
            multiple=True,
            metavar="GLOB",
            help="Resample these tables of positions for another input size.",
        ),
        click.option(
            "--init",
            "seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            metavar="SEED",
            help="For what is drawn.",
        ),
        options.force,
        options.params,
        example="archir weights load resnet18.arch --from resnet18.pth -o trained.arch",
    )(load)
)
