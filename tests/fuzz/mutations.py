"""Changes valid data at random: trees of values by their structure, files by their bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from fuzz.responses import INJECTIONS

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63 - 1, 10**9, 10**30, 0.0, -0.5, 0.5, 1e-320, 1e308, 1e-9,
    "", "x", "1", "null",
    "nan", "a/b", "~", "..", "../..", "/", "/dev/null", "ü", "x" * 5000, [], {}, [[]], [{}], {"kind": "x"}, [None], [1, 2, 3],
    float("inf"), float("-inf"), float("nan"), "none", "repo", "constant", "{prompt}", "(", "a: b", "\x00", "\u202e", " ",
)  # fmt: skip
ODD_YAML = (
    "!!int x", "!!float x", "!!timestamp x", "!!bool x", "!!int ''", "!!binary a", "!!set {a}",
    "!!omap [a: 1]", "!!python/none",
    "&a [*a]", "&a {b: *a}", "*a", "[", "{", "]", "}", "'", '"', "- a", "a: b: c", "? ", "|", ">", "%", "@",
    "`", "\t", "---", "...",
    "2026-02-30", "2026-02-28", "2026-02-28T25:00:00", "9" * 5000, "0x" + "f" * 5000, "1e99999", "-.inf",
    ".nan", "0b2", "0o9", "1_0",
    "1:99:99", "yes", "on", "~", "=", "<<: 1", "{<<: 1}", "{<<: {a: 1}}",
    "[" * 3000, "{a: " * 1000, "[" * 49 + "]" * 49, "\u2028", "²",
    "\ud800", "\\ud800", '"\\ud800"', "\x07", "\x85", "a\r\nb",
)  # fmt: skip


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key or index) of every value in a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        at = waiting.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        for key in keys:
            found.append((at, key))
            waiting.append(at[key])
    return found


def odd_value(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([-1, 1]) * rng.randrange(10 ** rng.randrange(1, 22))
    if kind == 1:
        return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-30, 30)
    if kind == 2:
        return "".join(
            chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD800)])) for _ in range(rng.randrange(9))
        )
    if kind == 3:
        return rng.choice(INJECTIONS)
    return copy.deepcopy(rng.choice(ODD))


def mutated(rng: random.Random, tree: Any, times: int | None = None) -> Any:
    """Returns a copy of a tree of JSON values with one to four changes of its structure or its values."""
    tree = copy.deepcopy(tree)
    for _ in range(times or rng.choice([1, 1, 1, 2, 4])):
        places = nodes(tree)
        if not places or rng.random() < 0.01:
            return odd_value(rng)
        at, key = rng.choice(places)
        kind = rng.randrange(9)
        if kind <= 3:
            at[key] = odd_value(rng)
        elif kind == 4:
            del at[key]
        elif kind == 5:
            other, its = rng.choice(places)
            at[key] = (
                copy.deepcopy(other[its]) if its in other or (isinstance(other, list) and its < len(other)) else None
            )
        elif kind == 6 and isinstance(at, dict):
            at[f"{key}{rng.choice(['x', '', ' ', '.a', '0'])}"] = at.pop(key)
        elif kind == 7:
            at[key] = rng.choice([[at[key]], {"x": at[key]}, [at[key]] * 3, str(at[key])])
        elif isinstance(at[key], int | float) and not isinstance(at[key], bool):
            at[key] = rng.choice([-at[key], at[key] * 1000, at[key] + 1, at[key] / 3, at[key] * 10**9])
        elif isinstance(at[key], str):
            at[key] = text_changed(rng, at[key])
        elif isinstance(at[key], dict):
            at[key][rng.choice(["x", "kind", "", "name", "path", "weight"])] = odd_value(rng)
        else:
            at[key] = odd_value(rng)
    return tree


def text_changed(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return (
        text[:at] + rng.choice(["", "x", ".", "/", "'", "\n", "\u200b", ":", "~", "0"]) + text[at + rng.randrange(3) :]
    )


def bytes_changed(rng: random.Random, data: bytes) -> bytes:
    """Returns a file's content with bytes flipped, cut, put in twice or put in from elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at, kind = rng.randrange(len(changed) + 1), rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + rng.randrange(20)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(200)]
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.randrange(6))
        else:
            changed[at:at] = rng.choice(["{", "[", "}", "]", ":", "-", '"', "\n", "\t", "null", "é", *ODD_YAML]).encode(
                "utf-8", "replace"
            )
    return bytes(changed)


def file_changed(rng: random.Random, data: bytes) -> bytes:
    """Returns a JSON file's content changed by its structure where it is JSON, else by its bytes,
    or something else altogether."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(
            [b"", b"[]", b"{}", b"null", b"0", b'"x"', b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe", rng.randbytes(50)]
        )
    if kind <= 6:
        try:
            return json.dumps(mutated(rng, json.loads(data))).encode()
        except ValueError:
            pass
    return bytes_changed(rng, data)
