"""Checks that the pages generated from the code are current and complete."""

from __future__ import annotations

from types import ModuleType

import pytest
from pydantic import BaseModel, Field

from tests.documents import config_reference, memory_reference, metrics_reference

DOCS = config_reference.ROOT / "docs"


@pytest.mark.parametrize(
    ("page", "module"),
    [("configuration.md", config_reference), ("metrics.md", metrics_reference), ("memory.md", memory_reference)],
    ids=lambda x: str(x),
)
def test_a_generated_page_is_current(page: str, module: ModuleType) -> None:
    script = f"tests/documents/{module.__name__.rpartition('.')[2]}.py"
    assert (DOCS / page).read_text("utf-8") == module.reference(), f"run: python {script} > docs/{page}"


def test_every_key_has_a_meaning() -> None:
    assert not config_reference.undocumented(), "give the key a description, or a sentence in config_meanings.py"


def test_every_meaning_belongs_to_a_key() -> None:
    assert not config_reference.unknown_meanings()


def test_a_key_shows_type_bounds_default_and_meaning() -> None:
    page = config_reference.reference()
    assert "| `lr` | number, > 0 | required | Learning rate of AdamW. |" in page
    assert "| `responses` | integer, ≥ 1 | required | Responses to each prompt, which form its group. |" in page
    assert "### `entropy.controller` with `kind: isentropic`" in page


class Declared(BaseModel):
    """Has a comment behind a field, one above it, and one that belongs to a group of fields."""

    behind: int = 0  # behind the field
    wrapped: int = Field(default=0, ge=0)  # behind a declaration of several lines
    # Above the field, in
    # two lines.
    above: int = 0
    # Of the group:
    bare: int = 0


class Inherits(Declared):
    own: int = 0  # of the class itself


def test_a_comment_is_found_where_a_field_is_declared() -> None:
    comments = {name: config_reference.declared_comment(Inherits, name) for name in Inherits.model_fields}
    assert comments == {
        "behind": "behind the field",
        "wrapped": "behind a declaration of several lines",
        "above": "Above the field, in two lines.",
        "bare": "",
        "own": "of the class itself",
    }
