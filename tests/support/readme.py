"""Takes recipes and programs out of the documents, so that tests can run what a reader would copy."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OWN_ENVIRONMENT = "Your own environment"
OWN_REWARD = "Your own reward function"
OWN_DATA = "Your own data"


def block(language: str, under: str, number: int = 0, document: Path = README) -> str:
    """Returns the text of a ```language block below the heading `under`, counted from 0."""
    _, heading, rest = document.read_text("utf-8").partition(f"# {under}\n")
    assert heading, f"{document.name} has no heading '{under}'"
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    assert len(blocks) > number, f"there are {len(blocks)} {language} blocks below '{under}'"
    return blocks[number]


def write_own_environment(folder: Path) -> Path:
    """Writes swaps.py and swaps.yaml into `folder`; returns the recipe."""
    folder.mkdir(parents=True)
    (folder / "swaps.py").write_text(block("python", OWN_ENVIRONMENT), "utf-8")
    recipe = folder / "swaps.yaml"
    recipe.write_text(block("yaml", OWN_ENVIRONMENT), "utf-8")
    return recipe


def write_own_data(folder: Path) -> Path:
    """Writes questions.yaml and two small data files that it names into `folder`; returns the recipe."""
    (folder / "data").mkdir(parents=True)
    train = '{"prompt": "What is 3/4 of 20?", "answer": 15}\n{"prompt": "What is 3/5 of 25?", "answer": 15}\n'
    (folder / "data" / "train.jsonl").write_text(train, "utf-8")
    (folder / "data" / "eval.jsonl").write_text('{"prompt": "What is half of 3?", "answer": "3/2"}\n', "utf-8")
    recipe = folder / "questions.yaml"
    recipe.write_text(block("yaml", OWN_DATA), "utf-8")
    return recipe


def write_own_reward(folder: Path) -> Path:
    """Writes brief.py, brief.yaml and their data into `folder`: the recipe of own data with the environments of own reward."""
    recipe = write_own_data(folder)
    (folder / "brief.py").write_text(block("python", OWN_REWARD), "utf-8")
    environments = re.compile(r"^environments:\n(?:  .*\n)+", re.MULTILINE)
    text, found = environments.subn(lambda _: block("yaml", OWN_REWARD), recipe.read_text("utf-8"))
    assert found == 1
    (folder / "brief.yaml").write_text(text, "utf-8")
    return folder / "brief.yaml"
