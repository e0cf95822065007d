"""What the blocks of a printed network are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from archir.lang.sharing import Kind
from archir.lang.tree import is_name

MAX_WORD = 16
"""A longer word tells no variants of a block apart."""


def titles(
    kinds: Sequence[Kind], known: Mapping[str, str], reserved: AbstractSet[str]
) -> dict[int, str]:
    """A name for each kind of regions, by its identity; not all different yet.

    A kind is called as its first instance is, else by the last word of that one's path. Of
    several with one name the most frequent one has it; another takes on the first word of its
    own that the frequent one lacks (``basic_block_downsample``).

    Args:
        kinds: The kinds.
        known: What scopes are instances of, by path.
        reserved: Names that no block may have.
    """
    by_name: dict[str, list[Kind]] = {}
    for kind in kinds:
        name = _name(kind, known)
        by_name.setdefault(f"{name}_block" if name in reserved else name, []).append(kind)
    found: dict[int, str] = {}
    for name, alike in by_name.items():
        common = max(alike, key=lambda kind: len(kind.regions))
        usual = _words(common)
        for kind in alike:
            own = [word for word in _words(kind) if word not in usual]
            own = [word for word in own if word not in reserved and not word[-1].isdigit()]
            plain = kind is common or not own
            found[id(kind)] = name if plain else f"{name}_{own[0]}"
    return found


def _name(kind: Kind, known: Mapping[str, str]) -> str:
    for region in kind.regions:
        if region.prefix in known:
            return known[region.prefix]
    path = kind.regions[0].prefix
    while path:
        path, _, segment = path.rpartition(".")
        word = segment.rstrip("0123456789").rstrip("_")
        if is_name(word):
            return word
        if word and path in known:
            return f"{known[path]}_body"
    return "unit"


def _words(kind: Kind) -> list[str]:
    """The words that paths within a region begin with."""
    region = kind.regions[0]
    cut = len(region.prefix) + 1
    found = dict.fromkeys(
        node.name[cut:].partition(".")[0] for node in region.nodes if node.op != "parameter"
    )
    return [word for word in found if is_name(word) and len(word) <= MAX_WORD]
