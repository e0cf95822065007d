"""What zeros cost after NAT's rules, and after the clean-ups: the table of docs/replacements.md.

    python benchmarks/nat_zeros.py

Each family's cells, 3 of them with 8 channels, for images of 8 x 8; all legal operations of an edge
are equally likely; means over three seeds.
"""

from __future__ import annotations

import numpy as np

from archir.ops.cost import cost
from archir.search.cells import ACTIONS, FAMILIES, targets
from archir.search.encodings import nat_cells
from archir.search.encodings.encoding import network_of
from archir.search.reading_cells import cleaning, planned, read_cells, rewriting, settled

SEEDS = range(3)


def main() -> None:
    """Print the table."""
    print("| cells | transitions | parameters | rules alone | cleaned | MACs | ... | ... |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in FAMILIES:
        network = network_of(nat_cells.family(name, channels=8, layers=3, shape=(3, 8, 8)))
        found = read_cells(network.graph)
        for transitions in ACTIONS:
            costs = []
            for seed in SEEDS:
                rng = np.random.default_rng(seed)
                ops = [
                    [
                        str(rng.choice(targets(transitions, e.op, strided=e.strided)))
                        for e in f.cell.edges
                    ]
                    for f in found
                ]
                alone = cost(planned(network, rewriting(found, ops)), network.ops)
                taken = [settled(f.cell, names) for f, names in zip(found, ops, strict=True)]
                uses = rewriting(found, taken)
                clean = cost(planned(network, [*uses, *cleaning(network, uses)]), network.ops)
                three = (network.cost(), alone, clean)
                costs.append([*(c.params for c in three), *(c.macs for c in three)])
            means = " | ".join(f"{n:,.0f}" for n in np.mean(costs, axis=0))
            print(f"| {name} | {transitions} | {means} |")


if __name__ == "__main__":
    main()
