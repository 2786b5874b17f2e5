"""The README's environment of a user's own: from a folder outside the repository, with the real parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.readme import OWN_ENVIRONMENT, block, write_own_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
# -P: the current directory is not on the path by itself, as with the installed command.
COMMAND = [sys.executable, "-P", "-m", "orchestration"]
SMALL = ("batch.prompts=8", "evaluation.prompts=8", "evaluation.samples=2", "evaluation.ks=[1,2]")


def isentrope(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=environ, timeout=240, capture_output=True, text=True, check=False
    )


def test_the_readmes_environment_is_taught_and_trains(tmp_path: Path) -> None:
    assert len(block("python", OWN_ENVIRONMENT).splitlines()) <= 40
    recipe = write_own_environment(tmp_path / "mine")
    elsewhere = tmp_path / "elsewhere"  # the module is found beside the recipe
    elsewhere.mkdir()
    made = isentrope("init-model", "--recipe", str(recipe), "steps=50", cwd=elsewhere)
    assert made.returncode == 0, made.stdout + made.stderr
    done = isentrope("train", str(recipe), "run.iterations=2", *SMALL, cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (elsewhere / "runs" / "swaps" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert "eval/swaps/pass@1" in rows[0]
    for row in rows[1:]:
        assert 0 < row["reward/mean"] < 1
        assert row["response/length_max"] > 4  # sampling.max_tokens of one turn: there were several
        assert row.get("status/error", 0) == row.get("status/timeout", 0) == 0
    (tmp_path / "mine" / "swaps.py").rename(tmp_path / "mine" / "gone.py")
    gone = isentrope("train", str(recipe), "run.name=gone", cwd=elsewhere)
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1 and "no module 'swaps' on" in gone.stderr, gone.stderr
    assert not (elsewhere / "runs" / "gone").exists()
