"""Checks that the pages generated from the code are current and complete."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.documents import config_reference, metrics_reference

DOCS = config_reference.ROOT / "docs"


@pytest.mark.parametrize(
    ("page", "module"),
    [("configuration.md", config_reference), ("metrics.md", metrics_reference)],
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


def test_a_comment_at_the_declaration_is_a_meaning_where_nothing_else_is() -> None:
    assert "| `weight` | number | required | May be negative; 0 measures the term without rewarding it |" in (
        config_reference.reference()
    )
