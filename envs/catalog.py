"""Environments by name: the built-in ones, and any class of the user as "package.module:Class".

A user's module is found on the Python path, else in the current directory or beside the recipe (`look_in`). It is looked for
last, so that a file named like a library hides none. `module_path` says where that was, for the processes that judge responses.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from envs.base import Environment
from envs.types import Prompt

BUILTIN: dict[str, str] = {
    "appworld": "envs.adapters.appworld:AppWorld",
    "arithmetic": "envs.builtin.arithmetic:Arithmetic",
    "bits": "envs.builtin.guess:Bits",
    "countdown": "envs.builtin.countdown:Countdown",
    "guess": "envs.builtin.guess:Guess",
    "gym": "envs.adapters.gym:Gym",
    "python_program": "envs.builtin.python_program.environment:PythonProgram",
    "questions": "envs.builtin.questions.environment:Questions",
    "reasoning_gym": "envs.adapters.reasoning_gym.environment:ReasoningGym",
    "toolbox": "envs.builtin.toolbox.environment:Toolbox",
}


class UnknownEnvironment(ValueError):
    """No environment has this name; the message has the nearest one and the list."""


class EnvironmentParameterError(ValueError):
    """A parameter is unknown, missing or of the wrong type; the message names the environment and the parameter."""


class BrokenEnvironment(ValueError):
    """A user's module, constructor or prompt raised, or gave what the protocol does not have; the message has file and line."""


_folders: list[str] = []  # given to look_in


def look_in(folder: Path | str) -> None:
    """Users' modules are also looked for in this directory, in this process and where `module_path` goes."""
    path = str(Path(folder).resolve())
    if path not in _folders:
        _folders.append(path)


def module_path() -> tuple[str, ...]:
    """Directories for `look_in` in another process, perhaps on another machine.

    Those below the current directory are there relative to it as well: the working directory of a Ray job is copied to
    every node, to another place on each.
    """
    here = Path.cwd()
    inside = [str(Path(folder).relative_to(here)) for folder in _searched() if Path(folder).is_relative_to(here)]
    return (*_searched(), *inside)


def _searched() -> list[str]:
    return list(dict.fromkeys((str(Path.cwd()), *_folders)))


def load(name: str, params: Mapping[str, Any], seed: int = 0) -> Environment:
    """The environment `Class(seed=seed, **params)`.

    name: a key of BUILTIN, or "package.module:Class". Raises UnknownEnvironment, BrokenEnvironment or
    EnvironmentParameterError; a ValueError or OSError of the constructor (a sentence, for values that cannot work) passes
    through.
    """
    build = find(name)
    _check_parameters(name, build, params)
    try:
        environment = build(seed=seed, **params)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise BrokenEnvironment(f"environment '{name}' cannot be made: {told(error)}") from error
    missing = [method for method in ("size", "prompt", "open") if not callable(getattr(environment, method, None))]
    if missing:
        raise UnknownEnvironment(f"'{name}' is not an environment: it has no {', no '.join(missing)}")
    return environment


def try_out(name: str, environment: Environment) -> None:
    """Ask a user's environment for its first prompt of each split, twice. Raises BrokenEnvironment, one sentence, where the
    answers are not what envs/base.py says."""
    for split in ("train", "eval"):
        try:
            size = environment.size(split)
            if split == "eval" and size == 0:
                continue
            prompt, again = (environment.prompt(split, 0) for _ in range(2))
            session = environment.open(prompt) if isinstance(prompt, Prompt) else None
        except Exception as error:
            raise BrokenEnvironment(f"environment '{name}': its first {split} prompt: {told(error)}") from error
        call = f"environment '{name}': prompt({split!r}, 0)"
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise BrokenEnvironment(f"environment '{name}': size({split!r}) is {size!r}, it must be above 0, or None")
        if not isinstance(prompt, Prompt):
            raise BrokenEnvironment(f"{call} is a {type(prompt).__name__}, it must be an envs.types.Prompt")
        if (prompt.split, prompt.index) != (split, 0):
            raise BrokenEnvironment(f"{call} says that it is prompt {prompt.index} of {prompt.split!r}")
        if prompt != again:
            raise BrokenEnvironment(
                f"{call} is another prompt each time: draw it from envs.tasks.task_random(seed, split, index)"
            )
        try:
            kept = json.loads(json.dumps(prompt.task)) == prompt.task
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise BrokenEnvironment(
                f"{call}: its task must be a dict of JSON values, with strings as keys and no tuples"
            )
        if not callable(getattr(session, "reply", None)):
            raise BrokenEnvironment(
                f"environment '{name}': open(prompt) is a {type(session).__name__} without reply(text)"
            )


def fingerprint(name: str) -> str | None:
    """A hash of the file that a user's environment is in; None for a built-in one, which the version stands for."""
    if name in BUILTIN:
        return None
    file = inspect.getsourcefile(_module(name)[0])
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def describe() -> Iterator[tuple[str, str, str]]:
    """(name, one line on what it is, its parameters with types and defaults), of each built-in environment."""
    for name in BUILTIN:
        build = find(name)
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        yield name, summary, ", ".join(map(_show, _parameters(build).values()))


def _show(parameter: inspect.Parameter) -> str:
    annotation = inspect.formatannotation(parameter.annotation).replace("'", "")
    return f"{parameter.name}: {annotation}" + (
        "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean 'x'?' for the known word most like this one; '' when none is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def _module(name: str) -> tuple[types.ModuleType, str]:
    """The imported module of a name, and the name of the class in it."""
    path = BUILTIN.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise UnknownEnvironment(
            f"there is no environment '{name}'{nearest(name, BUILTIN) or '.'} Known are {', '.join(BUILTIN)}, "
            "and your own as 'package.module:Class'"
        )
    sys.path.extend(folder for folder in _searched() if folder not in sys.path)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name), class_name
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownEnvironment(
                f"environment '{name}': there is no module '{error.name}' on the Python path, nor in {', '.join(_searched())}"
                + ("; a module's name is without .py" if module_name.endswith(".py") else "")
            ) from error
        raise BrokenEnvironment(f"environment '{name}': its module cannot be imported: {told(error)}") from error
    except Exception as error:
        raise BrokenEnvironment(f"environment '{name}': its module cannot be imported: {told(error)}") from error


def find(name: str) -> Any:
    """The class or function that a name of the catalog or "package.module:name" stands for."""
    module, class_name = _module(name)
    found = getattr(module, class_name, None)
    if callable(found):
        return found
    classes = [
        key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    file = getattr(module, "__file__", None)
    message = f"environment '{name}': module '{module.__name__}' ({file or 'built in'}) has no class '{class_name}'"
    hidden = [
        path
        for folder in _searched()
        if (path := Path(folder, f"{module.__name__.replace('.', '/')}.py")).is_file() and str(path) != file
    ]
    if hidden:
        raise UnknownEnvironment(f"{message}; it hides {hidden[0]}: give your file another name")
    raise UnknownEnvironment(f"{message}{nearest(class_name, classes)}")


def told(error: BaseException) -> str:
    """An exception in one line, with the place in the user's code where it was raised: 'mine.py, line 3: KeyError: 7'."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen ")
        and not frame.filename.endswith("importlib/__init__.py")
    ]  # fmt: skip
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {text}" if frames else text


def _parameters(build: Any) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor, without the seed (the run gives it) and without *args and **kwargs."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(build).parameters
    return {key: value for key, value in found.items() if key != "seed" and value.kind not in variadic}


def _check_parameters(name: str, build: Any, params: Mapping[str, Any]) -> None:
    signature = inspect.signature(build).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    if "seed" not in signature and not open_ended:
        raise EnvironmentParameterError(f"environment '{name}': its constructor must take 'seed', an integer")
    known = _parameters(build)
    for key in params:
        if key == "seed":
            raise EnvironmentParameterError(
                f"environment '{name}': 'seed' is not among its parameters, the run gives it"
            )
        if key not in known and not open_ended:
            listed = ", ".join(known) or "none"
            raise EnvironmentParameterError(
                f"environment '{name}' has no parameter '{key}'{nearest(key, known) or '.'} It has {listed}"
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in params:
            raise EnvironmentParameterError(f"environment '{name}' needs the parameter '{key}'")
    hints = _hints(build)
    for key, value in params.items():
        if key in hints and not _fits(value, hints[key]):
            wanted = inspect.formatannotation(hints[key])
            raise EnvironmentParameterError(f"environment '{name}': {key} is {value!r}, it must be {wanted}")


def _hints(build: Any) -> dict[str, Any]:
    """Types of the constructor's parameters; none where they cannot be resolved, which then are not checked."""
    try:
        return typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value has the type. Simple types and unions of them are checked, anything else passes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (str, list, dict, type(None)):
        return isinstance(value, kind)
    return True
