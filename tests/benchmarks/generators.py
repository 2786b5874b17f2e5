"""Measures tokens a second with 1 to 4 generators, in rounds of heavy-tailed replies.

    PYTHONPATH=.:tests python -m benchmarks.generators [--json FILE] [--counts 1 2 4] [--workload heavy]

Each generator has one thread; where there are more than cores they share them. Seconds of generation alone are compared, since the
learner is the same in all of them; tokens a second of the whole iteration are in the data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks import measure, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workload", default="heavy")
    parser.add_argument("--iterations", type=int, default=3)
    args = parser.parse_args()
    runs.make_model(args.workload)
    recipe, cores = runs.WORKLOADS / f"{args.workload}.yaml", len(os.sched_getaffinity(0))
    rates: dict[int, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in args.counts:
            # What Ray is told is a share of the cores, so that all find room; threads are one each whatever it is.
            given = [f"generators.count={count}", f"generators.cpus={min(1.0, (cores - 1) / count):.3g}"]
            found = runs.train(recipe, Path(folder), f"g{count}", [*given, f"run.iterations={args.iterations + 1}"])
            pairs = zip(found.steady("tokens/generated"), found.steady("time/generate"), strict=True)
            rates[count] = [tokens / seconds for tokens, seconds in pairs]
            details[str(count)] = found.breakdown() | {"tokens/s of generation": statistics.median(rates[count])}
    least = args.counts[0]
    base = statistics.median(rates[least])
    lines = [
        measure.ratio(
            f"{args.workload}: {count} generators / {least}, tokens a second of generation",
            statistics.median(rate) / base,
            ours=f"{statistics.median(rate):.0f} tokens/s",
            other=f"{base:.0f} tokens/s",
            values=[r / base for r in rate],
        )
        for count, rate in rates.items()
    ]
    measure.write(args.json, "generators", lines, cores=cores, by_count=details)


if __name__ == "__main__":
    main()
