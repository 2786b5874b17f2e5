"""Collects the results of a lab from its run folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestration.analysis.control import steered
from orchestration.analysis.run_data import RunData, load_run
from orchestration.lab.results import ArmResult, BestTemperature, CellResult, LabResults, Spread
from orchestration.lab.run_metrics import PassKey, name_after_training, pass_counts, run_metrics, temperatures
from orchestration.stats import mean


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """Holds an arm's run folders. ArmRuns("grpo", {0: Path("lab/arms/grpo-s0")}, {1: "The engine ran out of memory."})"""

    name: str
    runs: Mapping[int, Path]  # seed -> run folder of a finished run
    failed: Mapping[int, str] = field(default_factory=dict)  # seed -> why there is none, one sentence
    note: str = ""  # what the arm is, one line


def collect(arms: Sequence[ArmRuns]) -> LabResults:
    """Collects the results of a lab; a run that cannot be read counts as failed, with the reason.

    The best temperature of pass@k is the one whose mean over seeds is highest after training (of equals the first); each cell
    has its value there as `pass@K/best`. The temperature is chosen on the very prompts it is then scored by, so the value is
    optimistic, the more so the more temperatures there are and the noisier they are.
    `start` is the policy before training, under the names of the metrics after training: each seed's first evaluation,
    averaged over the arms.
    """
    loaded = [(arm, *_read(arm)) for arm in arms]
    first_temperatures = {heats[0] for _, runs, _ in loaded for heats in map(temperatures, runs.values()) if heats}
    made = []
    for arm, runs, failed in loaded:
        cells = {seed: run_metrics(run) for seed, run in runs.items()}
        made.append(_arm(arm.name, arm.note, any(map(steered, runs.values())), cells, failed))
    evaluated = [ks for arm in made for ks in map(pass_counts, arm.finished.values()) if ks]
    return LabResults(
        arms=tuple(made),
        start=_start(made),
        k=max(set.intersection(*evaluated), default=1) if evaluated else 1,
        temperature=first_temperatures.pop() if len(first_temperatures) == 1 else None,
        stages=_stages([run for _, runs, _ in loaded for run in runs.values()]),
    )


def _stages(runs: Sequence[RunData]) -> tuple[str, ...]:
    """Returns the names of the stages that all runs have; none where they differ."""
    found = {tuple(str(stage.get("name", "")) for stage in run.setting("stages") or ()) for run in runs}
    return found.pop() if len(found) == 1 else ()


def _read(arm: ArmRuns) -> tuple[dict[int, RunData], dict[int, str]]:
    """Returns the runs by seed, and the reasons for those that have none."""
    runs, failed = {}, dict(arm.failed)
    for seed, path in sorted(arm.runs.items()):
        try:
            runs[seed] = load_run(path)
        except (ValueError, OSError) as error:
            failed[seed] = str(error)
    return runs, failed


def _arm(
    name: str, note: str, is_steered: bool, finished: Mapping[int, Mapping[str, float]], failed: Mapping[int, str]
) -> ArmResult:
    cells = {seed: dict(metrics) for seed, metrics in finished.items()}
    best = {}
    for k in sorted({k for metrics in cells.values() for k in pass_counts(metrics)}):
        heat = _best_temperature(list(cells.values()), k)
        if heat is not None:
            there, at_best = str(PassKey(k, "end", heat)), str(PassKey(k, "best"))
            for metrics in cells.values():
                if there in metrics:
                    metrics[at_best] = metrics[there]
            best[f"pass@{k}"] = BestTemperature(heat, _spread(cells, at_best))
    names = dict.fromkeys(name for metrics in cells.values() for name in metrics)
    results = [CellResult(seed, metrics) for seed, metrics in cells.items()]
    results += [CellResult(seed, failure=reason) for seed, reason in sorted(failed.items())]
    return ArmResult(name, note, is_steered, tuple(results), {name: _spread(cells, name) for name in names}, best)


def _spread(cells: Mapping[int, Mapping[str, float]], metric: str) -> Spread:
    return Spread.over(metrics.get(metric, math.nan) for metrics in cells.values())


def _best_temperature(cells: Sequence[Mapping[str, float]], k: int) -> float | None:
    """Chooses among the temperatures that the most seeds have: with fewer seeds a lucky mean is likelier."""
    parsed = {name: PassKey.parse(name) for metrics in cells for name in metrics}
    values = {
        key.temperature: [metrics[name] for metrics in cells if name in metrics]
        for name, key in parsed.items()
        if key is not None and key.temperature is not None and (key.k, key.when) == (k, "end")
    }
    # Rounded: of equals the first wins, whatever the order of a sum does to the last digit.
    return max(values, key=lambda heat: (len(values[heat]), round(mean(values[heat]), 9)), default=None)


def _start(arms: Sequence[ArmResult]) -> ArmResult:
    cells: dict[int, dict[str, float]] = {}
    for seed in dict.fromkeys(seed for arm in arms for seed in arm.finished):
        of_seed = [arm.finished[seed] for arm in arms if seed in arm.finished]
        names = {key: name_after_training(key) for metrics in of_seed for key in metrics}
        cells[seed] = {
            name: mean(metrics[key] for metrics in of_seed if key in metrics)
            for key, name in names.items()
            if name is not None
        }
    return _arm("start", "the policy before training", False, cells, {})
