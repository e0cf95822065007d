"""``archir bench``: how long networks take, side by side."""

from __future__ import annotations

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import error


def bench(
    files: tuple[str, ...],
    batch: int,
    threads: int | None,
    repeats: int,
    warm_up: int,
    device: str,
    compiled: bool,
    param: tuple[str, ...],
    weights: str | None,
    init: int | None,
) -> Report:
    """Time networks side by side, in torch and in ONNX Runtime.

    Each runs in a process of its own, and they take turns, so that a busy machine is busy for
    all of them. Reported are the median seconds of a forward pass in eval mode with a 95 %
    confidence interval (order statistics), the ratio to the first file, and the largest memory
    of the process. Where the intervals overlap, it is a tie.
    """
    from archir.measure import Job, check_name, measure
    from archir.proof.pool import cores

    if (weights is not None or init is not None or param) and len(files) > 1:
        raise error("A609", "--weights, --init and --param are for one file")
    for file in files:
        check_name(file)
    count = threads or cores()
    given = options.given_params(param)
    jobs = [Job(f, batch, count, device, compiled, given, weights, init) for f in files]
    with options.progress("timing") as told:
        found = measure(jobs, repeats=repeats, warm_up=warm_up, progress=told)
    first = found[0]
    rows = []
    for each in found:
        low, high = each.interval
        ratio = each.median / first.median
        tie = " tie" if each is not first and each.ties(first) else ""
        rows.append(
            [
                each.path,
                each.engine,
                each.where,
                _seconds(each.median),
                f"{_seconds(low)} - {_seconds(high)}",
                f"{ratio:.3g}{tie}",
                f"{each.batch / each.median:,.1f}",
                "" if each.memory is None else options.memory(each.memory),
                each.note,
            ]
        )
    headers = ["file", "engine", "on", "median", "95 % interval", "ratio", "rows/s", "memory", ""]
    table = options.table(headers, rows, right=(3, 4, 5, 6, 7))
    said = f"batch {batch}, {count} thread{'s' * (count > 1)}, {repeats} samples each in turn"
    data = [
        {
            **each.to_json(),
            "ratio": each.median / first.median,
            "tie": each is not first and each.ties(first),
        }
        for each in found
    ]
    document = {"batch": batch, "threads": count, "repeats": repeats, "files": data}
    return Report(document, f"{said}\n{table}")


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


command = make(
    "bench",
    click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False)),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True),
    click.option("--threads", type=click.IntRange(1), help="[default: the machine's cores]"),
    click.option("--repeats", type=click.IntRange(6), default=30, show_default=True),
    click.option("--warm-up", type=click.IntRange(1), default=5, show_default=True),
    options.device,
    click.option("--compile", "compiled", is_flag=True, help="torch.compile the .arch files."),
    options.params,
    options.weights,
    options.init,
    example="archir bench net.arch net.onnx --threads 1",
)(bench)
