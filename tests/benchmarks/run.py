"""Runs the benchmarks and writes what they found to RESULTS.md and data/bench.json.

    PYTHONPATH=.:tests python -m benchmarks.run [PART ...] [--list] [--dry]

Every part is a process of its own with a limit on its time. Its passage of RESULTS.md is replaced, with date and machine; the rest
of that page stays. A part that fails, takes too long or is not there is said to have: it counts as not measured, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import BUSY, busy_share, machine, table, with_section

HERE = Path(__file__).parent
PAGE, DATA = HERE / "RESULTS.md", HERE / "data" / "bench.json"
GRACE_S = 20.0  # between a polite end and the other


@dataclass(frozen=True)
class Part:
    """Names a part, the module with its `main`, what it measures, and the seconds it may take."""

    name: str
    module: str
    about: str
    limit_s: float


PARTS = (
    Part("head", "benchmarks.head", "the fused head on and off: time and memory", 480),
    Part(
        "learner", "benchmarks.learner", "the learner, packed and padded, against plain torch, and prompts shared", 420
    ),
    Part("weights", "benchmarks.weights", "a transfer of weights against memcpy", 180),
    Part("memory", "benchmarks.memory", "planned memory against what learner ranks take", 900),
    Part("startup", "benchmarks.startup", "what a start consists of", 240),
    Part("driver", "benchmarks.driver", "the driver with 64 to 4,096 simulated generators", 180),
    Part("fixed", "benchmarks.fixed", "the fixed cost of an iteration", 180),
    Part("ideal", "benchmarks.ideal", "an iteration against the engine alone and plain torch alone", 480),
    Part("generators", "benchmarks.generators", "1 to 4 generators", 360),
    Part("staleness", "benchmarks.staleness", "staleness 0 to 4: tokens a second and learning curves", 900),
    Part("trl", "benchmarks.trl.compare", "whole rounds against TRL's GRPOTrainer", 1200),
)


@dataclass
class Outcome:
    """Holds what came of a part. problem: why there is no measurement; empty where there is one."""

    part: Part
    seconds: float
    printed: str
    data: dict[str, Any]
    problem: str
    busy: float  # share of the cores that others used just before or just after, the larger

    @property
    def quiet(self) -> bool:
        return self.busy <= BUSY


def exists(part: Part) -> bool:
    """Returns whether the part's module is there; it is not imported."""
    try:
        return importlib.util.find_spec(part.module) is not None
    except ModuleNotFoundError:
        return False


def play(part: Part, limit_s: float | None = None) -> Outcome:
    """Runs a part to its end or its limit. Raises nothing for what a part does."""
    if not exists(part):
        return Outcome(part, 0.0, "", {}, f"missing: there is no module {part.module}", 0.0)
    limit, busy, began = limit_s or part.limit_s, busy_share(), time.monotonic()
    if busy > BUSY:
        print(f"others use {busy:.0%} of the cores: what follows is disturbed", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "out.json"
        process = subprocess.Popen(
            [sys.executable, "-m", part.module, "--json", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it started can be ended with it
        )
        problem = ""
        try:
            printed, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            printed, problem = _end(process), f"it took longer than {limit:.0f} s and was ended"
        if not problem and process.returncode:
            problem = f"it failed with exit code {process.returncode}"
        data = json.loads(file.read_text("utf-8")) if file.is_file() and not problem else {}
    seconds = time.monotonic() - began
    return Outcome(part, seconds, printed, data, problem, max(busy, busy_share()))


def _end(process: subprocess.Popen[str]) -> str:
    """Ends a part and all it started; returns what it had printed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=GRACE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def passage(outcome: Outcome, where: dict[str, Any], today: str) -> str:
    """Returns a part's passage of the page."""
    part = outcome.part
    head = f"### {part.name}: {part.about}"
    if outcome.problem:
        return f"{head}\n\nNot measured on {today}: {outcome.problem}."
    beside = (
        "" if outcome.quiet else f", others using {outcome.busy:.0%} of the cores beside it, so that no goal is judged"
    )
    card = "" if where["card"] == "none" else f", {where['card']}"
    facts = f"{today}, {where['cores']} cores ({where['processor']}){card}, {outcome.seconds:.0f} s{beside}."
    shown = (
        table(outcome.data["ratios"], outcome.quiet)
        if "ratios" in outcome.data
        else f"```\n{outcome.printed.strip()}\n```"
    )
    notes = outcome.data.get("notes", "")
    return f"{head}\n\n{facts}\n\n{shown}" + (f"\n\n{notes}" if notes else "")


def keep(outcome: Outcome, where: dict[str, Any], today: str, page: Path = PAGE, data: Path = DATA) -> None:
    """Writes a part's passage and its data; what other parts found stays."""
    page.write_text(with_section(page.read_text("utf-8"), outcome.part.name, passage(outcome, where, today)), "utf-8")
    if outcome.problem:
        return
    known = json.loads(data.read_text("utf-8")) if data.is_file() else {}
    facts = {"date": today, "machine": where, "seconds": round(outcome.seconds, 1), "busy": round(outcome.busy, 3)}
    known[outcome.part.name] = facts | {k: v for k, v in outcome.data.items() if k != "part"}
    data.parent.mkdir(exist_ok=True)
    data.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them unless given")
    parser.add_argument("--list", action="store_true", help="names the parts and ends")
    parser.add_argument("--dry", action="store_true", help="prints, and writes no file")
    parser.add_argument("--limit", type=float, help="seconds that each part may take")
    args = parser.parse_args()
    by_name = {part.name: part for part in PARTS}
    if args.list:
        for part in PARTS:
            print(f"{part.name:<12} {part.about}{'' if exists(part) else ' (missing)'}")
        return 0
    if unknown := [name for name in args.parts if name not in by_name]:
        parser.error(f"there is no part {', '.join(unknown)}: the parts are {', '.join(by_name)}")
    where, today = machine(), datetime.date.today().isoformat()
    outcomes: list[Outcome] = []
    for part in [by_name[name] for name in args.parts] or PARTS:
        print(f"\n=== {part.name}: {part.about}", flush=True)
        outcome = play(part, args.limit)
        print(outcome.printed.rstrip() or "(it printed nothing)", flush=True)
        if not args.dry:
            keep(outcome, where, today)
        outcomes.append(outcome)
    print("\n=== summary")
    for o in outcomes:
        missed = sum(line["verdict"] == "missed" for line in o.data.get("ratios", ()))
        goals = f", {missed} goals missed" if o.quiet else ", beside other work: no goal is judged"
        said = o.problem or f"measured in {o.seconds:.0f} s{goals}"
        print(f"{o.part.name:<12} {said}")
    return int(any(o.problem for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
