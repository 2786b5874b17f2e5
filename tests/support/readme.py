"""What the README shows, taken from it, so that a test can run it."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def block(language: str, under: str) -> str:
    """The first ```language block below the heading `under`."""
    _, heading, rest = README.read_text("utf-8").partition(f" {under}\n")
    assert heading, f"the README has no heading '{under}'"
    found = re.search(rf"^```{language}\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    assert found, f"there is no {language} below '{under}'"
    return found.group(1)


def write_own_environment(folder: Path) -> Path:
    """swaps.py and swaps.yaml in `folder`; returns the recipe."""
    folder.mkdir(parents=True)
    (folder / "swaps.py").write_text(block("python", "Your own"), "utf-8")
    recipe = folder / "swaps.yaml"
    recipe.write_text(block("yaml", "Your own"), "utf-8")
    return recipe
