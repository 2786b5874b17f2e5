"""The comparison of runs before and after a refactoring reports every value that differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.compare_runs import main


def run(root: Path, row: dict[str, float], sample: dict[str, str]) -> Path:
    folder = root / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")
    return root


BEFORE = {"loss": 0.1, "entropy/knob": 0.5, "time/train": 3.0}
AFTER = {"loss": 0.1, "entropy/coefficient": 0.5, "time/train": 4.0}


@pytest.mark.parametrize(
    ("after", "sample", "code"),
    [
        ({}, "x", 0),  # a renamed key is the same key, and a clock counts for nothing
        ({"loss": 0.1000000000000001}, "x", 1),
        ({"more": 1.0}, "x", 1),
        ({}, "y", 1),
    ],
)
def test_every_other_value_is_found(tmp_path: Path, after: dict[str, float], sample: str, code: int) -> None:
    before = run(tmp_path / "before", BEFORE, {"reply": "x"})
    assert main(before, run(tmp_path / "after", AFTER | after, {"response": sample})) == code


def test_a_run_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    before = run(tmp_path / "before", BEFORE, {"reply": "x"})
    assert main(before, tmp_path) == main(tmp_path / "nothing", before) == 1
