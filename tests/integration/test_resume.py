"""A run resumed from its folder alone, on the real stack: a bad checkpoint, other ranks, another ZeRO stage, a second process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from integration.test_run import finish, isentrope, rows, smoke, untimed, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# One iteration of two updates after a checkpoint, on the two cores that a small machine has.
MORE = ("run.iterations=3", "checkpoint.every=2", "evaluation.prompts=0", "learner.cpus=0.5", "generators.cpus=0.5")
LAYOUT = ("learner.ranks=2", "learner.zero_stage=2")
# Its last bits follow from the order in which gradients are added.
ROUNDED = 1e-6


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run that nothing disturbs, on two ranks with ZeRO-2."""
    folder = tmp_path_factory.mktemp("two")
    model = folder / "arithmetic"
    code, out = finish(isentrope("init-model", "--env", "arithmetic", "--out", str(model), "steps=150", cwd=folder))
    assert code == 0, out
    code, out = finish(isentrope(*smoke(model, "two", *MORE, *LAYOUT), cwd=folder), 300)
    assert code == 0, out
    return folder / "runs" / "two"


def test_one_rank_goes_on_from_the_checkpoint_of_two_before_a_bad_one(two_ranks: Path, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(two_ranks, run)
    flipped = run / "checkpoints" / "step_000003" / "engine" / "rank_0001_00000.safetensors"
    data = bytearray(flipped.read_bytes())
    for at in range(len(data) - 64, len(data)):
        data[at] ^= 0xFF
    flipped.write_bytes(data)

    again = ("resume", str(run), "learner.ranks=1", "learner.zero_stage=0")
    process = isentrope(*again, cwd=tmp_path)
    wait_for(lambda: (run / ".lock").exists() and (run / ".lock").read_text(), process)
    code, out = finish(isentrope(*again, cwd=tmp_path))
    assert code == 2
    assert f"moved is in use by process {process.pid} on " in out
    assert len(out.splitlines()) == 1, out

    code, out = finish(process, 300)
    assert code == 0, out
    assert "the run goes on from step_000002: " in out
    assert "rank_0001_00000.safetensors has other bytes than were written" in out
    assert "learner.ranks: the run had 2, it goes on with 1" in out
    assert "learner.zero_stage: the run had 2, it goes on with 0" in out
    expected, recorded = rows(two_ranks), rows(run)
    assert [r["iteration"] for r in recorded] == [r["iteration"] for r in expected] == [1, 2, 3]
    for key, value in untimed(expected[-1]).items():
        assert recorded[-1][key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    assert recorded[-1]["loss"] == pytest.approx(expected[-1]["loss"], abs=ROUNDED)

    code, out = finish(isentrope(*again, cwd=tmp_path))
    assert code == 2
    assert "nothing to do" in out
    code, out = finish(isentrope(*again, "--from", "7", cwd=tmp_path))
    assert code == 2
    assert "has no checkpoint of iteration 7: there are step_000002, step_000003" in out
