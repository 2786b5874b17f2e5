"""A run with stages on the real stack: the matrix is there, and one killed around a boundary resumes to the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.test_run import finish, isentrope, model, rows, survivors, untimed, wait_for  # noqa: F401 - a fixture

from orchestration.analysis.retention import matrix
from orchestration.config.run_config import RECIPES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(500)]


def recipe(folder: Path, path: Path) -> str:
    """Writes the smoke recipe in two stages of other sums, with every non-default action at the boundary."""
    data: dict[str, Any] = yaml.safe_load((RECIPES / "smoke.yaml").read_text())
    del data["environments"]
    data["run"] = {"name": "staged"}
    data["model"] = {"path": str(path)}
    data["evaluation"]["every"] = 0
    data["checkpoint"] = {"every": 1, "keep": 9}
    overrides = {"objective.clip_high": 0.3, "learner.lr": 2e-4, "sampling.temperature": 0.9}
    minus = {"name": "arithmetic", "params": {"operators": "-", "name": "minus"}}
    data["stages"] = [
        {"name": "plus", "environments": [{"name": "arithmetic"}], "iterations": 2},
        {
            "name": "minus",
            "environments": [minus, {"name": "arithmetic"}],
            "iterations": 3,
            "overrides": overrides,
            "controller": "reanchor",
            "optimiser": "reset",
        },
    ]
    file = folder / "staged.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("whole")
    code, out = finish(isentrope("train", recipe(folder, model), cwd=folder))
    assert code == 0, out
    assert "stage 2 of 2 begins: minus" in out
    return folder / "runs" / "staged"


def test_every_environment_is_evaluated_at_every_boundary(undisturbed: Path) -> None:
    recorded = rows(undisturbed)
    assert [(r["stage/index"], r["stage/iteration"]) for r in recorded] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (1, 3),
    ]
    assert [i for i, r in enumerate(recorded) if "eval/minus/pass@1" in r and "eval/arithmetic/pass@4" in r] == [
        0,
        2,
        5,
    ]
    assert ["reward/minus" in r for r in recorded] == [False, False, False, True, True, True]
    assert recorded[3]["lr"] == pytest.approx(2e-4)
    assert "entropy/realised_dh" not in recorded[3]
    kept = matrix(recorded, 1)
    assert kept is not None
    assert kept.environments == ("arithmetic", "minus")
    assert "<h2>What was retained</h2>" in (undisturbed / "report.html").read_text()


@pytest.mark.parametrize("after", [2, 3])
def test_killed_around_the_boundary_and_resumed_equals_undisturbed(
    model: Path,  # noqa: F811
    undisturbed: Path,
    tmp_path: Path,
    after: int,
) -> None:
    """after 2: the checkpoint at the boundary itself, before the learner went over. after 3: one inside the second stage."""
    marker = f"staged-{after}"
    process = isentrope("train", recipe(tmp_path, model), cwd=tmp_path, ISENTROPE_TEST=marker)
    folder = tmp_path / "runs" / "staged"
    wait_for(lambda: (folder / "checkpoints" / f"step_{after:06d}" / "state.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while survivors(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not survivors(marker)
    # As if the kill had come at once: the run may have been faster than it.
    for later in (folder / "checkpoints").glob("step_*"):
        if later.suffix == ".writing" or int(later.name.removeprefix("step_")) > after:
            shutil.rmtree(later)
    (folder / "checkpoints" / "latest").write_text(f"step_{after:06d}")

    code, out = finish(isentrope("train", str(tmp_path / "staged.yaml"), "--resume", cwd=tmp_path))
    assert code == 0, out
    assert ("stage 2 of 2 begins" in out) == (after == 2)
    expected, recorded = rows(undisturbed), rows(folder)
    assert [r["iteration"] for r in recorded] == [r["iteration"] for r in expected]
    for row, undisturbed_row in zip(recorded, expected, strict=True):
        assert untimed(row).keys() == untimed(undisturbed_row).keys()
        for key, value in untimed(undisturbed_row).items():
            assert row[key] == pytest.approx(value, abs=1e-6), (row["iteration"], key)
