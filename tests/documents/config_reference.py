"""Writes docs/configuration.md from the configuration classes.

Run `python tests/documents/config_reference.py > docs/configuration.md`. Keys, types and defaults come from pydantic. The meaning
of a key is its `description`, else the sentence in config_meanings.py, else the comment at its declaration. A test compares the
file with what this prints, and asks for a meaning of every key.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from learner.entropy import build  # noqa: E402
from orchestration.config.run_config import RunConfig  # noqa: E402
from tests.documents.config_meanings import MEANINGS  # noqa: E402

HEADER = """\
# Configuration

<!-- Generated from the configuration classes: python tests/documents/config_reference.py > docs/configuration.md -->

A recipe is a YAML file with the sections below. Every key can be set on the command line as `section.key=value` or
`--section.key value`; values are YAML, and a number indexes a list (`environments.0.params.high=6`). An unknown key, a
value of another type and a combination that cannot work are refused with one sentence before anything is started.
"required" means that the recipe has to give the key. `null` as a default means that the key is off, or is derived as its
meaning says. Names that keys had before (`batch.replies`, `weights.probe_replies`) are still read.

`isentrope train RECIPE --dry-run` prints the whole configuration of a run with all defaults filled in.
"""

# Sections whose settings depend on `kind`: the path of the key, and the kinds that are listed under it.
KINDS = {"entropy.method": build.METHODS, "entropy.controller": build.CONTROLLERS, "diversity.controller": {}}


def reference() -> str:
    """Returns the whole page."""
    return HEADER + "".join(_sections(RunConfig, "")) + "\n"


def undocumented() -> list[str]:
    """Lists the keys that have no meaning."""
    return [key for key, meaning in _all_meanings(RunConfig, "") if not meaning]


def unknown_meanings() -> list[str]:
    """Lists the keys of `MEANINGS` that the configuration does not have."""
    known = {key for key, _ in _all_meanings(RunConfig, "")}
    starred = {_starred(key) for key in known}
    return sorted(MEANINGS.keys() - known - starred)


def _all_meanings(model: type[BaseModel], at: str) -> Iterator[tuple[str, str]]:
    for path, section, _ in _walk(model, at):
        for name, field in section.model_fields.items():
            if name != "kind" or "." not in path or path.rpartition(".")[0] not in KINDS:
                key = f"{path}.{name}" if path else name
                if path or not _models(field):
                    yield key, _meaning(section, name, field, key)


def _walk(model: type[BaseModel], at: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yields (dotted path, class, note) of the model and of every section below it, in the order of declaration."""
    yield at, model, ""
    for name, field in model.model_fields.items():
        key = f"{at}.{name}" if at else name
        if key in KINDS:
            for kind, method in KINDS[key].items():
                if method.Settings.model_fields.keys() - {"kind"}:
                    yield f"{key}.{kind}", method.Settings, f"with `kind: {kind}`"
            continue
        if at and key == "stages[].environments":
            continue
        for section, shape in _models(field):
            yield from _walk(section, key + shape)


def _sections(model: type[BaseModel], at: str) -> Iterator[str]:
    for path, section, note in _walk(model, at):
        if not path:
            continue
        kinded = path.rpartition(".")[0] in KINDS
        heading = f"{path.rpartition('.')[0]}` {note}" if kinded else f"{path}`"
        yield f"\n{'###' if '.' in path else '##'} `{heading}\n"
        if text := _prose(section):
            yield f"\n{text}\n"
        yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
        for name, field in section.model_fields.items():
            if not (kinded and name == "kind"):
                key = f"{path}.{name}"
                default = "see meaning" if key in KINDS else _default(field)
                row = (f"`{name}`", _type(field), default, _meaning(section, name, field, key))
                yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"


def _models(field: FieldInfo) -> list[tuple[type[BaseModel], str]]:
    """Returns the sections in an annotation; elements of a list have "[]" behind their path, values of a mapping "{}"."""
    models: list[tuple[type[BaseModel], str]] = []

    def look(annotation: Any, shape: str) -> None:
        origin = typing.get_origin(annotation)
        if isinstance(annotation, type) and origin is None and issubclass(annotation, BaseModel):
            models.append((annotation, shape))
        elif origin is not None and origin is not typing.Literal:
            inner = "[]" if origin in (list, tuple) else shape
            if origin is not dict:
                for argument in typing.get_args(annotation):
                    look(argument, inner)

    look(field.annotation, "")
    return models


def _prose(section: type[BaseModel]) -> str:
    """Returns the paragraphs of the docstring that a class has itself, with tables as code blocks."""
    text = inspect.cleandoc(section.__doc__ or "") if "__doc__" in vars(section) else ""
    paragraphs = [
        f"```\n{p}\n```" if any("  " in line.strip() for line in p.split("\n")) else p for p in text.split("\n\n")
    ]
    return "\n\n".join(p for p in paragraphs if p.strip("`\n"))


def _type(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in bounds.items() if hasattr(m, key)]
    return ", ".join((_name(field.annotation), *limits))


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "any"
    if origin is typing.Literal:
        return " | ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_name, arguments))
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is list:
        inner = _name(arguments[0])
        return f"list of ({inner})" if "|" in inner else f"list of {inner}"
    if origin is tuple:
        return (
            f"list of {_name(arguments[0])}" if arguments[-1] is Ellipsis else f"[{', '.join(map(_name, arguments))}]"
        )
    if origin is dict:
        return f"mapping to {_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[annotation.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default_factory else field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str) and "\n" in value:
        return f"a text of {len(value.splitlines())} lines"
    return f"`{value!r}`" if isinstance(value, list | dict | float) else f"`{value}`"


def _starred(key: str) -> str:
    """Returns the key of a setting that several controllers share: `entropy.controller.*.low`."""
    parts = key.split(".")
    return ".".join((*parts[:2], "*", *parts[3:])) if ".".join(parts[:2]) in KINDS and len(parts) == 4 else key


def _meaning(section: type[BaseModel], name: str, field: FieldInfo, key: str) -> str:
    if key.startswith("rewards.judge.generator.") and key not in MEANINGS:  # its settings are those of `generators`
        key = f"generators.{name}"
    text = field.description or MEANINGS.get(key) or MEANINGS.get(_starred(key))
    comment = "" if text else declared_comment(section, name)
    return text or comment[:1].upper() + comment[1:]


def declared_comment(section: type[BaseModel], name: str) -> str:
    """Returns the comment in a field's declaration, else the one in the lines above it, of the class that declares it."""
    for cls in section.__mro__:
        if name not in vars(cls).get("__annotations__", {}):
            continue
        source = textwrap.dedent(inspect.getsource(cls))
        comments = {
            token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and "noqa" not in token.string and "type:" not in token.string
        }
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        node = next(n for n in body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == name)
        own = [comments[i][0] for i in range(node.lineno, (node.end_lineno or node.lineno) + 1) if i in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and comments[line][1] and not comments[line][0].endswith(":"):
            above.insert(0, comments[line][0])
            line -= 1
        return " ".join(own or above)
    return ""


if __name__ == "__main__":
    print(reference(), end="")
