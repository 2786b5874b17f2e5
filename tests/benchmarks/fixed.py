"""Measures the fixed cost of an iteration with 256 replies: everything but the engine's steps and the learner's passes.

    PYTHONPATH=.:tests python -m benchmarks.fixed [--json FILE] [--workload short] [--iterations 8] [--profile FILE] [KEY=VALUE ...]

One generator, synchronous, the real stack (Ray, vLLM, DeepSpeed). The learner's passes are all that happens inside its call of
`train`, the engine's steps what it counts itself; both are taken from the wall time of an iteration. --profile writes a cProfile of
the driver.
"""

from __future__ import annotations

import argparse
import cProfile
import statistics
import tempfile
from pathlib import Path

from benchmarks import measure, runs, stages

GOAL_S = 0.060
WARM = 2
WITHIN = (
    "before the engine",
    "engine, between steps",
    "after the engine",
    "batches",
    "to the learner",
    "from the learner",
    "sync",
    "probe",
    "row and sinks",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workload", default="short")
    parser.add_argument("--iterations", type=int, default=WARM + measure.REPEATS + 1)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    from orchestration.config.run_config import load_config

    runs.make_model(args.workload)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        given = [f"run.dir={folder}", "run.name=fixed", f"run.iterations={args.iterations}", *args.overrides]
        config = load_config(str(runs.WORKLOADS / f"{args.workload}.yaml"), given)
        found = stages.record(config, profile if args.profile else None)
    if args.profile:
        profile.dump_stats(args.profile)
    rows = found.rows[WARM:]
    median = {
        k: statistics.median(row.get(k, 0.0) for row in rows) for k in dict.fromkeys(k for row in rows for k in row)
    }
    fixed = [row["fixed"] for row in rows]
    value = statistics.median(fixed)
    parts = ", ".join(f"{name} {1e3 * median.get(name, 0.0):.0f}" for name in WITHIN)
    line = measure.ratio(
        f"fixed cost of an iteration of {config.batch.prompts * config.batch.responses} replies / the goal",
        value / GOAL_S,
        goal="at most 1",
        held=value <= GOAL_S,
        ours=f"{1e3 * value:.0f} ms, of which in ms: {parts}",
        other=f"{1e3 * GOAL_S:.0f} ms",
        values=[f / GOAL_S for f in fixed],
    )
    whole = (stages.ENGINE, stages.LEARNER, "iteration")
    print(", ".join(f"{name} {1e3 * median[name]:.0f} ms" for name in whole))
    measure.write(args.json, "fixed", [line], stages_s=median, rows=found.rows)


if __name__ == "__main__":
    main()
