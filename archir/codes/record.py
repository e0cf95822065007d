"""What is said of a diagnostic code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A code's title and its explanation, in the user's terms."""

    title: str
    explanation: str
