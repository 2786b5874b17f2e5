"""An export that is pushed: huggingface_hub's own client against a server that plays the hub, and what is refused before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save_file
from support import hub_stub
from support.builders import config_data
from support.hub_stub import TOKEN, Hub
from typer.testing import CliRunner

from learner.checkpoint import Checkpoints
from orchestration.cli import app
from orchestration.commands.export import export
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError, IsentropeError

REPO = "someone/sums"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of a run of two iterations with a checkpoint, in the present directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "demo"
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    draft = checkpoints.begin(2)
    (draft / "hf").mkdir(parents=True)
    (draft / "hf" / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.arange(3, dtype=np.float32)}, draft / "hf" / "model.safetensors")
    checkpoints.finish(draft, {"iteration": 2})
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(validate(config_data()).model_dump_json())))
    rows = [{"iteration": i, "reward/mean": i / 10, "entropy/exact": 1.0} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS, which the stub has
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stub.serving() as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        yield serving


def test_what_arrives_is_the_folder_in_one_commit_of_a_private_repository(run: Path, hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    out = export("demo", tmp_path / "out", said.append, push=REPO)
    repo = hub.repos[REPO]
    assert repo["private"] is True
    assert repo["files"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert repo["files"].keys() == {"config.json", "model.safetensors", "README.md", "isentrope.yaml"}
    assert load(repo["files"]["model.safetensors"])["w"].tolist() == [0, 1, 2]
    assert hub.messages == ["demo after 2 iterations"]
    assert said[1].startswith(f"pushed: {hub.url}/{REPO}/commit/")


def test_the_command_pushes_to_a_public_repository_if_it_is_told_to(run: Path, hub: Hub) -> None:
    done = CliRunner().invoke(app, ["export", "demo", "out", "--push", REPO, "--public"])
    assert done.exit_code == 0, done.output
    assert hub.repos[REPO]["private"] is False and "README.md" in hub.repos[REPO]["files"]


def test_a_repository_that_is_there_is_added_to_and_a_public_one_only_if_it_is_told_to(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, private=True)
    hub.repos[REPO]["files"]["notes.md"] = b"keep"
    export("demo", tmp_path / "out", print, push=REPO)
    assert hub.repos[REPO]["files"]["notes.md"] == b"keep" and "model.safetensors" in hub.repos[REPO]["files"]
    hub.add("someone/open", private=False)
    with pytest.raises(ConfigError, match="someone/open is there and everybody can read it: give --public"):
        export("demo", tmp_path / "other", print, push="someone/open")
    assert not (tmp_path / "other").exists() and not hub.repos["someone/open"]["files"]
    export("demo", tmp_path / "other", print, push="someone/open", public=True)
    assert hub.repos["someone/open"]["files"]


@pytest.mark.parametrize(
    ("variables", "repo", "sentence"),
    [
        ({"HF_TOKEN": ""}, REPO, "--push needs a token of the hub that may write, in the variable HF_TOKEN, which is not set"),
        ({"HF_HUB_OFFLINE": "1"}, REPO, "--push needs the hub and HF_HUB_OFFLINE is 1, which keeps from it: unset HF_HUB_OFFLINE"),
        ({"TRANSFORMERS_OFFLINE": "yes"}, REPO, "TRANSFORMERS_OFFLINE is yes"),
        ({}, "sums", "--push 'sums': a repository is OWNER/NAME"),
        ({}, "a/b/c", "--push 'a/b/c': a repository is OWNER/NAME"),
        ({}, "some one/sums", "--push 'some one/sums': a repository is OWNER/NAME"),
        ({}, "someone/" + "x" * 97, "96 of them at most"),
        ({"HF_TOKEN": "hf_another"}, REPO, "the hub does not answer for someone/sums with this token: .*401"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, REPO, "the hub does not answer for someone/sums"),
    ],
)  # fmt: skip
def test_what_cannot_be_pushed_is_a_sentence_and_writes_nothing(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    repo: str,
    sentence: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence) as refused:
        export("demo", tmp_path / "out", print, push=repo)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert not (tmp_path / "out").exists() and not hub.repos
    if "token" not in sentence and "does not answer" not in sentence:
        assert not hub.asked


def test_a_login_that_the_machine_keeps_is_not_used(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    kept = tmp_path / "token"
    kept.write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(kept))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="needs a token"):
        export("demo", tmp_path / "out", print, push=REPO)


def test_a_push_that_the_hub_refuses_leaves_the_folder_and_says_how_to_push_it(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.full = True
    with pytest.raises(
        IsentropeError, match=r"is written and the hub did not take it as someone/sums \(.*storage limit"
    ) as error:
        export("demo", tmp_path / "out", print, push=REPO)
    assert error.value.exit_code == 1 and TOKEN not in str(error.value)
    assert f"`hf upload {REPO} {tmp_path / 'out'}` pushes it" in str(error.value)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_push_no_hub_is_asked(run: Path, hub: Hub, tmp_path: Path) -> None:
    export("demo", tmp_path / "out", print)
    assert not hub.asked


def test_an_adapter_is_pushed_in_peft_s_format(run: Path, hub: Hub, tmp_path: Path) -> None:
    weights: Any = run / "checkpoints" / "step_000002" / "hf"
    out = tmp_path / "adapter"
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    draft = checkpoints.begin(4)
    (draft / "hf").mkdir(parents=True)
    (draft / "hf" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/some-model"}')
    save_file({"a": np.ones(2, np.float32)}, draft / "hf" / "adapter_model.safetensors")
    checkpoints.finish(draft, {"iteration": 4})
    assert weights.is_dir()
    export("demo", out, print, push=REPO)
    assert hub.repos[REPO]["files"].keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "isentrope.yaml",
    }
