"""Plays the rows and prints what happened: `PYTHONPATH=.:tests python tests/chaos/table.py [--list] [--keep] [ROW ...]`.

`make chaos` plays all of them, `make chaos ROW=learner-killed` one. Every row has runs, folders and Ray clusters of its own; of one
that fails the folder is kept and the end of its logs is printed. Exit code 1 where a row failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from chaos.asynchronous import ASYNCHRONOUS
from chaos.elastic import ELASTIC
from chaos.harness import Failed, Lab, end_on_signals
from chaos.scenarios import SCENARIOS, SHORT, Scenario
from chaos.storm import STORM
from chaos.two_nodes import ROWS as TWO_NODES

ROWS = (
    *SCENARIOS,
    *(Scenario(*row) for row in ASYNCHRONOUS),
    Scenario(*STORM),
    Scenario(*ELASTIC),
    *(Scenario(*row) for row in TWO_NODES),
)


def play(row: Scenario, lab: Lab) -> dict[str, Any]:
    """Plays one row; ends what it started, whatever comes of it. Returns its line of the table."""
    began, first = time.monotonic(), len(lab.runs)
    try:
        happened, ok = row.play(lab), True
    except Failed as error:
        happened, ok = str(error), str(error).startswith("skipped")
    except Exception as error:  # noqa: BLE001 - a row that breaks must not take the others with it
        happened, ok = f"the row itself broke: {type(error).__name__}: {error}", False
    finally:
        for run in lab.runs[first:]:
            run.end()
    if not ok:
        for run in lab.runs[first:]:
            print(run.tail(), flush=True)
    seconds = round(time.monotonic() - began, 1)
    return {"row": row.name, "fault": row.fault, "when": row.when, "expected": row.expectation,
            "happened": " ".join(happened.split())[:400], "seconds": seconds, "ok": ok}  # fmt: skip


def show(lines: list[dict[str, Any]]) -> None:
    """Prints the table, which RESULTS.md takes as it is."""
    print("\n| row | fault | when | what happened | seconds | ok |\n|---|---|---|---|---|---|")
    for line in lines:
        happened = line["happened"].replace("|", "/")
        cells = (
            line["row"],
            line["fault"],
            line["when"],
            happened,
            f"{line['seconds']:.0f}",
            "yes" if line["ok"] else "NO",
        )
        print(f"| {' | '.join(cells)} |")
    print(f"\n{sum(line['ok'] for line in lines)} of {len(lines)} rows ok")


def chosen(names: list[str]) -> list[Scenario]:
    """Returns the rows of these names, or all. Raises SystemExit for a name that no row has."""
    known = {row.name: row for row in (*ROWS, SHORT)}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"there is no row {', '.join(unknown)}; rows: {', '.join(known)}")
    return [known[name] for name in names] or list(ROWS)


def main(argv: list[str]) -> int:
    """Plays what is asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--list", action="store_true", help="print the rows and play none")
    parser.add_argument("--keep", action="store_true", help="keep all folders")
    parser.add_argument("--out", type=Path, help="file that gets one JSON object a row")
    given = parser.parse_args(argv)
    rows = chosen(given.rows)
    if given.list:
        for row in rows:
            print(f"{row.name:28} {row.fault}, {row.when}: {row.expectation}")
        return 0
    end_on_signals()
    lab, lines = Lab(), []
    print(f"folders in {lab.work}", flush=True)
    try:
        for row in rows:
            print(f"{row.name}: {row.fault}, {row.when}", flush=True)
            lines.append(play(row, lab))
            print(
                f"  {'ok' if lines[-1]['ok'] else 'FAILED'}: {lines[-1]['happened']} ({lines[-1]['seconds']:.0f} s)",
                flush=True,
            )
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    finally:
        lab.close(keep=given.keep or not lines or not all(line["ok"] for line in lines))
        show(lines)
    return int(not all(line["ok"] for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
