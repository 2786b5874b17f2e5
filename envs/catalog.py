"""Environments by name: the built-in ones, and any class of the user as "package.module:Class"."""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from envs.base import Environment

BUILTIN: dict[str, str] = {
    "arithmetic": "envs.arithmetic:Arithmetic",
    "bits": "envs.guess:Bits",
    "countdown": "envs.countdown:Countdown",
    "guess": "envs.guess:Guess",
    "python_program": "envs.python_program:PythonProgram",
    "questions": "envs.questions:Questions",
    "reasoning_gym": "envs.reasoning_gym_adapter:ReasoningGym",
    "toolbox": "envs.toolbox:Toolbox",
}


class UnknownEnvironment(ValueError):
    """No environment has this name; the message has the nearest one and the list."""


class EnvironmentParameterError(ValueError):
    """A parameter is unknown, missing or of the wrong type; the message names the environment and the parameter."""


def load(name: str, params: Mapping[str, Any], seed: int = 0) -> Environment:
    """The environment `Class(seed=seed, **params)`.

    name: a key of BUILTIN, or "package.module:Class". Raises UnknownEnvironment or EnvironmentParameterError; what the
    constructor raises (a ValueError with a sentence, for values that cannot work) passes through.
    """
    build = _find(name)
    _check_parameters(name, build, params)
    environment = build(seed=seed, **params)
    missing = [method for method in ("size", "prompt", "open") if not callable(getattr(environment, method, None))]
    if missing:
        raise UnknownEnvironment(f"'{name}' is not an environment: it has no {', no '.join(missing)}")
    return environment


def describe() -> Iterator[tuple[str, str, str]]:
    """(name, one line on what it is, its parameters with types and defaults), of each built-in environment."""
    for name in BUILTIN:
        build = _find(name)
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


def _find(name: str) -> Any:
    path = BUILTIN.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise UnknownEnvironment(
            f"there is no environment '{name}'{nearest(name, BUILTIN) or '.'} Known are {', '.join(BUILTIN)}, "
            "and your own as 'package.module:Class'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # an import inside the user's module: that is their error to see
        raise UnknownEnvironment(
            f"environment '{name}': there is no module '{error.name}' on the Python path"
        ) from error
    found = getattr(module, class_name, None)
    if not callable(found):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name
        ]
        raise UnknownEnvironment(
            f"environment '{name}': module '{module_name}' has no class '{class_name}'{nearest(class_name, classes)}"
        )
    return found


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
