"""Tests what a submitted run takes with it: by upload what a relative path names, by path what an absolute one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.builders import config_data

from envs import catalog
from orchestration.config.run_config import load_config
from orchestration.errors import ConfigError
from orchestration.jobs.packing import Package, pack


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with a model, data, a module and what no run needs; it is the current directory."""
    folder = tmp_path / "project"
    (folder / "models" / "tiny").mkdir(parents=True)
    (folder / "models" / "tiny" / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    (folder / "models" / "tiny" / "__pycache__").mkdir()
    (folder / "models" / "tiny" / "__pycache__" / "x.pyc").write_text("")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("{}\n")
    (folder / "games").mkdir()
    (folder / "games" / "swaps.py").write_text("")
    (folder / "games" / "helper.py").write_text("")
    (folder / "games" / "notes.txt").write_text("not needed")
    (folder / ".gitignore").write_text("models/\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(catalog, "_folders", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    return folder


def packed(project: Path, working_dir: Path | None = None, **changes: Any) -> Package:
    """Returns the package of games/run.yaml with these sections in place of its own."""
    data = config_data() | {
        "run": {"name": "one", "iterations": 1, "dir": "/shared/runs"},
        "model": {"path": "models/tiny"},
        "environments": [{"name": "swaps:Swaps", "params": {"path": "data/train.jsonl", "letters": "abc"}}],
    }
    recipe = project / "games" / "run.yaml"
    recipe.write_text(yaml.safe_dump(data | changes))
    return pack("games/run.yaml", load_config("games/run.yaml"), working_dir)


def test_what_is_needed_goes_along_and_nothing_else(project: Path) -> None:
    package = packed(project)
    assert sorted(package.files) == [
        "data/train.jsonl", "games/helper.py", "games/run.yaml", "games/swaps.py", "models/tiny/config.json",
    ]  # fmt: skip
    assert package.recipe == "games/run.yaml"
    assert {item.key: bool(item.files) for item in package.items} == {
        "recipe": True, "environment": True, "model.path": True, "environments.0.params.path": True, "run.dir": False,
    }  # fmt: skip
    assert package.size == sum((project / name).stat().st_size for name in package.files)


def test_the_package_is_a_folder_with_the_same_paths(project: Path, tmp_path: Path) -> None:
    package, folder = packed(project), tmp_path / "package"
    package.write(folder)
    assert (folder / "models/tiny/config.json").read_text() == (project / "models/tiny/config.json").read_text()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(package.files)


def test_absolute_paths_and_hub_ids_are_not_uploaded(project: Path) -> None:
    environments = [{"name": "questions", "params": {"path": str(project / "data" / "train.jsonl")}}]
    package = packed(project, environments=environments, model={"path": "Qwen/Qwen2.5-0.5B"})
    assert list(package.files) == ["games/run.yaml"]
    notes = {item.key: item.note for item in package.items}
    assert "hub" in notes["model.path"] and "every node" in notes["environments.0.params.path"]


def test_a_shipped_recipe_is_named_and_not_sent(project: Path) -> None:
    package = pack("smoke", load_config("smoke", ["run.dir=/shared", "model.path=models/tiny"]))
    assert package.recipe == "smoke" and list(package.files) == ["models/tiny/config.json"]


def test_a_working_directory_goes_whole_but_what_git_ignores(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    package = packed(project, Path())
    assert "games/notes.txt" in package.files
    assert "models/tiny/config.json" in package.files  # the run needs it, whatever .gitignore says
    assert ".gitignore" not in package.files  # Ray would leave the model out


def test_a_working_directory_outside_git_goes_whole_but_what_is_hidden(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("a.txt", ".hidden/key", "runs/old/metrics.jsonl", "__pycache__/x.pyc"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("")
    package = pack("smoke", load_config("smoke", ["run.dir=/shared", "model.path=Qwen/x"]), other)
    assert list(package.files) == ["a.txt"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run": {"name": "one", "iterations": 1}}, "run.dir is runs, .*give run.dir=PATH"),
        ({"model": {"path": "models/none"}}, "models/none does not exist"),
        (
            {"environments": [{"name": "questions", "params": {"path": "~/x.jsonl"}}]},
            "a cluster's home folder is another",
        ),
        (
            {"environments": [{"name": "questions", "params": {"path": "../outside.jsonl"}}]},
            "outside the working directory",
        ),
    ],
)
def test_what_cannot_work_there_is_refused_here(project: Path, changes: dict[str, Any], sentence: str) -> None:
    (project.parent / "outside.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=sentence) as caught:
        packed(project, **changes)
    assert "\n" not in str(caught.value)


def test_a_module_that_would_hide_a_package_of_ours_is_refused(project: Path) -> None:
    (project / "games" / "learner.py").write_text("")
    assert "games/learner.py" in packed(project).files  # not at the top, so it hides nothing
    (project / "swaps.py").write_text("")
    (project / "games" / "swaps.py").unlink()
    (project / "learner.py").write_text("")
    with pytest.raises(ConfigError, match="hide the package of that name"):
        packed(project)
