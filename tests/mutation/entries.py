"""Entries of the table of tests/mutation/runner.py.

A text has to occur exactly once in its file; `tests` is what is run for it: files, and after -k a pytest expression. Take narrow
ones: a mutation that only a slow test notices lacks a test.
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


def entries(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """changes of one file of the learner, without its suffix: (what is broken, text, replacement)."""
    name = file.rpartition("/")[2]
    return [Mutation(f"{name}: {what}", f"learner/{file}.py", text, new, tests) for what, text, new in changes]
