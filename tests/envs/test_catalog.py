"""Names, parameters, and errors that say what to write instead."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import catalog
from envs.countdown import Countdown


def test_seed_and_parameters_reach_the_constructor() -> None:
    tasks = catalog.load("countdown", {"numbers": 3, "min_solutions": 2}, seed=5)
    assert isinstance(tasks, Countdown)
    assert tasks.prompt("train", 0) == Countdown(5, numbers=3, min_solutions=2).prompt("train", 0)
    assert tasks.prompt("train", 0) != Countdown(0, numbers=3, min_solutions=2).prompt("train", 0)


def test_a_class_of_the_user_is_found_by_path() -> None:
    assert isinstance(catalog.load("envs.countdown:Countdown", {}), Countdown)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuontdown", ["did you mean 'countdown'", "arithmetic", "reasoning_gym"]),
        ("zzz", ["'zzz'", "countdown", "package.module:Class"]),
        ("no_such_module_here:Thing", ["no module 'no_such_module_here'"]),
        ("envs.nowhere:Thing", ["no module 'envs.nowhere'"]),
        ("envs.countdown:Countdwon", ["did you mean 'Countdown'"]),
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


def test_a_broken_import_inside_the_users_module_is_theirs_to_see(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_environment.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        catalog.load("broken_environment:Thing", {})


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
