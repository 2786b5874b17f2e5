"""Compares two folders of runs row by row: `python tests/support/compare_runs.py BEFORE AFTER`.

Every runs/NAME/metrics.jsonl of BEFORE is held against that of AFTER, every value as it is written, bit for bit; left out is what a
clock says (time/*, tokens/per_second). Keys that were renamed since count under their present names. Samples have to be equal too.
Exit code 1 where anything differs. Used to show that a change of structure changed no number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from orchestration.telemetry.keys import present_name

Row = Mapping[str, Any]


def rows(path: Path) -> list[Row]:
    """Returns the lines of a metrics.jsonl without what a clock says, keys under their present names."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    clocks = ("time/", "tokens/per_second")
    return [{present_name(key): value for key, value in row.items() if not key.startswith(clocks)} for row in lines]


def samples(path: Path) -> list[Row]:
    """Returns the lines of a samples.jsonl, with the key "reply" of older runs under its present name."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{"response" if key == "reply" else key: value for key, value in row.items()} for row in lines]


def differences(before: list[Row], after: list[Row]) -> list[str]:
    """Returns a sentence for every value that differs; an absent key is a difference."""
    if len(before) != len(after):
        return [f"{len(before)} rows before, {len(after)} after"]
    changes = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        for key in sorted(old.keys() | new.keys()):
            was, now = (json.dumps(row[key]) if key in row else "absent" for row in (old, new))
            if was != now:
                changes.append(f"row {number}: {key} was {was} and is {now}")
    return changes


def main(before: Path, after: Path) -> int:
    """Prints a line per run and its first differences. Returns the exit code."""
    code = 0
    folders = sorted(path.parent for path in before.glob("runs/*/metrics.jsonl"))
    if not folders:
        print(f"{before} has no runs/*/metrics.jsonl")
        return 1
    for folder in folders:
        other = after / "runs" / folder.name
        if not (other / "metrics.jsonl").is_file():
            changes = ["there is no such run after the change"]
        else:
            old, new = rows(folder / "metrics.jsonl"), rows(other / "metrics.jsonl")
            changes = differences(old, new)
            changes += [
                f"samples: {d}"
                for d in differences(samples(folder / "samples.jsonl"), samples(other / "samples.jsonl"))
            ]
            print(f"{folder.name}: {len(old)} rows of {len(old[-1])} values: {'DIFFERENT' if changes else 'equal'}")
        for line in changes[:8]:
            print(f"  {line}")
        code |= bool(changes)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
