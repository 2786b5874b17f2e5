"""Refill and adaptive difficulty on the real stack: what comes next follows from the responses, and a killed run draws the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.test_run import finish, isentrope, model, rows, untimed, wait_for  # noqa: F401 - a fixture

from orchestration.config.run_config import RECIPES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(500)]
KILLED_AFTER = 2


def recipe(folder: Path, path: Path) -> str:
    """Writes the smoke recipe with two environments and small groups, so that many have one reward."""
    data: dict[str, Any] = yaml.safe_load((RECIPES / "smoke.yaml").read_text())
    data["environments"] = [
        {"name": "arithmetic", "weight": 2},
        {"name": "arithmetic", "params": {"operators": "-", "name": "minus"}},
    ]
    data["run"] = {"name": "sampled", "iterations": 4}
    data["model"] = {"path": str(path)}
    data["batch"] = {
        "prompts": 8,
        "responses": 4,
        "dynamic": {"kind": "refill", "max_rounds": 3},
        "adaptive": {"revisit": 0.6, "pool": 16},
    }
    data["evaluation"] = {"prompts": 0}
    data["checkpoint"] = {"every": 1, "keep": 9}
    file = folder / "sampled.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


def curriculum(run: Path, step: int) -> Any:
    return json.loads((run / "checkpoints" / f"step_{step:06d}" / "state.json").read_text())["curriculum"]


def test_killed_and_resumed_draws_what_the_undisturbed_run_draws(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """A copy of a running run has what a kill at that moment would leave.

    Processes are really killed in test_run.py and test_stages.py.
    """
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    undisturbed, killed = (folder / "runs" / "sampled" for folder in folders.values())
    process = isentrope("train", recipe(folders["whole"], model), cwd=folders["whole"])
    wait_for(lambda: (undisturbed / "checkpoints" / f"step_{KILLED_AFTER:06d}" / "state.json").exists(), process)
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", f"checkpoints/step_{KILLED_AFTER:06d}"):
        copy = shutil.copytree if (undisturbed / name).is_dir() else shutil.copy
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        copy(undisturbed / name, killed / name)
    code, out = finish(process)
    assert code == 0, out

    expected = rows(undisturbed)
    assert all(1 <= r["dynamic/rounds"] <= 3 for r in expected)
    assert any(r["dynamic/rounds"] > 1 for r in expected)
    assert any(r["adaptive/revisited"] > 0 for r in expected)
    for r in expected:
        dropped = r["dynamic/all_right"] + r["dynamic/all_wrong"] + r["dynamic/other"]
        assert r["dynamic/generated"] - r["dynamic/trained"] == dropped == r["groups/no_signal"]
        assert r["tokens/trained"] < r["tokens/generated"] or not dropped
        assert r["sync/logprob_gap_max"] < 1e-5

    code, out = finish(isentrope("train", recipe(folders["killed"], model), "--resume", cwd=folders["killed"]))
    assert code == 0, out
    assert [path.name for path in sorted((killed / "checkpoints").glob("step_*"))] == [
        f"step_{k:06d}" for k in (2, 3, 4)
    ]
    assert curriculum(killed, 4) == curriculum(undisturbed, 4)
    assert curriculum(killed, 4)["tried"] != curriculum(killed, KILLED_AFTER)["tried"]
    recorded = rows(killed)
    assert [r["iteration"] for r in recorded] == [1, 2, 3, 4]
    for row, undisturbed_row in zip(recorded, expected, strict=True):
        assert untimed(row).keys() == untimed(undisturbed_row).keys()
        for key, value in untimed(undisturbed_row).items():
            assert row[key] == pytest.approx(value, abs=1e-6), (row["iteration"], key)
