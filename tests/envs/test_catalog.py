"""Tests names, parameters, and errors that say what to write instead."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import catalog
from envs.builtin.countdown import Countdown


def test_seed_and_parameters_reach_the_constructor() -> None:
    tasks = catalog.load("countdown", {"numbers": 3, "min_solutions": 2}, seed=5)
    assert isinstance(tasks, Countdown)
    assert tasks.prompt("train", 0) == Countdown(5, numbers=3, min_solutions=2).prompt("train", 0)
    assert tasks.prompt("train", 0) != Countdown(0, numbers=3, min_solutions=2).prompt("train", 0)


def test_a_class_of_the_user_is_found_by_path() -> None:
    assert isinstance(catalog.load("envs.builtin.countdown:Countdown", {}), Countdown)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuontdown", ["did you mean 'countdown'", "arithmetic", "reasoning_gym"]),
        ("zzz", ["'zzz'", "countdown", "package.module:Class"]),
        ("no_such_module_here:Thing", ["no module 'no_such_module_here'"]),
        ("envs.nowhere:Thing", ["no module 'envs.nowhere'"]),
        ("envs.builtin.countdown:Countdwon", ["did you mean 'Countdown'"]),
        ("fractions:Fraction", []),
    ],
)
def test_unknown_environments(name: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        catalog.load(name, {})
    assert isinstance(caught.value, catalog.UnknownEnvironment | catalog.EnvironmentParameterError)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("countdown", {"number": 4}, ["no parameter 'number'", "did you mean 'numbers'"]),
        ("countdown", {"qqqq": 4}, ["no parameter 'qqqq'", "min_solutions"]),
        ("countdown", {"numbers": "4"}, ["numbers is '4'", "must be int"]),
        ("countdown", {"numbers": True}, ["numbers is True"]),
        ("countdown", {"seed": 4}, ["'seed'", "the run gives it"]),
        ("questions", {}, ["needs the parameter 'path'"]),
        ("questions", {"path": None}, ["path is None", "must be str"]),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(catalog.EnvironmentParameterError) as caught:
        catalog.load(name, params)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_constructor_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="numbers is 1, it must be 2 to 6") as caught:
        catalog.load("countdown", {"numbers": 1})
    assert type(caught.value) is ValueError


def test_a_class_that_is_no_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        def __init__(self, seed: int) -> None: ...

        def prompt(self) -> None: ...

    module = types.ModuleType("half_made")
    module.Half = Half  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "half_made", module)
    with pytest.raises(catalog.UnknownEnvironment, match="no size, no open"):
        catalog.load("half_made:Half", {})


USERS = """
import random
from envs.types import Message, Prompt, Verdict

class Mine:
    def __init__(self, seed, fault=""):
        self.fault = fault
        {"": 0}[fault if fault == "made" else ""]
    def size(self, split):
        return {"size": 0, "held": None if split == "train" else 0}.get(self.fault)
    def prompt(self, split, index):
        {"": 0}[fault if (fault := self.fault) == "prompt" else ""]
        where = "train" if self.fault == "split" else split
        text = str(random.random()) if self.fault == "random" else f"{split} {index}"
        task = {1: 2} if self.fault == "task" else {"set": {1}} if self.fault == "set" else {"answer": 1}
        return text if self.fault == "text" else Prompt("mine", where, index, (Message("user", text),), task)
    def open(self, prompt):
        return None if self.fault == "session" else self
    def reply(self, text):
        return Verdict(1.0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a directory of user modules that is on no path; undoes what looking there adds to this process."""
    monkeypatch.setattr(catalog, "_folders", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_beside_the_recipe_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "beside").mkdir()
    (folder / "beside" / "users_game.py").write_text(USERS)
    with pytest.raises(catalog.UnknownEnvironment, match=r"no module 'users_game' on the Python path, nor in /"):
        catalog.load("users_game:Mine", {})
    catalog.look_in(folder / "beside")
    catalog.try_out("users_game:Mine", catalog.load("users_game:Mine", {}))
    with pytest.raises(catalog.UnknownEnvironment, match="did you mean 'Mine'"):
        catalog.load("users_game:Mien", {})
    with pytest.raises(catalog.UnknownEnvironment, match=r"module's name without \.py"):
        catalog.load("users_game.py:Mine", {})
    monkeypatch.chdir(folder)
    assert catalog.module_path() == (str(folder), str(folder / "beside"), ".", "beside")


def test_a_module_in_the_current_directory_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "users_game.py").write_text(USERS)
    monkeypatch.chdir(folder)
    catalog.load("users_game:Mine", {})


def test_a_file_that_a_library_hides_is_named(folder: Path) -> None:
    (folder / "fractions.py").write_text(USERS)
    catalog.look_in(folder)
    with pytest.raises(catalog.UnknownEnvironment, match=rf"it hides {folder}/fractions.py: give your file another"):
        catalog.load("fractions:Mine", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_installed_anywhere\n", ["broken_game.py, line 1: ModuleNotFoundError", "not_installed_anywhere"]),
        ("x = 1\ny = {}[x]\n", ["broken_game.py, line 2: KeyError: 1"]),
        ("def f(:\n", ["broken_game.py, line 1: SyntaxError"]),
    ],
)
def test_a_module_that_raises_is_named_with_its_line(folder: Path, text: str, words: list[str]) -> None:
    (folder / "broken_game.py").write_text(text)
    catalog.look_in(folder)
    with pytest.raises(catalog.BrokenEnvironment) as caught:
        catalog.load("broken_game:Thing", {})
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("made", "cannot be made: users_game.py, line 8: KeyError: 'made'"),
        ("size", "size\\('train'\\) is 0, it must be above 0"),
        ("prompt", "first train prompt: users_game.py, line 12: KeyError"),
        ("text", "prompt\\('train', 0\\) is a str, it must be an envs.types.Prompt"),
        ("split", "prompt\\('eval', 0\\) has index 0 and split 'train'"),
        ("random", "is another prompt each time"),
        ("task", "its task must be a dict of JSON values"),
        ("set", "its task must be a dict of JSON values"),
        ("session", "open\\(prompt\\) is a NoneType without a method reply"),
    ],
)
def test_a_broken_protocol_is_reported(folder: Path, fault: str, words: str) -> None:
    (folder / "users_game.py").write_text(USERS)
    catalog.look_in(folder)
    with pytest.raises(catalog.BrokenEnvironment, match=words):
        catalog.try_out("users_game:Mine", catalog.load("users_game:Mine", {"fault": fault}))


def test_an_environment_may_hold_out_nothing(folder: Path) -> None:
    (folder / "users_game.py").write_text(USERS)
    catalog.look_in(folder)
    catalog.try_out("users_game:Mine", catalog.load("users_game:Mine", {"fault": "held"}))


def test_a_models_key_follows_the_file_of_an_environment(folder: Path) -> None:
    file = folder / "users_game.py"
    file.write_text(USERS)
    catalog.look_in(folder)
    first = catalog.fingerprint("users_game:Mine")
    file.write_text(USERS + "# changed\n")
    assert first and catalog.fingerprint("users_game:Mine") not in (first, None)
    assert catalog.fingerprint("countdown") is None


def test_describe_needs_no_adapted_library() -> None:
    rows = {name: (summary, parameters) for name, summary, parameters in catalog.describe()}
    assert set(rows) == set(catalog.BUILTIN)
    assert "numbers: int = 4" in rows["countdown"][1] and "seed" not in rows["countdown"][1]
    assert rows["questions"][1].startswith("path: str, eval_path: str | None = None")
    assert all(summary.endswith(".") for summary, _ in rows.values())
    listing = "import sys; from envs import catalog; list(catalog.describe()); print(*sys.modules)"
    root = Path(envs.__file__).parent.parent
    output = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True, cwd=root
    ).stdout
    assert not {"reasoning_gym", "math_verify", "sympy", "numpy", "torch"} & set(output.split())
