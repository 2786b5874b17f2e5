"""Defines the results of a lab: metrics of every arm and seed, and their spread over seeds.

An arm is one setting run under several seeds; a cell is an arm under one seed. `collect.py` makes a `LabResults` from run
folders; results.json holds one as

    {"temperature": 1.0, "k": 16, "stages": [], "start": ARM, "arms": [ARM, ...]}
    ARM = {"name": "repo-r", "note": "", "seeds": {"0": {"reward_end": 0.61, ...}}, "failed": {"1": "..."},
           "figures": {"reward_end": {"mean": 0.61, "std": null, "n": 1}, ...},
           "best": {"pass@1": {"temperature": 0.3, "mean": 0.55, "std": null, "n": 1}}, "steered": true}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.stats import finite, mean, std

RENAMED = {"authority": "affected"}  # names that metrics have in earlier results files


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds the mean and the sample standard deviation of a metric over n seeds; NaN where there are too few of them."""

    mean: float = math.nan
    std: float = math.nan
    n: int = 0

    @classmethod
    def over(cls, values: Iterable[float]) -> Spread:
        """Computes the spread of the finite values."""
        kept = finite(values)
        return cls(mean(kept), std(kept), len(kept))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spread:
        middle, deviation = (math.nan if data[name] is None else data[name] for name in ("mean", "std"))
        return cls(middle, deviation, data["n"])

    def to_json(self) -> dict[str, Any]:
        """Returns a mapping for JSON, which has no NaN."""
        finite_or_none = {name: v if math.isfinite(v) else None for name, v in (("mean", self.mean), ("std", self.std))}
        return {**finite_or_none, "n": self.n}


@dataclass(frozen=True, slots=True)
class CellResult:
    """Holds what became of one arm under one seed: its metrics by name, or why there are none, in a sentence."""

    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class BestTemperature:
    """Holds the evaluation temperature with the highest mean over seeds, and the spread of pass@k there."""

    temperature: float
    spread: Spread

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BestTemperature:
        return cls(data["temperature"], Spread.from_json(data))

    def to_json(self) -> dict[str, Any]:
        return {"temperature": self.temperature, **self.spread.to_json()}


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Holds the cells of an arm and the spread of their metrics; `steered` where a controller moves the coefficient.

    ArmResult("repo-r", cells=(CellResult(0, {"reward_end": 0.61}),), metrics={"reward_end": Spread(0.61, n=1)})
    """

    name: str
    note: str = ""  # what the arm is, one line
    steered: bool = False
    cells: Sequence[CellResult] = ()
    metrics: Mapping[str, Spread] = field(default_factory=dict)
    best: Mapping[str, BestTemperature] = field(default_factory=dict)  # "pass@1" -> the best temperature for it

    @property
    def finished(self) -> dict[int, Mapping[str, float]]:
        """Returns the metrics of the finished cells by seed."""
        return {cell.seed: cell.metrics for cell in self.cells if cell.failure is None}

    @property
    def failed(self) -> dict[int, str]:
        """Returns the reason of every failed cell by seed."""
        return {cell.seed: cell.failure for cell in self.cells if cell.failure is not None}

    def spread(self, metric: str) -> Spread:
        """Returns the spread of a metric over seeds; NaN and 0 seeds where no cell has it."""
        return self.metrics.get(metric, Spread())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArmResult:
        cells = [CellResult(int(seed), _with_present_names(metrics)) for seed, metrics in data["seeds"].items()]
        cells += [CellResult(int(seed), failure=reason) for seed, reason in data["failed"].items()]
        return cls(
            name=data["name"],
            note=data["note"],
            steered=data["steered"],
            cells=tuple(cells),
            metrics={name: Spread.from_json(spread) for name, spread in _with_present_names(data["figures"]).items()},
            best={name: BestTemperature.from_json(best) for name, best in data["best"].items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "note": self.note,
            "seeds": {str(seed): dict(metrics) for seed, metrics in self.finished.items()},
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "figures": {name: spread.to_json() for name, spread in self.metrics.items()},
            "best": {name: best.to_json() for name, best in self.best.items()},
            "steered": self.steered,
        }


@dataclass(frozen=True, slots=True)
class LabResults:
    """Holds the arms of a lab, and `start`, the policy before training as an arm of its own.

    `temperature` is the first one of the evaluations (None when the arms differ in it), `k` the largest that all runs have,
    `stages` the names of the runs' stages (empty when the runs have none, or differ in them).
    """

    arms: Sequence[ArmResult]
    start: ArmResult = field(default_factory=lambda: ArmResult("start", "the policy before training"))
    k: int = 1
    temperature: float | None = None
    stages: Sequence[str] = ()

    def stage(self, index: int) -> str:
        """Returns the name of a stage, or its number where it has none."""
        return self.stages[index] if index < len(self.stages) else f"stage {index}"

    @property
    def ks(self) -> list[int]:
        """Returns the k of the pass@k that are shown: 1 and the largest that all runs have."""
        return list(dict.fromkeys((1, self.k)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabResults:
        arms = tuple(map(ArmResult.from_json, data["arms"]))
        start, stages = ArmResult.from_json(data["start"]), tuple(data.get("stages", ()))
        return cls(arms, start, data["k"], data["temperature"], stages)

    def to_json(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "k": self.k,
            **({"stages": list(self.stages)} if self.stages else {}),
            "start": self.start.to_json(),
            "arms": [arm.to_json() for arm in self.arms],
        }


def _with_present_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in metrics.items()}
