"""Monitors whether the reward rises without what it stands for. Pure.

A stage's last iterations are compared with its first ones: the reward, the environment's own verdict as an independent check,
held-out pass@1, which no term of a reward touches, and the mean length of responses. A policy that games its reward raises the
first without the others, or by length alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.stats import mean
from orchestration.telemetry.typed_keys import EvalKey
from orchestration.thresholds import EVAL_NOISE, LONGER, RISEN, STAYED

WINDOW = 5  # iterations at either end: a single batch is too noisy to compare
SERIES = ("reward", "check", "length")


class RewardHackingMonitor:
    """Compares the last iterations of a stage with its first ones, row by row; its state goes to the checkpoint."""

    def __init__(self) -> None:
        self._stage = 0.0
        self._series = {name: _Series() for name in SERIES}
        self._checked = False  # the check has been above 0: an environment that never says `correct` has none
        self._before: dict[str, float] = {}  # pass@1 by environment at the start of the stage
        self._now: dict[str, float] = {}

    def look(self, row: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics drift/... that the row gains: none before two windows are full."""
        if row.get("stage/index", 0.0) != self._stage:
            self._begin_stage(row["stage/index"])
        for key, value in row.items():
            parsed = EvalKey.parse(key)
            if parsed is not None and parsed.k == 1 and parsed.temperature is None:
                self._now[parsed.env] = value
                self._before.setdefault(parsed.env, value)
        if "reward/mean" not in row:  # an evaluation alone
            return {}
        # With terms the environment's verdict is one of them; without, the reward is the verdict, and what counts is the check.
        check = row.get("term/verdict", row["correct/mean"])
        self._checked |= check > 0
        for name, value in (("reward", row["reward/mean"]), ("check", check), ("length", row["response/length_mean"])):
            self._series[name].add(value)
        return self._changes([env for env in self._now if f"reward/{env}" in row])

    def _begin_stage(self, stage: float) -> None:
        self._stage, self._before = stage, dict(self._now)
        self._series, self._checked = {name: _Series() for name in SERIES}, False

    def _changes(self, envs: Sequence[str]) -> dict[str, float]:
        reward, check, length = (self._series[name] for name in SERIES)
        if reward.count < 2 * WINDOW:
            return {}
        risen = reward.gain > RISEN * reward.error
        out = {"drift/reward": reward.gain, "drift/check": check.gain}
        gamed = self._checked and check.gain <= STAYED * check.error
        if envs:
            out["drift/held_out"] = mean([self._now[env] - self._before[env] for env in envs])
            gamed |= out["drift/held_out"] < -EVAL_NOISE
        out["drift/length"] = length.gain / length.start if length.start else 0.0
        out["drift/hacking"] = float(risen and gamed)
        out["drift/longer"] = float(risen and abs(out["drift/length"]) > LONGER)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self._stage,
            "series": {name: series.state_dict() for name, series in self._series.items()},
            "checked": self._checked,
            "before": dict(self._before),
            "now": dict(self._now),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage, self._checked = float(state["stage"]), bool(state["checked"])
        self._before, self._now = dict(state["before"]), dict(state["now"])
        for name, series in self._series.items():
            series.load_state_dict(state["series"][name])


class _Series:
    """The first and the last WINDOW values of a series, and its noise from value to value."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[float] = []
        self._last: list[float] = []
        self._squares = 0.0  # of the differences of neighbours

    def add(self, value: float) -> None:
        if self.count:
            self._squares += (value - self._last[-1]) ** 2
        self.count += 1
        if len(self._first) < WINDOW:
            self._first.append(value)
        self._last = [*self._last, value][-WINDOW:]

    @property
    def start(self) -> float:
        return mean(self._first)

    @property
    def gain(self) -> float:
        return mean(self._last) - self.start

    @property
    def error(self) -> float:
        """Standard error of `gain` where nothing has changed. The variance of a value is half the mean squared difference of
        neighbours (von Neumann 1941), which a slow trend hardly raises; the gain has twice that of a window's mean."""
        variance = self._squares / (2 * max(1, self.count - 1))
        return math.sqrt(2 * variance / WINDOW)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "first": self._first, "last": self._last, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self._squares = int(state["count"]), float(state["squares"])
        self._first, self._last = list(state["first"]), list(state["last"])
