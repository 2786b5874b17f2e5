"""Generation beside the training, with real parts: the bound on staleness, and a resume that loses and doubles nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from integration.test_run import finish, isentrope, model, rows, smoke, wait_for  # noqa: F401 - a fixture
from support.once import problems

from learner.checkpoint import Checkpoints, read_state
from orchestration.telemetry.sinks.jsonl import read_samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROMPTS, RESPONSES, STALENESS = 8, 8, 2
SETTINGS = (
    f"batch.staleness={STALENESS}",
    "run.iterations=8",
    "evaluation.prompts=0",
    f"run.samples_per_iteration={PROMPTS * RESPONSES}",
    "run.sample_tokens=true",
    "checkpoint.every=2",
)


def check(folder: Path, iterations: int = 8) -> None:
    """Every prompt that was begun was trained on once, with all its responses, by a policy that is not too old."""
    bounds = {"prompts": PROMPTS, "responses": RESPONSES, "staleness": STALENESS}
    assert not list(problems(rows(folder), read_samples(folder), iterations=iterations, **bounds))


def test_stopped_and_resumed_it_trains_on_every_group_once(model: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "runs" / "ahead"
    run = isentrope(*smoke(model, "ahead", *SETTINGS), cwd=tmp_path)
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, run)
    run.send_signal(signal.SIGTERM)
    code, out = finish(run)
    assert code == 128 + signal.SIGTERM, out
    saved = Checkpoints(folder / "checkpoints", 2).latest()
    assert saved is not None
    pending = read_state(saved)["pending"]
    assert len(pending["running"]) + len(pending["finished"]) == PROMPTS  # a batch ahead
    assert (saved / "groups.json").exists() == bool(pending["finished"])
    code, out = finish(isentrope("resume", str(folder), cwd=tmp_path))
    assert code == 0, out
    check(folder)

    again = isentrope("resume", str(folder), "batch.staleness=0", cwd=tmp_path)
    assert finish(again)[0] != 0


def test_killed_it_goes_on_from_its_checkpoint(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The iterations behind the checkpoint are taken again, with other groups where these had not been finished."""
    folder = tmp_path / "runs" / "ahead"
    run = isentrope(*smoke(model, "ahead", *SETTINGS), cwd=tmp_path)
    wait_for(lambda: (folder / "checkpoints" / "step_000004" / "state.json").exists(), run)
    run.kill()
    finish(run)
    code, out = finish(isentrope("resume", str(folder), cwd=tmp_path))
    assert code == 0, out
    check(folder)


def test_it_survives_its_generator_and_its_learner(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """What was under way at a generator that is killed is sampled again; a new learner goes on from the checkpoint's groups."""
    folder = tmp_path / "runs" / "ahead"
    run = isentrope(*smoke(model, "ahead", *SETTINGS, "run.iterations=60", "checkpoint.every=1"), cwd=tmp_path)
    family = psutil.Process(run.pid)
    for killed, after in (("ray::GeneratorActor", 2), ("ray::LearnerActor", 5)):
        wait_for(lambda after=after: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= after, run)
        victims = [p for p in family.children(recursive=True) if killed in " ".join(p.cmdline())]
        assert len(victims) == 1
        victims[0].kill()
    code, out = finish(run, 300)
    assert code == 0, out
    assert "replaces one that is gone" in out and "the learner group is built anew" in out
    check(folder, 60)
