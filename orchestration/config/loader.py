"""Reads what a person writes: recipes, and overrides at dotted keys; turns pydantic's errors into one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from envs.quoting import quoted, shortened
from envs.suggest import nearest
from learner.entropy.build import CONTROLLERS, METHODS
from learner.settings import KindSettings
from orchestration.errors import ConfigError
from orchestration.plain_yaml import MAX_DEPTH, check_text, parse
from orchestration.text import one_line

# Sections that may be written as one value, and the key this value is.
SHORTHAND = {"precision": "mode", "learner.lora": "rank"}
# Keys that were called otherwise before: recipes, overrides and the configurations of older runs may go on saying so.
RENAMED = {
    "batch.replies": "batch.responses",
    "weights.probe_replies": "weights.probe_responses",
    "replies_per_prompt": "responses_per_prompt",  # of init-model
}


def read_text(path: Path) -> str:
    """Reads a file. Raises ConfigError where it cannot be read or is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shortened(str(path))} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None  # without the path once more
        raise ConfigError(f"{shortened(str(path))} cannot be read: {reason or shortened(one_line(error))}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a file. Raises ConfigError where it is not a mapping."""
    text = read_text(path)
    try:
        data = parse(text)
    except ValueError as error:
        raise ConfigError(f"{shortened(str(path))} is not valid YAML: {shortened(one_line(error), 500)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{shortened(str(path))} has to be a mapping of sections, not {type(data).__name__}")
    return with_present_names(data)


def with_present_names(data: dict[str, Any]) -> dict[str, Any]:
    """Renames, in place, the keys that `RENAMED` lists and the method repo_d of before, now repo; returns `data`."""
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        at = data.get(section)
        name = new.rpartition(".")[2]
        if isinstance(at, dict) and key in at and name not in at:
            at[name] = at.pop(key)
    entropy = data.get("entropy")
    method = entropy.get("method") if isinstance(entropy, dict) else None
    # What was repo_d had a key `centred`, which every run's config.yaml holds, and the present repo_d has not.
    if isinstance(method, dict) and method.get("kind") == "repo_d" and "centred" in method:
        method["kind"] = "repo"
    return data


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Parses `a.b=c`, `--a.b=c` and `--a.b c`; values are YAML. Raises ConfigError."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                word, key = shortened(word), shortened(key)
                raise ConfigError(f"'{word}' is not an override: write {key}=VALUE or --{key} VALUE")
            text = rest.pop(0)
        try:
            value = parse(text, else_text=True)
            check_text(key)
        except ValueError as error:
            raise ConfigError(f"override {shortened(key)}: {error}") from None
        pairs.append((RENAMED.get(key, key), value))
    return pairs


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets data[a][b] to `value` for key a.b; a number indexes a list. Unknown keys are left to validation, which names the
    nearest.

    A section with a shorthand is one whichever way it is written: `precision=bf16` sets precision.mode and leaves the rest.
    """
    at: Any = data
    parts = RENAMED.get(key, key).split(".")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"override {shortened(key)}: it has {len(parts)} parts and a key has {MAX_DEPTH} at most")
    for section, inner in SHORTHAND.items():
        _spell_out(data, parts, section, inner, value)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(at, list):
            if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(at):
                part = shortened(part)
                raise ConfigError(f"override {shortened(key)}: '{part}' is not an index into a list of {len(at)}")
            index: Any = int(part)
        elif isinstance(at, dict):
            index = part
            if not last:
                at.setdefault(part, {})
        else:
            section = shortened(".".join(parts[:i]))
            raise ConfigError(f"override {shortened(key)}: {section} is a value, not a section")
        if last:
            at[index] = value
        at = at[index]


def _spell_out(data: dict[str, Any], parts: list[str], section: str, inner: str, value: Any) -> None:
    """Makes a section of one that has a shorthand, where the key `parts` leads to it or into it; `parts` may get one more."""
    *above, name = section.split(".")
    if parts[: len(above) + 1] != [*above, name]:
        return
    at: Any = data
    for part in above:
        at = at.get(part) if isinstance(at, dict) else None
    if isinstance(at, dict) and _is_short(at.get(name)):
        at[name] = {inner: at[name]}
    elif isinstance(at, dict) and name in at and at[name] is None and len(parts) > len(above) + 1:
        at[name] = {}
    if len(parts) == len(above) + 1 and _is_short(value):
        parts.append(inner)
        if isinstance(at, dict) and name in at and at[name] is None:
            at[name] = {}


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def sentence(error: ValidationError, data: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Puts the first of pydantic's errors about `data`, meant for `model`, into one sentence, with how many more there are."""
    first = error.errors()[0]
    where = shortened(".".join(str(x) for x in first["loc"]))
    if first["type"] == "extra_forbidden":
        text = _unknown(first["loc"], data, model)
    elif first["type"] == "missing":
        text = f"{where} is missing: give it in the recipe or as {where}=VALUE"
    elif first["type"] == "value_error":
        cause = first.get("ctx", {}).get("error")
        text = f"{where}: {cause}" if where else str(cause)
    else:
        text = f"{where} is {quoted(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


def _unknown(location: tuple[int | str, ...], data: Any, model: Any) -> str:
    """Walks the models to where an unknown key stands and names its nearest neighbour."""
    for part in location[:-1]:
        data = data[part]
        if isinstance(part, int):
            continue
        fields = _fields(model)
        if part not in fields:
            break
        annotation = fields[part].annotation
        model = next((a for a in get_args(annotation) if _fields(a)), annotation)
    if model is KindSettings:  # which settings they are, the kind says
        model = (METHODS if location[-2] == "method" else CONTROLLERS)[data["kind"]].Settings
    key, known = str(location[-1]), list(_fields(model))
    return f"unknown key {shortened('.'.join(map(str, location)))}{_nearest(key, known)}"


def _fields(annotation: Any) -> dict[str, FieldInfo]:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation.model_fields if is_model else {}


def _nearest(key: str, known: Sequence[str]) -> str:
    near = nearest(key, known)
    return f": did you mean '{near}'?" if near else f": known there: {', '.join(known)}"


def local(path: str) -> str:
    """Names a local folder in full, since actors have working directories of their own; a hub id stays as it is."""
    return str(Path(path).resolve()) if os.path.exists(path) else path  # noqa: PTH110 - Path raises for an overlong name
