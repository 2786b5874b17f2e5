"""Measures what staleness buys and what it costs: tokens a second, and learning curves with entropy held by its controller.

    PYTHONPATH=.:tests python -m benchmarks.staleness [--json FILE] [--values 0 1 2 4] [--seeds 0 1 2] [--iterations 24]

Tokens a second are of heavy-tailed replies, one thread for the generator and one for the learner. Learning curves are of countdown
with the default entropy control at 0.7 of the start, three seeds of each value: the mean reward of the LAST iterations at equal
samples, the mean reward of the LAST iterations before the moment at which the fastest run had ended (equal wall time), and how far
entropy was off its target over the second half (root mean square, of the target).
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, runs

LAST = 5
CONTROL = ("entropy.method.kind=repo", "entropy.target.fraction=0.7")


def stale(value: int) -> tuple[str, str]:
    """Returns the overrides of a staleness, with as many batches ahead of the learner: with one ahead it would never be more."""
    return f"batch.staleness={value}", f"batch.ahead={max(1, value)}"


def speed(values: Sequence[int], folder: Path, iterations: int = 5) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns tokens a second of each value against those of the first."""
    runs.make_model("heavy")
    rates: dict[int, list[float]] = {}
    details: dict[str, Any] = {}
    common = ("learner.threads=1", f"run.iterations={iterations + 1}")
    given = {f"speed-{value}": (*stale(value), *common) for value in values}
    measured = runs.in_turn(runs.WORKLOADS / "heavy.yaml", folder, given)
    for value, found in zip(values, measured.values(), strict=True):
        rates[value] = [t / s for t, s in zip(found.steady("tokens/generated"), found.walls, strict=True)]
        details[str(value)] = {"tokens/s": rates[value], "by kind of work": found.breakdown()}
    base = statistics.median(rates[values[0]])
    lines = [
        measure.ratio(
            f"heavy: staleness {value} / {values[0]}, tokens a second",
            statistics.median(rate) / base,
            ours=f"{statistics.median(rate):.0f} tokens/s",
            other=f"{base:.0f} tokens/s",
            values=[r / base for r in rate],
        )
        for value, rate in rates.items()
    ]
    return lines, details


def curve(found: runs.Measured) -> dict[str, list[float]]:
    """Returns what is drawn of a run: seconds since its first iteration began, reward, entropy and its target."""
    began = found.rows[0]["time/unix"] - found.rows[0]["time/iteration"]
    keys = {"reward": "reward/mean", "entropy": "entropy/exact", "target": "entropy/target"}
    kept = {name: [row.get(key, math.nan) for row in found.rows] for name, key in keys.items()}
    return {"seconds": [row["time/unix"] - began for row in found.rows], **kept}


def last_mean(rewards: Sequence[float]) -> float:
    return statistics.fmean(rewards[-LAST:])


def off_target(one: dict[str, list[float]]) -> float:
    """Returns how far entropy was off its target over the second half: root mean square, as a share of the target."""
    half = len(one["entropy"]) // 2
    pairs = zip(one["entropy"][half:], one["target"][half:], strict=True)
    off = [(h / t - 1) ** 2 for h, t in pairs if math.isfinite(h) and t > 0]
    return math.sqrt(statistics.fmean(off)) if off else math.nan


def curves(
    values: Sequence[int], seeds: Sequence[int], iterations: int, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the learning curves' lines, staleness `value` against the first, and the curves."""
    runs.make_countdown_model()
    # Every value of a seed before the next seed: a busy hour disturbs all values.
    order = [(seed, value) for seed in seeds for value in values]
    given = {
        f"curve-{value}-{seed}": (
            *stale(value),
            f"run.seed={seed}",
            f"run.iterations={iterations}",
            *CONTROL,
        )
        for seed, value in order
    }
    measured = runs.in_turn(runs.WORKLOADS / "countdown.yaml", folder, given)
    found = {value: [curve(measured[f"curve-{value}-{seed}"]) for seed in seeds] for value in values}
    fastest = [min(found[value][i]["seconds"][-1] for value in values) for i in range(len(seeds))]
    summary: dict[int, dict[str, list[float]]] = {}
    for value in values:
        at_time = [
            last_mean([r for r, s in zip(c["reward"], c["seconds"], strict=True) if s <= end] or [math.nan])
            for c, end in zip(found[value], fastest, strict=True)
        ]
        samples = [last_mean(c["reward"]) for c in found[value]]
        summary[value] = {"samples": samples, "time": at_time, "off": [off_target(c) for c in found[value]]}
    lines = []
    for kind, name in (("samples", "equal samples"), ("time", "equal wall time")):
        base = statistics.fmean(summary[values[0]][kind])
        for value in values:
            mine = summary[value]
            mean, seen = statistics.fmean(mine[kind]), measure.deviation(mine[kind])
            off = statistics.fmean(mine["off"])
            ours = f"{mean:.3f} ± {seen:.3f}; entropy {off:.0%} rms off its target"
            lines.append(
                measure.ratio(
                    f"countdown, {name}: staleness {value} / {values[0]}, reward",
                    mean / base,
                    ours=ours,
                    other=f"{base:.3f}",
                )
            )
    return lines, {"curves": {str(k): v for k, v in found.items()}, "summary": {str(k): v for k, v in summary.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--values", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--only", choices=["speed", "curves"])
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if args.only != "curves":
            found, details["speed"] = speed(args.values, Path(folder))
            lines += found
            print(measure.table(found), flush=True)
        if args.only != "speed":
            found, details["learning"] = curves(args.values, args.seeds, args.iterations, Path(folder))
            lines += found
    measure.write(args.json, "staleness", lines, **details)


if __name__ == "__main__":
    main()
