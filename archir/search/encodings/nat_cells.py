"""NAT's cells as programs, and the cells of NAT++ as a space of genomes.

Guo et al. 2019, "NAT: Neural Architecture Transformer" (arXiv 1910.14488); Guo et al. 2021, NAT++
(arXiv 2102.10301); the facts are those of the authors' code.

A network is a stack of two kinds of cells, see :mod:`archir.search.encodings.cell_stack`. Edges are
written as ``rewrites/nat.rule`` reads them: a null is ``null(x)``, a skip that halves the image is
two convolutions. A pooling has no batch norm behind it, as in DARTS' networks (NAT's shared weights
have one there).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from archir.diag import error
from archir.search.cells import FAMILIES, OPS, Architecture, Cell, Edge
from archir.search.encodings.cell_stack import StackedCell, check_settings, stack_text
from archir.search.encodings.encoding import Encoding, check_genome, in_short

GENES = OPS[:13]
"""The operations of genomes: NAT++'s. Those that NAONet alone has are in none."""

CHANNELS, LAYERS = 20, 8
"""Of the first cells, and how many cells: those of NAT's shared weights (the authors' code)."""

NODES = 4
"""In a cell beside its inputs, as in DARTS' cells; those of ENAS and NAONet have 5."""


def program(
    cells: Architecture,
    *,
    channels: int = CHANNELS,
    layers: int = LAYERS,
    classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
    name: str = "nat_cells",
    title: str = "# Cells of NAT (Guo et al. 2019).\n",
) -> str:
    """The text of a stack of cells.

    Args:
        cells: The normal cell and the reduction; edges halve the image where they leave an input
            of the reduction, and nowhere else.
        channels: Of the first cells; each reduction doubles them.
        layers: How many cells; those at a third and at two thirds reduce.
        classes: The default of the arch's parameter.
        shape: Of an image, ``[C, H, W]``.
        name: Of the arch.
        title: Its comment.

    Raises:
        ArchirError: A743, the settings make no network; A770, these are no such cells.
    """
    pair = _stacked("normal", cells.normal), _stacked("reduction", cells.reduction)
    facts = {"channels": channels, "layers": layers, "classes": classes}
    return stack_text(name, title, pair, shape=shape, **facts)


def family(
    name: str,
    *,
    channels: int = CHANNELS,
    layers: int = LAYERS,
    classes: int = 10,
    shape: Sequence[int] = (3, 32, 32),
) -> str:
    """The text of a network of the cells that NAT starts from.

    Args:
        name: One of :data:`archir.search.cells.FAMILIES`.
        channels: Of the first cells; each reduction doubles them.
        layers: How many cells; those at a third and at two thirds reduce.
        classes: The default of the arch's parameter.
        shape: Of an image, ``[C, H, W]``.

    Raises:
        ArchirError: A743, the settings make no network; A770, there is no such family.
    """
    if name not in FAMILIES:
        raise error("A770", f"there are no cells `{name}`", hint=f"{', '.join(FAMILIES)}")
    title = f"# A stack of the cells that NAT (Guo et al. 2019) has for {name}.\n"
    return program(
        FAMILIES[name],
        channels=channels,
        layers=layers,
        classes=classes,
        shape=shape,
        name=f"nat_{name}",
        title=title,
    )


def encoding(channels: int = CHANNELS, layers: int = LAYERS, nodes: int = NODES) -> Encoding:
    """The space as what NSGA-II searches.

    A genome has the normal cell, then the reduction. For each node that is no input: operation,
    input, operation, input (operations by their place in :data:`GENES`); then for each such node
    whether it leaves the cell. Where none does, it is those that no other node reads.

    Raises:
        ArchirError: A743, the settings make no network.
    """
    check_settings(channels, layers)
    if nodes > MOST_NODES:
        raise error("A743", f"a cell has at most {MOST_NODES} nodes, not {nodes}")
    ops = [high for b in range(nodes) for high in (len(GENES) - 1, b + 1) * 2]
    highest = (*ops, *[1] * nodes) * 2
    lowest = (0,) * len(highest)

    def made(
        genome: Sequence[int],
        *,
        channels: int,
        layers: int,
        nodes: int,
        classes: int = 10,
        shape: Sequence[int] = (3, 32, 32),
    ) -> str:
        check_genome(genome, lowest, highest, "nat_cells")
        half = len(genome) // 2
        title = (
            "# A network of NAT++'s cells (Guo et al. 2021). Its genome:\n"
            f"# {in_short(genome[:half])} | {in_short(genome[half:])}\n"
        )
        return program(
            architecture(genome),
            channels=channels,
            layers=layers,
            classes=classes,
            shape=shape,
            title=title,
        )

    settings = {"channels": channels, "layers": layers, "nodes": nodes}
    return Encoding("nat_cells", lowest, highest, made, canonical, settings)


MOST_NODES = 12
"""In a cell of a genome; more than any published one has."""


def architecture(genome: Sequence[int]) -> Architecture:
    """The cells of a genome."""
    half = len(genome) // 2
    return Architecture(_cell(genome[:half]), _cell(genome[half:], halves=True))


def genome_of(cells: Architecture) -> tuple[int, ...]:
    """The genome of cells.

    Raises:
        ArchirError: A770, they have operations or inputs that no genome has.
    """
    found: list[int] = []
    for cell in (cells.normal, cells.reduction):
        _stacked("reduction" if cell is cells.reduction else "normal", cell)
        for edge in cell.edges:
            if edge.op not in GENES:
                raise error("A770", f"{edge.op} is in no genome", hint=f"{', '.join(GENES)}")
            found += [GENES.index(edge.op), edge.source]
        found += [int(node in cell.output) for node in range(cell.inputs, cell.nodes)]
    return tuple(found)


def canonical(genome: Sequence[int]) -> Hashable:
    """Equal where the two operations of nodes are exchanged, or the outputs are said otherwise."""
    cells = architecture(genome)
    return tuple(
        (
            tuple(
                tuple(sorted((edge.op, edge.source) for edge in cell.edges[k : k + 2]))
                for k in range(0, len(cell.edges), 2)
            ),
            cell.output,
        )
        for cell in (cells.normal, cells.reduction)
    )


def _cell(genes: Sequence[int], *, halves: bool = False) -> Cell:
    nodes = len(genes) // 5
    edges = tuple(
        Edge(GENES[genes[k]], int(genes[k + 1]), k // 4 + 2, strided=halves and genes[k + 1] < 2)
        for k in range(0, 4 * nodes, 2)
    )
    marked = tuple(node + 2 for node, bit in enumerate(genes[4 * nodes :]) if bit)
    read = {edge.source for edge in edges}
    loose = tuple(node for node in range(2, nodes + 2) if node not in read)
    return Cell(edges, marked or loose)


def _stacked(name: str, cell: Cell) -> StackedCell:
    """A cell as one of a stack.

    Raises:
        ArchirError: A770.
    """
    if (
        cell.inputs != 2
        or not cell.output
        or min(cell.output) < 2
        or max(cell.output) >= cell.nodes
    ):
        raise error("A770", f"the {name} cell has not two inputs, and nodes that leave it")
    for number, edge in enumerate(cell.edges):
        where = f"edge {number} of the {name} cell"
        if (
            edge.op not in OPS
            or edge.target != number // 2 + 2
            or not 0 <= edge.source < edge.target
        ):
            raise error("A770", f"{where}, {edge.op} from {edge.source}, is none of such cells")
        if edge.strided != (name == "reduction" and edge.source < 2):
            says = "halves" if edge.strided else "does not halve"
            raise error("A770", f"{where} {says} the image, unlike a {name} cell's")
    return StackedCell(name, tuple((e.op, e.source) for e in cell.edges), cell.output)
