"""How a member came about, in words."""

from __future__ import annotations

from archir.applying import use_text
from archir.search.parts import Member

KINDS = {"start": "the start network", "parent": "its parent, trained"}


def made_by(member: Member) -> str:
    """How a member came about, in one line."""
    origin = member.origin
    kind = str(origin.get("kind", ""))
    uses = origin.get("uses")
    if uses:
        return ", ".join(use_text(u["rule"], u["at"], {}) for u in uses)
    if kind == "genome":
        return f"{origin.get('encoding', 'genome')} {' '.join(map(str, origin.get('genome', [])))}"
    return KINDS.get(kind, kind)
