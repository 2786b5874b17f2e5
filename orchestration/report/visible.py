"""Makes text from models, environments and files safe to show: invisible characters visible, markup escaped."""

import re
from html import escape

# Terminal escapes, marks that reorder text and lone surrogates: a response must not redraw the cell beside it.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Replaces every character a reader could not see by the replacement character. Line breaks and tabs stay."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escaped(text: str) -> str:
    """Returns the text as the content of an element or attribute, without invisible characters."""
    return escape(visible(text))
