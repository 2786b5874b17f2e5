"""The laboratory with the real stack: warm actors give what cold ones give, a broken arm costs itself alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.test_run import finish, isentrope, model, rows, smoke, untimed  # noqa: F401 - `model` is a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(500)]


def grid(folder: Path, path: Path, arms: dict[str, Any], seeds: list[int]) -> str:
    data = {
        "name": "lab",
        "recipe": "smoke",
        "seeds": seeds,
        "overrides": {"model.path": str(path), "run.iterations": 3, "evaluation.every": 0},
        "arms": arms,
    }
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


def test_a_broken_arm_is_named_the_others_finish_and_warm_runs_equal_cold_ones(
    model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    arms = {
        "first": {"objective.advantage": "grpo", "objective.kl": {"coefficient": 0.1}},
        "diverges": {"learner.lr": 1e30},
        "second": {"entropy.controller": {"kind": "isentropic"}},
        "misspelt": {"learner.lrr": 1.0},
    }
    path = grid(tmp_path, model, arms, [3])
    code, out = finish(isentrope("lab", path, cwd=tmp_path), 300)
    assert code == 1, out
    assert "2 of 4 runs failed" in out
    assert "diverges-s3" in out
    assert "misspelt-s3: FAILED: unknown key learner.lrr: did you mean 'lr'?" in out
    arms_folder = tmp_path / "runs" / "lab" / "arms"
    results = json.loads((tmp_path / "runs" / "lab" / "results.json").read_text())
    assert {a["name"]: sorted(a["seeds"]) for a in results["arms"]} == {
        "first": ["3"],
        "diverges": [],
        "second": ["3"],
        "misspelt": [],
    }
    page = (tmp_path / "runs" / "lab" / "report.html").read_text()
    assert "diverges" in page
    assert "did you mean" in page

    # `second` ran on a lane that was started anew, `first` opened one: both against a run of their own.
    more = ("run.iterations=3", "evaluation.every=0", "run.seed=3")
    code, out = finish(isentrope(*smoke(model, "cold", *more, "entropy.controller={kind: isentropic}"), cwd=tmp_path))
    assert code == 0, out
    compare(tmp_path / "runs" / "cold", arms_folder / "second-s3")

    # Again, without what was broken: nothing is run twice. And two seeds one after the other on the same warm actors.
    before = (arms_folder / "second-s3" / "metrics.jsonl").stat().st_mtime_ns
    path = grid(tmp_path, model, {"second": arms["second"]}, [4, 3, 5])
    code, out = finish(isentrope("lab", path, cwd=tmp_path), 300)
    assert code == 0, out
    assert "second-s3: was there" in out
    assert (arms_folder / "second-s3" / "metrics.jsonl").stat().st_mtime_ns == before
    more = ("run.iterations=3", "evaluation.every=0", "run.seed=5")
    code, out = finish(isentrope(*smoke(model, "cold5", *more, "entropy.controller={kind: isentropic}"), cwd=tmp_path))
    assert code == 0, out
    compare(tmp_path / "runs" / "cold5", arms_folder / "second-s5")  # the warm one


def compare(cold: Path, warm: Path) -> None:
    assert len(rows(cold)) == len(rows(warm)) == 4
    for mine, theirs in zip(rows(cold), rows(warm), strict=True):
        assert untimed(mine).keys() == untimed(theirs).keys()
        for key, value in untimed(mine).items():
            if key != "sync/bytes":
                assert theirs[key] == pytest.approx(value, abs=1e-6), key
