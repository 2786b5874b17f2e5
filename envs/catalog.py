"""Loads environments by name: the built-in ones, and any class of your own as "package.module:Class".

Your module is looked up on the Python path, then in the current directory, then beside the recipe (`look_in`). The last two
come after the Python path, so that a file of yours named like a library does not hide the library. `module_path` gives these
directories to other processes, such as the verifiers.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from envs import framing
from envs.base import Environment
from envs.quoting import quoted, shortened
from envs.suggest import did_you_mean
from envs.types import Prompt

BUILTIN: dict[str, str] = {
    "appworld": "envs.adapters.appworld.environment:AppWorld",
    "arithmetic": "envs.builtin.arithmetic:Arithmetic",
    "bits": "envs.builtin.guess:Bits",
    "countdown": "envs.builtin.countdown:Countdown",
    "guess": "envs.builtin.guess:Guess",
    "gym": "envs.adapters.gym.environment:Gym",
    "python_program": "envs.builtin.python_program.environment:PythonProgram",
    "questions": "envs.builtin.questions.environment:Questions",
    "reasoning_gym": "envs.adapters.reasoning_gym.environment:ReasoningGym",
    "toolbox": "envs.builtin.toolbox.environment:Toolbox",
}


class UnknownEnvironment(ValueError):
    """Reports that no environment has this name; the message suggests the nearest name and lists all."""


class EnvironmentParameterError(ValueError):
    """Reports a parameter that is unknown, missing or of the wrong type; the message names the environment and the parameter."""


class BrokenEnvironment(ValueError):
    """Reports that a user's module, constructor or prompt raised, or returned something else than envs/base.py asks for.

    The message has the file and the line in the user's code.
    """


_folders: list[str] = []  # added by look_in


def look_in(folder: Path | str) -> None:
    """Adds a directory in which users' modules are looked up, in this process and in those that get `module_path`."""
    path = str(Path(folder).resolve())
    if path not in _folders:
        _folders.append(path)


def module_path() -> tuple[str, ...]:
    """Returns the directories to pass to `look_in` in another process, perhaps on another machine.

    Those below the current directory are listed a second time as relative paths: Ray copies a job's working directory to
    every node, to a different absolute path on each.
    """
    here = Path.cwd()
    inside = [str(Path(folder).relative_to(here)) for folder in _searched() if Path(folder).is_relative_to(here)]
    return (*_searched(), *inside)


def _searched() -> list[str]:
    return list(dict.fromkeys((str(Path.cwd()), *_folders)))


def load(name: str, params: Mapping[str, Any], seed: int = 0) -> Environment:
    """Returns the environment `Class(seed=seed, **params)`, with the parameters of envs/framing.py around its prompts.

    name: a key of BUILTIN, or "package.module:Class". Raises UnknownEnvironment, EnvironmentParameterError or
    BrokenEnvironment, each with one sentence. A ValueError or OSError of the constructor passes through unchanged: it is how
    a constructor reports values that cannot work.
    """
    build = find(name)
    around = {key: params[key] for key in framing.PARAMETERS if key in params and not _takes(build, key)}
    params = {key: value for key, value in params.items() if key not in around}
    _check_parameters(name, build, params)
    try:
        environment = build(seed=seed, **params)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise BrokenEnvironment(f"environment '{name}' cannot be made: {error_in_one_line(error)}") from error
    missing = [method for method in ("size", "prompt", "open") if not callable(getattr(environment, method, None))]
    if missing:
        raise UnknownEnvironment(
            f"'{name}' is not an environment (see envs/base.py): it has no {', no '.join(missing)}"
        )
    return framing.frame(name, environment, around) if around else environment


def try_out(name: str, environment: Environment) -> None:
    """Checks a user's environment by asking for the first prompt of each split, twice.

    Raises BrokenEnvironment, one sentence, where an answer is not what envs/base.py asks for.
    """
    for split in ("train", "eval"):
        try:
            size = environment.size(split)
            if split == "eval" and size == 0:
                continue
            prompt, again = (environment.prompt(split, 0) for _ in range(2))
            session = environment.open(prompt) if isinstance(prompt, Prompt) else None
        except Exception as error:
            raise BrokenEnvironment(
                f"environment '{name}': its first {split} prompt: {error_in_one_line(error)}"
            ) from error
        call = f"environment '{name}': prompt({split!r}, 0)"
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise BrokenEnvironment(
                f"environment '{name}': size({split!r}) is {size!r}, it must be above 0, or None for no end"
            )
        if not isinstance(prompt, Prompt):
            raise BrokenEnvironment(f"{call} is a {type(prompt).__name__}, it must be an envs.types.Prompt")
        if (prompt.split, prompt.index) != (split, 0):
            raise BrokenEnvironment(
                f"{call} has index {prompt.index} and split {prompt.split!r}: pass on the two arguments"
            )
        if prompt != again:
            raise BrokenEnvironment(
                f"{call} is another prompt each time: take all randomness from envs.tasks.task_random(seed, split, index)"
            )
        try:
            is_json = json.loads(json.dumps(prompt.task)) == prompt.task
        except (TypeError, ValueError):
            is_json = False
        if not is_json:
            raise BrokenEnvironment(
                f"{call}: its task must be a dict of JSON values, with strings as keys and no tuples"
            )
        if not callable(getattr(session, "reply", None)):
            raise BrokenEnvironment(
                f"environment '{name}': open(prompt) is a {type(session).__name__} without a method reply(text)"
            )


def fingerprint(name: str) -> str | None:
    """Returns a hash of the file that defines a user's environment; None for a built-in one, which the package version covers."""
    if name in BUILTIN:
        return None
    file = inspect.getsourcefile(_module(name)[0])
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def describe() -> Iterator[tuple[str, str, str]]:
    """Yields (name, one-line summary, parameters with types and defaults) of each built-in environment."""
    for name in BUILTIN:
        build = find(name)
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        yield name, summary, ", ".join(map(_show, _parameters(build).values()))


def _show(parameter: inspect.Parameter) -> str:
    annotation = inspect.formatannotation(parameter.annotation).replace("'", "")
    return f"{parameter.name}: {annotation}" + (
        "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    )


def _module(name: str) -> tuple[types.ModuleType, str]:
    """Imports the module of a name; returns it with the name of the class in it."""
    path = BUILTIN.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise UnknownEnvironment(
            f"unknown environment '{shortened(name)}': {did_you_mean(name, BUILTIN)}known are {', '.join(BUILTIN)}, "
            "and your own as 'package.module:Class'"
        )
    sys.path.extend(folder for folder in _searched() if folder not in sys.path)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name), class_name
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UnknownEnvironment(
                f"environment '{name}': no module '{missing}' on the Python path, nor in {', '.join(_searched())}"
                + ("; write the module's name without .py" if module_name.endswith(".py") else "")
            ) from error
        raise BrokenEnvironment(
            f"environment '{name}': its module cannot be imported: {error_in_one_line(error)}"
        ) from error


def find(name: str) -> Any:
    """Returns the class or function that a key of BUILTIN or "package.module:name" names."""
    module, class_name = _module(name)
    target = getattr(module, class_name, None)
    if callable(target):
        return target
    classes = [
        key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    file = vars(module).get("__file__")  # built-in modules have none
    message = f"environment '{name}': module '{module.__name__}' ({file or 'built in'}) has no class '{class_name}'"
    hidden = [
        path
        for folder in _searched()
        if (path := Path(folder, f"{module.__name__.replace('.', '/')}.py")).is_file() and str(path) != file
    ]
    if hidden:
        raise UnknownEnvironment(f"{message}; it hides {hidden[0]}: give your file another name")
    raise UnknownEnvironment(
        f"{message}; {did_you_mean(class_name, classes)}its classes are {', '.join(classes) or 'none'}"
    )


def error_in_one_line(error: BaseException) -> str:
    """Returns an exception as one line with the place in the user's code that raised it: 'mine.py, line 3: KeyError: 7'."""
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
    """Returns the constructor's parameters, except the seed (the run gives it) and *args and **kwargs."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(build).parameters
    return {key: value for key, value in signature.items() if key != "seed" and value.kind not in variadic}


def _takes(build: Any, key: str) -> bool:
    """Returns whether a constructor has a parameter of its own by this name, or takes any."""
    signature = inspect.signature(build).parameters
    return key in signature or any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())


def _check_parameters(name: str, build: Any, params: Mapping[str, Any]) -> None:
    signature = inspect.signature(build).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    if "seed" not in signature and not open_ended:
        raise EnvironmentParameterError(
            f"environment '{name}': its constructor must take a parameter 'seed', an integer"
        )
    known = _parameters(build)
    for key in params:
        if key == "seed":
            raise EnvironmentParameterError(
                f"environment '{name}': leave 'seed' out of its parameters, the run gives it (run.seed)"
            )
        if key not in known and not open_ended:
            all_known = tuple(dict.fromkeys((*known, *framing.PARAMETERS)))
            raise EnvironmentParameterError(
                f"environment '{name}' has no parameter '{shortened(key)}': {did_you_mean(key, all_known)}"
                f"it has {', '.join(all_known)}"
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in params:
            raise EnvironmentParameterError(f"environment '{name}' needs the parameter '{key}'")
    hints = _hints(build)
    for key, value in params.items():
        if key in hints and not _fits(value, hints[key]):
            type_name = inspect.formatannotation(hints[key])
            raise EnvironmentParameterError(f"environment '{name}': {key} is {quoted(value)}, it must be {type_name}")


def _hints(build: Any) -> dict[str, Any]:
    """Returns the types of the constructor's parameters; {} where they cannot be resolved, which leaves them unchecked."""
    try:
        return typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether the value has the type; simple types and unions of them are checked, any other type accepts all values."""
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
