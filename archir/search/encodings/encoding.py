"""What a search space of genomes is: integers within bounds, and the program that they stand for.

Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np

from archir.api import Network, library
from archir.diag import Source, error
from archir.lang import load
from archir.ops import installed_ops
from archir.proof.certificate import Certificate
from archir.proof.lineage import Lineage
from archir.rewrite.library import Library

ENCODINGS = ("nsga_micro", "nsga_macro", "nasbench201", "nat_cells")
"""Each is a module of this package with a function ``encoding`` of its settings."""

LARGEST = 10_000
"""Of what says how wide and how deep networks are."""


@dataclass(frozen=True)
class Encoding:
    """A space of networks as tuples of integers."""

    name: str
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    """Of each integer, inclusive."""
    make: Callable[..., str]
    """``make(genome, classes=, shape=, **settings)``: the text of a genome's network."""
    canonical: Callable[[Sequence[int]], Hashable]
    """Equal for genomes of equal networks, as far as that is cheap to tell."""
    settings: Mapping[str, int]
    """What else ``make`` takes: how wide and how deep networks are."""

    def program(self, genome: Sequence[int], *, classes: int, shape: Sequence[int]) -> str:
        """The text of a genome's network.

        Raises:
            ArchirError: A742, it is no genome of this space; A743, images of this shape make no
                network.
        """
        if type(classes) is not int or classes < 1:
            raise error("A743", f"{classes} is no number of classes")
        check_shape(shape)
        return self.make(genome, classes=classes, shape=shape, **self.settings)

    def random(self, generator: np.random.Generator) -> tuple[int, ...]:
        """A genome, each integer uniform in its range."""
        highest = np.asarray(self.highest) + 1
        return tuple(int(gene) for gene in generator.integers(self.lowest, highest))

    def origin(
        self, genome: Sequence[int], *, classes: int, shape: Sequence[int]
    ) -> dict[str, Any]:
        """How a network was made, as JSON values: :func:`remade` makes it again from that."""
        return {
            "kind": "genome",
            "encoding": self.name,
            "genome": [int(gene) for gene in genome],
            "settings": {**self.settings, "classes": classes, "shape": list(shape)},
        }


def encoding(name: str, **settings: int) -> Encoding:
    """A space by its name.

    Args:
        name: One of :data:`ENCODINGS`.
        **settings: How wide and how deep its networks are.

    Raises:
        ArchirError: A741, there is none of this name; A743, the settings make no network.
    """
    if name not in ENCODINGS:
        raise error("A741", f"there is no encoding `{name}`", hint=f"{', '.join(ENCODINGS)}")
    make = import_module(f"archir.search.encodings.{name}").encoding
    known = signature(make).parameters
    for entry, value in settings.items():
        if entry not in known or type(value) is not int or not 1 <= value <= LARGEST:
            raise error(
                "A743",
                f"{entry} = {value} is no setting of {name}",
                hint=f"{' and '.join(known)} are whole numbers from 1 to {LARGEST:,}",
            )
    found: Encoding = make(**settings)
    return found


def remade(origin: Mapping[str, Any]) -> str:
    """The text of a member from what the journal says of its origin.

    Raises:
        ArchirError: A741, A742 or A743, it says nothing that makes a network.
    """
    settings = dict(origin["settings"])
    facts = {"classes": settings.pop("classes"), "shape": settings.pop("shape")}
    return encoding(origin["encoding"], **settings).program(origin["genome"], **facts)


def network_of(text: str, name: str = "genome", rules: Library | None = None) -> Network:
    """A network without weights from its text.

    Args:
        text: The program.
        name: What errors call it.
        rules: The rule library; the installed one where it is None.

    Raises:
        ArchirError: what is wrong with the text.
    """
    ops = installed_ops()
    program = load(Source(name, text), ops)
    return Network(program, None, Certificate(), Lineage(), ops, rules or _installed_rules())


@lru_cache(maxsize=1)
def _installed_rules() -> Library:
    """Read once: that takes longer than a network."""
    return library(installed_ops())


def check_genome(
    genome: Sequence[int], lowest: Sequence[int], highest: Sequence[int], name: str
) -> None:
    """Make sure that integers are a genome of a space.

    Raises:
        ArchirError: A742.
    """
    if len(genome) != len(lowest):
        raise error("A742", f"a genome of {name} has {len(lowest)} integers, not {len(genome)}")
    for place, (gene, low, high) in enumerate(zip(genome, lowest, highest, strict=True)):
        if not low <= gene <= high:
            raise error(
                "A742", f"integer {place} of a genome of {name} is {gene}, not {low}-{high}"
            )


def check_shape(shape: Any) -> None:
    """Make sure that this is the shape of an image.

    Raises:
        ArchirError: A743.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3 or min(shape) < 1:
        raise error("A743", f"encodings make networks of images [C, H, W], not of {shape}")


def in_short(genome: Sequence[int]) -> str:
    """A genome as its digits."""
    return " ".join(str(int(gene)) for gene in genome)
