"""The laboratory with the real stack: warm actors give what cold ones give, a broken arm costs itself alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.test_run import finish, isentrope, model, rows, smoke, untimed  # noqa: F401 - `model` is a fixture

from orchestration.lab.grid import GRIDS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(500)]


def grid(folder: Path, path: Path, **changes: Any) -> str:
    """Returns the shipped smoke grid on an existing model; `more` arms are added."""
    data = yaml.safe_load((GRIDS / "smoke.yaml").read_text())
    del data["warm_start"]
    data["overrides"]["model.path"] = str(path)
    data["arms"] |= changes.pop("more", {})
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({**data, **changes}, sort_keys=False))
    return str(file)


def test_a_broken_arm_is_named_the_others_finish_and_warm_runs_equal_cold_ones(
    model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    broken = {"diverges": {"learner.lr": 1e30}, "misspelt": {"learner.lrr": 1.0}}
    code, out = finish(isentrope("lab", grid(tmp_path, model, more=broken), cwd=tmp_path), 300)
    assert code == 1, out
    assert "2 of 4 runs failed" in out
    assert "diverges-s3" in out
    assert "misspelt-s3: FAILED: unknown key learner.lrr: did you mean 'lr'?" in out
    folder = tmp_path / "runs" / "smoke"
    assert "| isentropic | 1 |" in (folder / "results.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    finished = {a["name"]: sorted(a["seeds"]) for a in results["arms"]}
    assert finished == {"grpo-kl": ["3"], "isentropic": ["3"], "diverges": [], "misspelt": []}
    page = (folder / "report.html").read_text()
    assert "diverges" in page
    assert "did you mean" in page
    # The second arm of a worker is the warm one: the same run by itself, on actors of its own, gives the same.
    more = ("run.iterations=3", "evaluation.every=0", "run.seed=3", "entropy.controller={kind: isentropic}")
    code, out = finish(isentrope(*smoke(model, "cold", *more), cwd=tmp_path))
    assert code == 0, out
    compare(tmp_path / "runs" / "cold", folder / "arms" / "isentropic-s3")

    # Again, without what was broken: nothing is left to do, nothing is run twice.
    before = (folder / "arms" / "isentropic-s3" / "metrics.jsonl").stat().st_mtime_ns
    code, out = finish(isentrope("lab", grid(tmp_path, model), cwd=tmp_path), 300)
    assert code == 0, out
    assert "isentropic-s3: was there" in out
    assert (folder / "arms" / "isentropic-s3" / "metrics.jsonl").stat().st_mtime_ns == before
    # The folder of a run with other settings is not written over.
    code, out = finish(isentrope("lab", grid(tmp_path, model, overrides={"model.path": str(model)}), cwd=tmp_path))
    assert code == 2, out
    assert "holds a run of other settings" in out


def compare(cold: Path, warm: Path) -> None:
    assert len(rows(cold)) == len(rows(warm)) == 4
    for expected, actual in zip(rows(cold), rows(warm), strict=True):
        assert untimed(expected).keys() == untimed(actual).keys()
        for key, value in untimed(expected).items():
            if key != "sync/bytes":
                assert actual[key] == pytest.approx(value, abs=1e-6), key
