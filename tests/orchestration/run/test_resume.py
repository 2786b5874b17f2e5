"""The checkpoint that a run goes on from: when there is nothing left to do, and what refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data, stages_data, stopped_run

from learner.checkpoint import Checkpoints
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError
from orchestration.run.lifecycle import prepare
from orchestration.run.resume import checkpoints_of, config_of_run, is_finished, is_over, resume_from


def run_in(folder: Path, iterations: int = 9, **changes: Any) -> RunConfig:
    return validate(config_data() | {"run": {"name": "demo", "iterations": iterations, "dir": str(folder)}} | changes)


def test_a_run_is_over_with_its_last_stage_or_its_cap() -> None:
    config = validate(stages_data(advance={"reward": 0.5, "window": 1}))

    def over(iteration: int, stage: int, done: int, rewards: list[float]) -> bool:
        return is_over(
            config, {"iteration": iteration, "curriculum": {"stage": stage, "iteration": done, "rewards": rewards}}
        )

    assert not over(3, 0, 3, [])
    assert not over(4, 1, 1, [0.4])
    assert over(4, 1, 1, [0.6])
    assert over(8, 1, 5, [0.1])


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ({}, {"precision": "bf16"}, "precision.mode was fp32 and is now bf16"),
        ({"precision": "bf16"}, {"precision": "bf16-fp32head"}, "precision.mode was bf16 and is now bf16-fp32head"),
        (
            {"precision": {"mode": "bf16", "allow_mixed": True}},
            {"precision": {"mode": "bf16", "allow_mixed": True}, "learner": {"lr": 0.1, "precision": "fp32"}},
            "learner.precision was bf16 and is now fp32",
        ),
        ({"precision": "bf16"}, {"precision": "bf16", "learner": {"lr": 0.1, "precision": "bf16"}}, None),
        ({"precision": "bf16"}, {"precision": {"mode": "bf16", "allow_mixed": True}}, None),
    ],
)
def test_a_resumed_run_may_not_change_its_precision(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], refused: str | None
) -> None:
    old, new = run_in(tmp_path, **before), run_in(tmp_path, **now)
    checkpoints = stopped_run(old)
    if refused is None:
        found = resume_from(new, checkpoints)
        assert found is not None and found.checkpoint == checkpoints.latest()
        return
    with pytest.raises(ConfigError, match=refused):
        resume_from(new, checkpoints)


def test_a_run_without_a_checkpoint_begins(tmp_path: Path) -> None:
    """One command for a restart loop: killed before its first checkpoint, or never started."""
    config = run_in(tmp_path)
    assert resume_from(config, checkpoints_of(config)) is None
    assert prepare(config_with_model(tmp_path), resume=True).state is None
    assert not is_finished(config)


def config_with_model(folder: Path) -> RunConfig:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return run_in(folder, model={"path": str(folder / "model")})


def test_what_cannot_be_resumed_is_one_sentence(tmp_path: Path) -> None:
    config = run_in(tmp_path)
    checkpoints = stopped_run(config)
    done = run_in(tmp_path, iterations=1)
    with pytest.raises(ConfigError, match=r"at iteration 1 of 1: raise run\.iterations"):
        resume_from(done, checkpoints)
    assert is_finished(done) and not is_finished(config)
    fewer = run_in(tmp_path, environments=[{"name": "countdown"}])
    with pytest.raises(ConfigError, match="the run had 2 environments and now has 1"):
        resume_from(fewer, checkpoints)
    with pytest.raises(ConfigError, match=r"has no checkpoint of iteration 7: there are step_000001$"):
        resume_from(config, checkpoints, 7)
    (config.folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"without its own configuration .*: \S+config.yaml cannot be read: No such"):
        resume_from(config, checkpoints)


AT = {"stage": 0, "iteration": 1, "rewards": [], "given": [[0, 0]]}
STATE_DAMAGES: dict[str, tuple[Any, str]] = {
    "stages": ("curriculum", "was written before there were stages"),
    "no learner": ("learner", "learner: Field required"),
    "empty curriculum": ({"curriculum": {}}, "curriculum.stage: Field required"),
    "empty learner": ({"learner": {}}, "learner.steps: Field required"),
    "version": ({"policy_version": "x"}, "policy_version: Input should be a valid integer"),
    "steering": ({"learner": {"steps": 1, "steering": {"": {"controller": None}}, "ledger": {}}}, "learner.steering"),
    "drift": ({"drift": {"stage": 0, "checked": True, "before": {}, "now": {}}}, "drift.series: Field required"),
    "alarms": ({"alarms": {"runs": [1]}}, "alarms.runs: Input should be a valid dictionary"),
    "again": ({"curriculum": {**AT, "again": [[1]], "tried": [[]]}}, "curriculum.again.0: Input should be"),
    "tried": ({"curriculum": {**AT, "again": [1], "tried": [[[1, 2]]]}}, "curriculum.tried.0.0.2: Field required"),
    "no given": ({"curriculum": {"stage": 0, "iteration": 1, "rewards": [], "given": []}}, "curriculum.given"),
}


@pytest.mark.parametrize("damage", STATE_DAMAGES)
def test_a_state_that_lacks_what_a_run_needs_is_one_sentence(tmp_path: Path, damage: str) -> None:
    config, (change, sentence) = run_in(tmp_path), STATE_DAMAGES[damage]
    checkpoints = stopped_run(config, **(change if isinstance(change, dict) else {}))
    file = tmp_path / "demo" / "checkpoints" / "step_000001" / "state.json"
    if isinstance(change, str):
        state = json.loads(file.read_text())
        del state[change]
        file.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=f"no checkpoint in .* can be used: .*{sentence}"):
        resume_from(config, checkpoints)


def test_a_state_of_a_stage_that_the_run_never_had_is_one_sentence(tmp_path: Path) -> None:
    config = run_in(tmp_path)
    with pytest.raises(ConfigError, match="the checkpoint is of stage 3, counted from 0, and the run has had 1"):
        resume_from(config, stopped_run(config, curriculum={**AT, "stage": 3}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"run: {name: demo", "is not valid YAML"),
        (b"\xff\xfe\x00\x80", "is not UTF-8 text"),
        (b"", "has to be a mapping of sections, not NoneType"),
        (b"[1, 2]", "has to be a mapping of sections, not list"),
        (b"learner: 3\n", "is not the configuration of a run"),
        (b"run: {name: demo, iterations: 9}\nlearner:\n  betas:\n  - 0.9\n", "is not the configuration of a run"),
    ],
)
def test_a_broken_configuration_of_the_run_is_one_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    config = run_in(tmp_path)
    checkpoints = stopped_run(config)
    (config.folder / "config.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=sentence) as raised:
        resume_from(config, checkpoints)
    assert len(str(raised.value)) < 2000
    with pytest.raises(ConfigError, match=sentence):
        config_of_run(config.folder, [])


def again(config: RunConfig, checkpoints: Checkpoints, iteration: int) -> Path:
    """Saves the checkpoint of a later iteration."""
    state = json.loads((checkpoints.steps()[0] / "state.json").read_text())
    draft = checkpoints.begin(iteration)
    (draft / "weights").write_text("weights")
    return checkpoints.finish(draft, state | {"iteration": iteration})


def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    config = run_in(tmp_path)
    checkpoints = stopped_run(config)
    latest = again(config, checkpoints, 2)
    (latest / "weights").write_text("Weights")
    found = resume_from(config, checkpoints)
    assert found is not None and found.checkpoint.name == "step_000001"
    assert found.notes == (
        "a checkpoint cannot be used, the run goes on from step_000001: "
        f"{latest / 'weights'} has other bytes than were written",
    )
    (checkpoints.steps()[0] / "state.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be used: .*other bytes.*; .*holds a list"):
        resume_from(config, checkpoints)


def test_an_older_checkpoint_can_be_named(tmp_path: Path) -> None:
    config = run_in(tmp_path)
    checkpoints = stopped_run(config)
    again(config, checkpoints, 2)
    found = resume_from(config, checkpoints, 1)
    assert found is not None and found.state["iteration"] == 1


def test_ranks_and_zero_stage_may_change_and_every_changed_key_is_named(tmp_path: Path) -> None:
    checkpoints = stopped_run(run_in(tmp_path, learner={"lr": 1e-3, "ranks": 2, "zero_stage": 2}))
    config = run_in(tmp_path, iterations=12, learner={"lr": 3e-4, "ranks": 1, "zero_stage": 0})
    found = resume_from(config, checkpoints)
    assert found is not None and set(found.notes) == {
        "run.iterations: the run had 9, it goes on with 12",
        "learner.ranks: the run had 2, it goes on with 1",
        "learner.zero_stage: the run had 2, it goes on with 0",
        "learner.lr: the run had 0.001, it goes on with 0.0003",
    }


def test_a_folder_is_all_that_a_resume_needs(tmp_path: Path) -> None:
    config = run_in(tmp_path / "runs", learner={"lr": 1e-3})
    stopped_run(config)
    assert config_of_run(config.folder, []) == config
    assert config_of_run(config.folder, ["learner.lr=3e-4"]).learner.lr == 3e-4
    moved = tmp_path / "elsewhere" / "other"
    moved.parent.mkdir()
    config.folder.rename(moved)
    assert config_of_run(moved, []).folder == moved


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read: No such file"):
        config_of_run(tmp_path / "nowhere", [])
