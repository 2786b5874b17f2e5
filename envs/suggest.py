"""Suggests the known name nearest to a mistyped one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.4) -> str | None:
    """Returns the known name most like `word`, or None when none is similar enough.

    cutoff: least similarity in [0, 1], as in `difflib.get_close_matches`.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """Returns "did you mean 'x'? " (with the trailing space) for the nearest known name, or "" when none is similar enough."""
    name = nearest(word, known, cutoff)
    return f"did you mean '{name}'? " if name else ""
