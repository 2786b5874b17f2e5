"""The tables for who comes from another trainer: every key and value of ours that they name is one."""

from __future__ import annotations

import re

import yaml
from support.builders import config_data
from support.readme import ROOT

from documents.config_reference import _all_meanings
from orchestration.config.loader import put
from orchestration.config.run_config import RunConfig, validate

PAGES = [ROOT / "docs" / "migration.md", ROOT / "docs" / "troubleshooting.md"]
KEY = re.compile(r"^([a-z_]+(?:\.[a-z_]+)+)(?:(?:: |=)(\S.*))?$")
KNOWN = {key for key, _ in _all_meanings(RunConfig, "")}
NEEDED = {"gspo": {"aggregation": "sequence"}}  # beside a value, as the tables say
SECTIONS = set(RunConfig.model_fields)


def ours() -> list[tuple[str, str | None]]:
    """Returns (key, value) of everything in backticks that is about a section of a recipe, in the last column of a row."""
    cells = [
        line.rstrip(" |").rpartition(" | ")[2]
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if " | " in line
    ]
    found = [KEY.match(word) for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    return [(match[1], match[2]) for match in found if match and match[1].split(".")[0] in SECTIONS]


def test_every_key_of_ours_is_one() -> None:
    keys = ours()
    assert len(keys) > 100
    parents = {key.rpartition(".")[0] for key in KNOWN}
    assert not [key for key, _ in keys if key not in KNOWN and key not in parents]


def test_every_value_of_ours_is_one() -> None:
    given = [(key, value) for key, value in ours() if value is not None]
    assert len(given) > 8
    for key, value in given:
        data = config_data(batch={"prompts": 8, "responses": 4}, objective=NEEDED.get(value, {}))
        put(data, key, yaml.safe_load(value))
        validate(data)


def test_settings_written_as_yaml_are_valid() -> None:
    blocks = re.findall(r"`((?:entropy|rewards): \{[^`]+\})`", PAGES[0].read_text("utf-8"))
    assert len(set(blocks)) == 3
    for text in blocks:
        validate(config_data() | yaml.safe_load(text))


def test_the_values_that_the_tables_name_are_the_configurations() -> None:
    text = PAGES[0].read_text("utf-8")
    for key, values in (
        ("objective.advantage", ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")),
        ("objective.aggregation", ("token", "sequence", "constant")),
        ("objective.surrogate", ("gspo",)),
    ):
        for value in values:
            assert f"`{value}`" in text or f"`{key}: {value}`" in text
            data = config_data(objective=NEEDED.get(value, {}))
            put(data, key, value)
            validate(data)
