"""A colocated run with real parts, as far as CPUs go: the order of turns changes no number, and a death in one ends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from integration.test_run import ROOT, finish, isentrope, model, rows, smoke, untimed  # noqa: F401 - a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SETTINGS = (
    "run.iterations=3",
    "run.trace=true",
    "batch.prompts=4",
    "checkpoint.every=2",
    "evaluation.prompts=4",
    "evaluation.samples=2",
    "evaluation.ks=[1,2]",
)
SCRIPT = str(ROOT / "tests/integration/colocated_cases.py")


def colocated(model: Path, name: str, *more: str, cwd: Path) -> tuple[int, str]:  # noqa: F811
    command = [sys.executable, SCRIPT, "smoke", f"model.path={model}", f"run.name={name}", *SETTINGS, *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return finish(subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **pipes))


def test_turns_change_no_number(model: Path, tmp_path: Path) -> None:  # noqa: F811
    code, out = finish(isentrope(*smoke(model, "apart", *SETTINGS), cwd=tmp_path))
    assert code == 0, out
    code, out = colocated(model, "turns", cwd=tmp_path)
    assert code == 0, out
    apart, turns = (rows(tmp_path / "runs" / name) for name in ("apart", "turns"))
    assert [untimed(row) for row in turns] == [untimed(row) for row in apart]
    trained = [row for row in turns if "time/train" in row]
    assert len(trained) == 3 and all(row["time/turns"] > 0 for row in trained)
    names = {event["name"] for event in json.loads((tmp_path / "runs/turns/trace.json").read_text())}
    assert {"sleep", "wake weights", "wake kv_cache", "offload", "reload"} <= names


@pytest.mark.parametrize(
    ("who", "turn", "counted"), [("generator", "2", "replaced"), ("learner", "5", "learner_restarts")]
)
def test_who_dies_in_the_learners_turn_is_replaced(
    model: Path,  # noqa: F811
    tmp_path: Path,
    who: str,
    turn: str,
    counted: str,
) -> None:
    """Turns of the learner: the start is measured, two iterations, a checkpoint, the third iteration."""
    code, out = colocated(model, "killed", who, turn, cwd=tmp_path)
    assert code == 0, out
    found = [row for row in rows(tmp_path / "runs" / "killed") if "time/train" in row]
    assert [row["iteration"] for row in found] == [1, 2, 3]
    assert found[-1][f"cluster/{counted}"] == 1
    assert max(row["sync/logprob_gap_max"] for row in found) < 1e-3
