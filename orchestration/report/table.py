"""Holds a table and writes it as Markdown, for the terminal (rich), and through `templates/table.html.j2` as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestration.report.visible import visible

if TYPE_CHECKING:
    import rich.table

_SPACES = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")
_PLUS_MINUS = " ± "


@dataclass(frozen=True, slots=True)
class Cell:
    """Holds the text of a cell; all other fields are for HTML alone.

    Cell("repo-r", mark="c1"), Cell("0.500 ± 0.012"), Cell("0.93", heat=56, framed=True), Cell("report", link="./a/report.html")
    """

    text: str
    mark: str | None = None  # CSS classes of a coloured dot before the text
    aside: str = ""  # small text after it
    heat: int | None = None  # percent of colour in the background
    framed: bool = False
    link: str = ""  # relative address

    @property
    def middle(self) -> str:
        """Returns the mean of "0.50 ± 0.01", with the unit of both; other texts whole."""
        middle, plus_minus, spread = self.text.partition(_PLUS_MINUS)
        return middle + ("\N{NO-BREAK SPACE}%" if plus_minus and spread.endswith("%") else "")

    @property
    def spread(self) -> str:
        """Returns the "± 0.01" of "0.50 ± 0.01"; empty text for other texts."""
        _, plus_minus, spread = self.text.partition(_PLUS_MINUS)
        return f"± {spread}" if plus_minus else ""


@dataclass(frozen=True, slots=True)
class Table:
    """Holds headings and rows of equal length; the first `labels` columns name a row, the others are numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    labels: int = 1
    footnotes: Sequence[str] = ()

    def to_markdown(self) -> str:
        """Writes the table as Markdown that ends with a line break; footnotes as a list under it."""
        rule = "---|" * self.labels + "---:|" * (len(self.headings) - self.labels)
        lines = [_markdown_row(self.headings), f"|{rule}", *(_markdown_row(c.text for c in row) for row in self.rows)]
        footnotes = [f"- {_markdown_text(note)}" for note in self.footnotes]
        return "\n".join([*lines, *([""] if footnotes else []), *footnotes]) + "\n"

    def to_rich(self) -> rich.table.Table:
        """Builds the table for the terminal, with the footnotes under it."""
        from rich.table import Table as RichTable
        from rich.text import Text

        # Text, not str: rich would read [brackets] in a name as markup.
        table = RichTable(box=None, pad_edge=False, header_style="bold", caption_justify="left")
        for i, heading in enumerate(self.headings):
            is_label = i < self.labels
            table.add_column(Text(visible(heading)), justify="left" if is_label else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(visible(cell.text)) for cell in row))
        if self.footnotes:
            table.caption = Text("\n".join(map(visible, self.footnotes)))
        return table


def _markdown_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(map(_markdown_text, texts))} |"


def _markdown_text(text: str) -> str:
    """Returns the text on one line, with a backslash before every character that Markdown would read as a mark."""
    line = visible(_SPACES.sub(" ", text).strip())
    return "".join(f"\\{c}" if c in "\\`|<>[]*" else c for c in line)
