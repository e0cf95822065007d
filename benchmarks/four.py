"""The four searches beside each other and beside random search, within the same CPU seconds.

The part *same* of `benchmarks/search.py`, on the digits. What each search does is fixed by settings
that were sized on seed 100, never by a clock, so that runs repeat to the byte; what they took is
measured.

NASH, EAS and their random counterparts start from one network with the same weights. The random
counterparts are: *walk*, one child of NASH's moves a step, taken whatever its score; *best of n*,
children of the start network by as many of NASH's moves, the best of which is trained on; EAS with
a policy that draws uniformly; random genomes in the place of RWE's evolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Record, Run, head, interval, mean_difference, row
from measure import save_svg
from scipy import stats

PARTS = {"same": "digits"}
LIMITS = ("--max-macs", "2000000", "--device", "cpu", "--threads", "1", "--workers", "1")
PLAIN = "examples/eas_digits.arch --init {seed}"
NASH = f"{PLAIN} --preset small --set n_steps=8"
EAS = (
    f"{PLAIN} --preset small --set nets=60 --set nets_second=30 --set epoch_start=5"
    " --set epoch_child=6 --set epoch_longer=30"
)
NAT = "benchmarks/nat_digits.arch --init {seed} --preset small --set attempts=1 --set candidates=1"
"""With what the preset had when these runs were taken: it has three candidates now."""


@dataclass(frozen=True)
class Search:
    """One row of the comparison."""

    title: str
    words: str
    """Behind `archir search`; those of the data, the seed and the limits follow."""
    family: str
    """Whose colour it has: its own, or that of the search whose random counterpart it is."""
    marker: str


SEARCHES = {
    "nash": Search("NASH", f"{NASH} --set n_neigh=8 --strategy nash", "nash", "o"),
    "walk": Search(
        "random walk by NASH's moves",
        f"{NASH} --set epoch_start=25 --set epoch_neigh=30 --set epoch_final=100 --strategy random",
        "nash",
        "x",
    ),
    "best_of": Search(
        "best of n by NASH's moves",
        f"{PLAIN} --preset small --set n_steps=1 --set n_neigh=90 --set n_nm=8"
        " --set epoch_final=62 --strategy nash",
        "nash",
        "o",
    ),
    "eas": Search("EAS", f"{EAS} --strategy eas", "eas", "s"),
    "eas_random": Search("EAS, random policy", f"{EAS} --strategy eas_random", "eas", "s"),
    "rwe": Search("RWE", "--preset small --set generations=3 --strategy rwe", "rwe", "^"),
    "rwe_random": Search(
        "RWE, random genomes",
        "--preset small --set generations=1 --set population=36 --strategy rwe",
        "rwe",
        "^",
    ),
    "nat": Search("NAT", f"{NAT} --strategy nat", "nat", "D"),
}
OWN = {
    "nash": ("best_of", "walk"),
    "eas": ("eas_random",),
    "rwe": ("rwe_random",),
    "nat": (),
}
"""The random counterparts of each search."""
COLOURS = {"nash": "#0072b2", "eas": "#d55e00", "rwe": "#009e73", "nat": "#cc79a7"}
ELSEWHERE = {"walk": "random"}
"""The names of the same searches on CIFAR-10, where they differ."""


def plan(part: str, seeds: int) -> list[Run]:
    """The searches of a part."""
    found = []
    for seed in range(seeds):
        for name, search in SEARCHES.items():
            words = search.words.format(seed=seed).split()
            more = ("--data", "digits", "--seed", str(seed), *LIMITS)
            found.append(Run(part, name, seed, (*words, *more)))
    return found


def held(records: Sequence[Record], part: str) -> dict[tuple[str, int], Record]:
    """The runs of a part, by search and seed."""
    return {(r["strategy"], r["seed"]): r for r in records if r["part"] == part}


def error(record: Record) -> float:
    """The share of test images told wrong by the last network."""
    return 1 - float(record["test"]["best"]["accuracy"])


def tables(records: Sequence[Record], part: str) -> list[str]:
    """What the searches of a part came to, each run of it, and the differences."""
    by = held(records, part)
    seeds = sorted({seed for _, seed in by})
    rows = {n: [by[n, s] for s in seeds] for n in SEARCHES if all((n, s) in by for s in seeds)}
    summary = head(
        *("search", "test error, %: mean of the seeds", "parameters: median (range)"),
        *("MACs: median (range)", "networks scored", "epochs behind the last", "CPU seconds"),
    )
    each = head("test error, %, and CPU seconds; seed", *map(str, seeds))
    for name, runs in rows.items():
        mean, half = interval([100 * error(r) for r in runs])
        summary.append(
            row(
                SEARCHES[name].title,
                f"{mean:.2f} ({max(0.0, mean - half):.2f} to {mean + half:.2f})",
                *(middle([r[what] for r in runs]) for what in ("params", "macs")),
                span([r["members"]["scored"] for r in runs]),
                span([r["epochs"] for r in runs]),
                span([round(r["cpu_seconds"]) for r in runs]),
            )
        )
        told = [f"{wrong(**r['test']['best'])}; {r['cpu_seconds']:.0f} s" for r in runs]
        each.append(row(SEARCHES[name].title, *told))
    other = head(
        "test accuracy of", "less that of", *("mean difference, points", "above : below", "p")
    )
    for name, counterparts in OWN.items():
        against = dict.fromkeys((*counterparts, "best_of"))
        for base in (b for b in against if name in rows and b in rows):
            pairs = [(error(b), error(a)) for a, b in zip(rows[name], rows[base], strict=True)]
            titles = (SEARCHES[name].title, SEARCHES[base].title)
            other.append(row(*titles, mean_difference(pairs)))
    return ["\n".join(lines) for lines in (summary, each, other)]


def wrong(correct: int, count: int, **_: float) -> str:
    """The share of images told wrong in per cent, with its exact interval."""
    low, high = stats.binomtest(count - correct, count).proportion_ci(method="exact")
    return f"{100 * (1 - correct / count):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def span(values: Sequence[int]) -> str:
    """The least and the most."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def middle(values: Sequence[int]) -> str:
    """The median, and the least and the most."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:,} ({span(values)})"


def draw(records: Sequence[Record], path: Path) -> None:
    """Test error against MACs and parameters: a column for each set of data, all runs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    plt.rcParams |= {"svg.hashsalt": "archir", "svg.fonttype": "none", "font.size": 9}
    parts = [part for part in (*PARTS, "cifar10") if held(records, part)]
    figure, axes = plt.subplots(
        2, len(parts), figsize=(1 + 3.5 * len(parts), 6.6), sharey="col", squeeze=False
    )
    for column, part in enumerate(parts):
        runs = held(records, part)
        seeds = 1 + max(seed for _, seed in runs)
        told = f"{PARTS[part]}: {seeds} seeds each" if part in PARTS else "CIFAR-10: one seed each"
        axes[0][column].set_title(told)
        for line, (what, label) in enumerate((("macs", "MACs"), ("params", "parameters"))):
            axis = axes[line][column]
            for name in SEARCHES:
                there = ELSEWHERE.get(name, name) if part == "cifar10" else name
                chosen = [r for (n, _), r in runs.items() if n == there]
                mark(axis, name, [(r[what], 100 * error(r)) for r in chosen])
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            if part not in PARTS:  # few points: whole decades, so that an axis has numbers
                shown = [r[what] for (n, _), r in runs.items() if n != "cycles"]
                low, high = math.log10(min(shown)), math.log10(max(shown))
                axis.set_xlim(10 ** math.floor(low), 10 ** math.ceil(high))
            axis.set_xlabel(f"{label} of the last network")
            axis.set_ylabel("test error, %")
            axis.grid(alpha=0.3)
        if part in PARTS:
            axes[0][column].set_ylim(bottom=-0.2)  # whole marks of networks without an error
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    save_svg(figure, path)
    plt.close(figure)


def mark(axis: Any, name: str, points: Sequence[tuple[float, float]]) -> None:
    """The runs of a search: filled marks; of its random counterparts, empty ones or crosses."""
    if not points:
        return
    search, colour = SEARCHES[name], COLOURS[SEARCHES[name].family]
    face: dict[str, Any] = {"markerfacecolor": colour if name == search.family else "none"}
    x, y = zip(*points, strict=True)
    style = {"marker": search.marker, "markersize": 6, "linestyle": "none", "color": colour}
    axis.plot(x, y, label=search.title, markeredgewidth=1.2, **style, **face)
