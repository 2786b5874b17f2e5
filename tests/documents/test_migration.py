"""The tables for who comes from another trainer: every key and value that they name is one, of ours and of theirs."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from support.builders import config_data
from support.readme import ROOT

from documents import migration_keys
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


RECORD = json.loads(migration_keys.RECORD.read_text("utf-8"))


@pytest.mark.parametrize("section", migration_keys.SECTIONS)
def test_every_key_of_theirs_was_found_in_their_source(section: str) -> None:
    """migration_keys.py has written down what it found: a key that was added since has to be looked up as well."""
    assert sorted(set(migration_keys.named(section))) == RECORD["keys"][section]
    assert len(RECORD["keys"][section]) > 40


def test_the_page_says_which_versions_were_looked_up() -> None:
    text = " ".join(PAGES[0].read_text("utf-8").split())
    versions = RECORD["versions"]
    assert f"TRL {versions['trl']} (with transformers {versions['transformers']}), verl {versions['verl']}" in text
    assert f"OpenRLHF {versions['openrlhf']}:" in text
    pinned = (ROOT / "tests" / "benchmarks" / "trl" / "requirements.txt").read_text("utf-8")
    assert f"trl=={versions['trl']}\n" in pinned and f"transformers=={versions['transformers']}\n" in pinned


def test_the_look_up_reads_dataclasses_parameters_options_and_nested_yaml() -> None:
    source = "class A:\n    x: int = 1\n    def run(self, y): ...\nclass B:\n    z: int = 2\n"
    assert migration_keys.fields(source, "A") == {"x", "self", "y"}
    script = (
        'p.add_argument("--a.b", type=int)\nfor prefix in ("actor", "critic"):\n    p.add_argument(f"--{prefix}.lr")\n'
    )
    assert migration_keys.options(script) == {"--a.b", "--actor.lr"}
    assert set(migration_keys.dotted({"a": {"b": 1}, "c": 2})) == {"a", "a.b", "c"}
