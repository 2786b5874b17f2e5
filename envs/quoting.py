"""Shows values in error messages: enough to recognise them, however long they are."""

from __future__ import annotations

import reprlib

LIMIT = 120  # characters of one value

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LIMIT


def quoted(value: object) -> str:
    """Returns `repr(value)` without its middle where it is long: of a huge value little more than that is computed."""
    return shortened(_SHORT.repr(value))


def shortened(text: str, limit: int = LIMIT) -> str:
    """Returns the text, or its beginning and end where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    kept = limit - 5
    return f"{text[: kept * 2 // 3]} ... {text[len(text) - kept // 3 :]}"
