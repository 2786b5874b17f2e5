"""Reads and writes YAML as a tree of text, numbers, lists and mappings of bounded size, whatever a file has in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from envs.quoting import quoted, shortened
from orchestration.text import one_line

MAX_DEPTH = 50  # of sections within sections
MAX_VALUES = 100_000  # of a file or an override, aliases unfolded
BIGGEST = 2**63  # whole numbers are under it
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, which YAML 1.1 takes for text, since it has neither a dot nor a sign, and a date as text."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Builds one value. Raises YAMLError where PyYAML raises what its own conversion does: 5,000 digits, `!!bool x`."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{quoted(node.value)} cannot be read as {kind}: {shortened(one_line(error))}"
            raise ConstructorError(None, None, problem, node.start_mark) from None
        if isinstance(value, int) and abs(value) >= BIGGEST:
            problem = f"{quoted(node.value)} is a whole number of more than 64 bits"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Reads one mapping. Raises YAMLError for a key that is there twice, the first of which PyYAML forgets."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"the key {quoted(key.value)} is there twice: leave one"
                    raise ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Puts what `<<` names into a mapping. Raises YAMLError where merges of merges make it huge."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            problem = f"its merges make more than {MAX_VALUES:,} values: write less, or fewer merges"
            raise ConstructorError(None, None, problem, node.start_mark)

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        self._deeper()
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._deeper()
        return super().add_indent(column)

    def _deeper(self) -> None:
        """Raises YAMLError beyond the levels that `_plain` takes: PyYAML needs seconds for thousands of them, and then fails."""
        if self.flow_level + len(self.indents) > MAX_DEPTH:
            raise ScannerError(None, None, f"it has more than {MAX_DEPTH} levels", self.get_mark())


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e4", which _Loader would read as a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def write_yaml(data: Mapping[str, Any]) -> str:
    """Writes what `parse` reads back as equal data."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if yaml.load(text, _Loader) == data:
        return text
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)  # escaped: YAML reads some characters as line breaks


def parse(text: str, else_text: bool = False) -> Any:
    """Returns what a text says. Raises ValueError, one sentence; with `else_text`, a text that is not YAML stands for itself."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        if not else_text:
            raise ValueError(shortened(one_line(error), 500)) from None
        value = text
    return _plain(value)


def _plain(value: Any) -> Any:
    """Returns a copy of what YAML was read as, in which nothing is shared: an override changes one place, not every alias of it.

    Raises ValueError, one sentence, for what no configuration can hold: other types than text, numbers, lists and mappings, keys
    that are not text, text that no file takes, and more or deeper values than a person writes, as aliases of aliases make them.
    """
    left = MAX_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            limit = f"more than {MAX_VALUES:,} values" if left < 0 else f"more than {MAX_DEPTH} levels"
            raise ValueError(f"it has {limit}, aliases unfolded: write less, or fewer aliases")
        if isinstance(value, str):
            return check_text(value)
        if isinstance(value, list):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"the key {quoted(key)} is {type(key).__name__}, not text: put it in quotes")
            return {check_text(key): copy(item, depth + 1) for key, item in value.items()}
        if value is not None and not isinstance(value, bool | int | float):
            raise ValueError(
                f"{quoted(value)} is of type {type(value).__name__}: give text, a number, a list or a mapping"
            )
        return value

    return copy(value, 0)


def check_text(text: str) -> str:
    """Returns the text. Raises ValueError for one that no file or no path can hold."""
    if _UNWRITABLE.search(text):
        raise ValueError(f"{quoted(text)} has a character that no file can hold: NUL or half a surrogate pair")
    return text
