"""`isentrope precision` as a user starts it: real engines, one process each, on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from integration import learner_cases

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return learner_cases.make_model(str(tmp_path_factory.mktemp("model")))


def precision(model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration", "precision", model, *arguments],
        capture_output=True,
        text=True,
        timeout=140,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_two_modes_are_measured_and_written(model: str, tmp_path: Path) -> None:
    out = tmp_path / "precision.json"
    size = ("--prompts", "24", "--responses", "4", "--max-tokens", "24")
    done = precision(model, "--modes", "fp32,bf16-fp32head", *size, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "prompts of random tokens" in done.stdout  # the model has no tokenizer
    for mode in ("fp32", "bf16-fp32head"):
        assert f"│ {mode} " in done.stdout
    modes = json.loads(out.read_text())["modes"]
    exact, half = modes["fp32"], modes["bf16-fp32head"]
    for row in (exact, half):
        assert row["notes"] == []
        assert row["tokens"] == row["engine"]["all"]["tokens"] == 24 * 4 * 24
        assert 0 < row["engine"]["rare"]["tokens"] < row["tokens"]
    assert exact["fp32"] is None
    assert exact["engine"]["sigma"] < 1e-5
    assert exact["packed"]["sigma"] < 1e-5
    assert exact["engine"]["all"]["outside"] == 0
    assert 1e-3 < half["engine"]["sigma"] < 0.3
    assert 1e-3 < half["fp32"]["sigma"] < 0.3
    assert half["engine"]["quantiles"]["q99.9"] > half["engine"]["quantiles"]["q50"]


def test_a_mode_that_cannot_be_measured_is_a_line_and_not_a_failure(model: str) -> None:
    done = precision(model, "--modes", "bf16", "--prompts", "1", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "bf16: no engine: no responses within --limit 1 s" in done.stdout
