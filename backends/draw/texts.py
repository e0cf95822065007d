"""What stands in a box and over a cluster, in lines of bounded length, and how wide it is."""

from __future__ import annotations

from .picture import TIMES, Box, Cluster

LONGEST = 44
"""Characters of a line; what is longer is cut."""
WRAP = 42
"""A line of parts is broken before it grows longer than this."""
MOST_LINES = 3
EMS = {0.37: "ijlI.,:;'| /-", 0.42: "frt!()[]", 0.84: "#&+<=>^~", 1.0: "mwMW@%"}
"""The widths of characters, in font sizes, where they are not those of most."""
NARROW_OR_WIDE = {char: width for width, chars in EMS.items() for char in chars}
DOTS = "..."


def text_width(text: str, size: float) -> float:
    """How wide a text is at most, in the sans-serif fonts that browsers have."""
    return size * sum(map(_ems, text))


def _ems(char: str) -> float:
    if char in NARROW_OR_WIDE:
        return NARROW_OR_WIDE[char]
    if not char.isascii():
        return 1.0
    return 0.79 if char.isupper() else 0.64


def shorten(text: str, most: int = LONGEST) -> str:
    """A text with its middle left out where it is too long."""
    if len(text) <= most:
        return text
    half = (most - len(DOTS)) // 2
    return text[:half] + DOTS + text[-half:]


def title_lines(box: Box) -> list[str]:
    """The parts of a box in lines: ``conv 3x3, 64 /2 + bn + relu``; a small end has none."""
    lines = [shorten(part) for part in box.parts[:1]]
    for part in box.parts[1:]:
        text = f"+ {shorten(part)}"
        if len(lines[-1]) + len(text) < WRAP:
            lines[-1] += f" {text}"
        elif len(lines) < MOST_LINES:
            lines.append(text)
        else:
            lines[-1] += f" + {DOTS}"
            break
    return lines


def last_line(box: Box) -> str:
    """A box's name and the shape of its result."""
    return f"{shorten(box.name, 30 if box.parts else LONGEST)} : {shorten(box.shape)}"


def cluster_label(cluster: Cluster) -> str:
    """A cluster's name, and how many it stands for."""
    times = f"  {TIMES} {cluster.count}" if cluster.count > 1 else ""
    kind = f" : {shorten(cluster.kind)}" if cluster.kind else ""
    return shorten(cluster.name) + kind + times
