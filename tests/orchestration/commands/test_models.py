"""Models and checkpoints that commands are given: which folder is meant, what an evaluation asks, what an export writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from support.builders import config_data, make_group

from envs.types import Group, Status
from learner.checkpoint import Checkpoints
from orchestration.cli import app
from orchestration.commands.evaluate import Asked, configured, metrics, parse_ks
from orchestration.commands.export import export
from orchestration.commands.model_source import ModelSource, find_model
from orchestration.config.run_config import RunConfig, validate
from orchestration.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of a run of six iterations, with checkpoints of iterations 2 and 4."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "demo"
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    for iteration in (2, 4):
        draft = checkpoints.begin(iteration)
        hf = draft / "hf"
        hf.mkdir(parents=True)
        (hf / "config.json").write_text('{"model_type": "llama"}')
        save_file({"w": np.full(3, iteration, np.float32)}, hf / "model.safetensors")
        checkpoints.finish(draft, {"iteration": iteration})
    data = config_data(evaluation={"prompts": 6, "samples": 4, "ks": [1, 4]}, sampling={"max_tokens": 9, "stop": ["x"]})
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(validate(data).model_dump_json())))
    rows = [
        {
            "iteration": i,
            "reward/mean": i / 10,
            "entropy/exact": 1 - i / 10,
            "entropy/predicted_dh": -0.125,
            "eval/countdown/pass@1": i / 100,
        }
        for i in range(1, 7)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("demo", 4),
        ("runs/demo", 4),
        ("runs/demo/checkpoints/step_000002", 2),
        ("runs/demo/checkpoints/step_000002/hf", 2),
    ],
)
def test_a_run_is_its_latest_checkpoint(given: str, step: int, run: Path) -> None:
    name = f"step_{step:06}"
    assert find_model(given) == ModelSource(str(run / "checkpoints" / name / "hf"), run, name)


def test_other_models_are_what_they_are(run: Path, tmp_path: Path) -> None:
    assert find_model("someone/some-model") == ModelSource("someone/some-model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert find_model("mine") == ModelSource("mine")
    (tmp_path / "runs" / "early").mkdir()
    (tmp_path / "runs" / "early" / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="the run runs/early has no checkpoint yet"):
        find_model("early")
    with pytest.raises(ConfigError, match="the model folder models/nothing does not exist"):
        find_model("models/nothing")


# --- eval ---------------------------------------------------------------------------------------------------------------


def asked_of(run: Path, **options: Any) -> RunConfig:
    return configured(find_model(str(run)), Asked(**options))


def test_a_run_is_asked_what_its_own_evaluations_ask(run: Path) -> None:
    config = asked_of(run)
    assert config.model.path.endswith("step_000004/hf")
    assert (config.evaluation.prompts, config.evaluation.samples, config.evaluation.ks) == (6, 4, [1, 4])
    assert (config.sampling.max_tokens, config.sampling.stop) == (9, ["x"])
    assert [e.name for e in config.environments] == ["countdown", "arithmetic"]


def test_options_go_before_the_runs_own(run: Path) -> None:
    changes = {
        "evaluation.prompts": 3,
        "evaluation.samples": 2,
        "evaluation.temperatures": [0.5],
        "sampling.max_tokens": 4,
        "sampling.stop": ["\n"],
        "run.seed": 7,
        "evaluation.ks": None,
    }
    config = asked_of(run, changes={k: v for k, v in changes.items() if v}, raw=True, arguments=("run.seed=5",))
    e = config.evaluation
    assert (e.prompts, e.samples, e.ks, e.temperatures) == (3, 2, [1], [0.5])  # pass@4 has no four samples
    assert (config.sampling.max_tokens, config.sampling.stop, config.run.seed) == (4, ["\n"], 7)
    assert not config.model.chat_template
    assert asked_of(run, changes={"evaluation.ks": parse_ks("2,1"), "evaluation.samples": 8}).evaluation.ks == [1, 2]


def test_an_environment_is_enough(run: Path) -> None:
    config = asked_of(
        run, env="countdown", arguments=("numbers=3", "min_solutions=2"), changes={"sampling.max_tokens": 30}
    )
    (environment,) = config.environments
    assert (environment.name, environment.params) == ("countdown", {"numbers": 3, "min_solutions": 2})
    assert config.sampling.max_tokens == 30 and config.generators.gpus == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env": "countdown", "recipe": "smoke"}, "leave one out"),
        ({"changes": {"evaluation.ks": [1, 9]}}, "pass@9 needs at least 9 samples"),
        ({"env": "countdown", "arguments": ("numbers",)}, "is not an override"),
        ({"arguments": ("evaluation.prompts=0",)}, "give --prompts"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(options: dict[str, Any], words: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        asked_of(run, **options)


def test_ks_are_numbers() -> None:
    assert parse_ks(None) is None
    with pytest.raises(ConfigError, match="--k is '1,x'"):
        parse_ks("1,x")


def test_a_model_without_a_run_needs_an_environment(run: Path) -> None:
    with pytest.raises(ConfigError, match="give --env NAME, or --recipe"):
        configured(ModelSource("someone/some-model"), Asked())


def test_the_numbers_of_an_evaluation(run: Path) -> None:
    config = asked_of(run, arguments=("evaluation.temperatures=[1.0,0.0]",))
    groups = [make_group([1.0, 0.0, 0.0, 1.0]), make_group([0.0, 0.0, 0.0, 0.0])]
    greedy = [Group(group.prompt, group.trajectories[:1]) for group in groups]
    row = metrics({1.0: groups, 0.0: greedy}, config)
    env = groups[0].prompt.env
    right = [sum(t.verdict.correct for t in group.trajectories) for group in groups]
    assert row[f"eval/{env}/pass@1"] == sum(right) / 8
    assert row[f"eval/{env}/pass@4/T=1"] == sum(map(bool, right)) / 2
    assert f"eval/{env}/pass@4/T=0" not in row and f"eval/{env}/pass@1/T=0" in row
    assert row[f"eval/{env}/reward"] == 0.25
    assert (
        row[f"eval/{env}/truncated"]
        == sum(t.verdict.status is Status.TRUNCATED for group in groups for t in group.trajectories) / 8
    )


# --- export -------------------------------------------------------------------------------------------------------------


def test_an_export_is_the_weights_and_a_card_of_the_rows_up_to_them(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = export("demo", tmp_path / "out", said.append)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "README.md", "isentrope.yaml"}
    assert said == [f"exported: {out}, the model, iteration 4 of demo"]
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", "isentrope"],
        "base_model": "someone/some-model",
    }
    assert "after 4 iterations" in text
    assert "| pass@1, held out | 0.01 | 0.04 |" in text  # not .06, which is of a later iteration
    assert "summed over 4 of them: -0.500 nats a token" in text
    assert validate(yaml.safe_load((out / "isentrope.yaml").read_text())).sampling.stop == ["x"]


def test_an_export_of_an_earlier_checkpoint(run: Path, tmp_path: Path) -> None:
    out = export("runs/demo/checkpoints/step_000002", tmp_path / "out", lambda text: None)
    assert "after 2 iterations" in (out / "README.md").read_text()


def test_what_cannot_be_exported_is_a_sentence_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists"):
        export("demo", tmp_path / "there", print)
    with pytest.raises(ConfigError, match="someone/some-model is not a run"):
        export("someone/some-model", tmp_path / "out", print)
    weights = run / "checkpoints" / "step_000004" / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError):
        export("demo", tmp_path / "out", print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "there"]


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.strip()) == (0, f"isentrope {version('isentrope')}")
