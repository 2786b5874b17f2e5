"""Raises alarms while a run goes on: a saturated coefficient, a method without effect, a reward that may be gamed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestration.thresholds import OFF_TARGET, PATIENCE, affects_too_few, effect_of_control

RAISED = -(10**9)  # the count of an alarm that was raised: it is never raised again
NAMES = ("saturated", "too_few_tokens", "hacking", "longer")
# Names that alarms had in the state of older checkpoints.
RENAMED = {"spent": "saturated", "idle": "too_few_tokens"}


class Alarms:
    """Looks at every iteration's row; each alarm is raised once a run, resumed or not: its state goes to the checkpoint."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._runs: dict[str, int] = dict.fromkeys(NAMES, 0)

    def look(self, row: Mapping[str, float]) -> list[str]:
        """Returns the alarms that this row sets off, a sentence each."""
        sentences = []
        for name, holds in self._now(row).items():
            self._runs[name] = self._runs[name] + 1 if holds or self._runs[name] < 0 else 0
            if self._runs[name] == PATIENCE:
                self._runs[name] = RAISED
                sentences.append(self._sentence(name, row))
        return sentences

    def _now(self, row: Mapping[str, float]) -> dict[str, bool]:
        now = {name: row.get(f"drift/{name}", 0.0) > 0.0 for name in ("hacking", "longer")}
        if self.method == "none" or row.get("entropy/released", 0.0) or "entropy/error" not in row:
            return now
        off = math.isfinite(row["entropy/error"]) and abs(row["entropy/error"]) > OFF_TARGET
        changes = [row.get(f"entropy/{key}", math.nan) for key in ("tabular_dh", "tabular_dh_free")]
        too_few = affects_too_few(
            self.method, row.get("entropy/affected", 1.0), effect_of_control([(changes[0], changes[1])])
        )
        saturated = row.get("entropy/saturated", 0.0) > 0.0
        return now | {"saturated": off and saturated, "too_few_tokens": off and too_few}

    def _sentence(self, name: str, row: Mapping[str, float]) -> str:
        if name == "hacking":
            check = f"the environment's own verdict changed by {row['drift/check']:+.3g}"
            if "drift/held_out" in row:
                check += f" and held-out pass@1 by {row['drift/held_out']:+.3g}"
            return (
                f"the reward may be gamed: since the start it rose by {row['drift/reward']:.3g} while {check}, for {PATIENCE} "
                "iterations: read samples.jsonl, and reconsider the weights of the reward"
            )
        if name == "longer":
            way = "longer" if row["drift/length"] > 0 else "shorter"
            return (
                f"responses are {abs(row['drift/length']):.0%} {way} than at the start and the reward rose by "
                f"{row['drift/reward']:.3g}, for {PATIENCE} iterations: read in samples.jsonl whether they are better or only {way}"
            )
        return self._of_the_coefficient(name, row["entropy/error"], row)

    def _of_the_coefficient(self, name: str, error: float, row: Mapping[str, float]) -> str:
        side = "under" if error > 0 else "over"
        where = f"entropy has been {abs(error):.0%} {side} its target"
        if name == "saturated":
            bound = (
                "raise entropy.controller.high"
                if error > 0
                else "lower entropy.controller.low or allow a negative coefficient"
            )
            needed = row.get("entropy/coefficient_needed", math.nan)
            about = f" (about {needed:.2g} is predicted to hold entropy where it is)" if math.isfinite(needed) else ""
            return (
                f"the coefficient of {self.method} is saturated: it stands at its bound {row['entropy/coefficient']:.3g} and "
                f"{where} for {PATIENCE} iterations: {bound}{about}"
            )
        return (
            f"{self.method} acts on too few tokens: it touches {row['entropy/affected']:.2%} of them and {where} for {PATIENCE} "
            "iterations: take more updates or epochs a batch, or choose a method that acts on every token"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"runs": dict(self._runs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the counts, those of older checkpoints too, which have other names for two of them."""
        counts: dict[str, int] = state["runs"]
        self._runs |= {RENAMED.get(name, name): count for name, count in counts.items()}
