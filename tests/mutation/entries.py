"""Defines what a mutation is: a file, a change of it, and the tests that have to notice.

A curated entry (`Mutation`) replaces a text that occurs exactly once in its file; a generated one (`Span`) a range of it.
`tests` is what is run: files, and after -k a pytest expression. Take narrow ones: a mutation that only a slow test notices lacks
a test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    file: str
    text: str
    replacement: str
    tests: str

    def problem(self, source: str) -> str | None:
        """Returns why the entry does not fit the source; None where it does."""
        count = source.count(self.text)
        return None if count == 1 else f"its text occurs {count} times in {self.file}, not once"

    def apply(self, source: str) -> str:
        return source.replace(self.text, self.replacement)


@dataclass(frozen=True, slots=True)
class Span:
    """Replaces source[start:stop]: made from the sources as they are, so it always fits."""

    name: str
    file: str
    start: int
    stop: int
    replacement: str
    tests: str

    def problem(self, source: str) -> str | None:
        return None

    def apply(self, source: str) -> str:
        return source[: self.start] + self.replacement + source[self.stop :]


def entries(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Makes the entries of one file of the learner, without its suffix, from (what is broken, text, replacement)."""
    name = file.rpartition("/")[2]
    return [Mutation(f"{name}: {what}", f"learner/{file}.py", text, new, tests) for what, text, new in changes]
