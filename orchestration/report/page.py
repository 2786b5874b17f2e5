"""Renders a page from a template: one self-contained HTML file with inline style, script and charts.

Text from models, environments and files is untrusted. Templates escape every value they show, `visible` replaces characters
that could not be seen, and the Content-Security-Policy admits only the one script whose hash it names, so that nothing else
runs even if an escape were forgotten. Markup made here (charts) passes through `| safe`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.checkpoint import write_whole
from orchestration.report.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
ASSETS, TEMPLATES = HERE / "assets", HERE / "templates"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Holds a paragraph under the title, and what it is about where that has to be told apart."""

    subject: str
    text: str


def render(template: str, *, templates: Path | None = None, style: str = "", **values: Any) -> str:
    """Renders a template of `templates`, or of this package. `style` is CSS for this page alone, after the common one."""
    script = (ASSETS / "report.js").read_text("utf-8")
    return (
        _environment(templates)
        .get_template(template)
        .render(
            css=(ASSETS / "report.css").read_text("utf-8") + style,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )


def write_page(path: Path, text: str) -> Path:
    """Writes the page, whole or not at all, making its folder where needed, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


@lru_cache(maxsize=4)
def _environment(templates: Path | None) -> Environment:
    from jinja2 import (  # here: not every import of a report renders one
        Environment,
        FileSystemLoader,
        StrictUndefined,
    )

    def finalize(value: Any) -> Any:
        # type(value): markup made here stays markup.
        return type(value)(visible(value)) if isinstance(value, str) else value

    return Environment(
        loader=FileSystemLoader([*([templates] if templates else []), TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
