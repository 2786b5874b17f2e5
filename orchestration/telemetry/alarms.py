"""What a person should hear once in a run: an actuator that is spent or touches nothing, a reward that is gamed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PATIENCE = 5  # iterations in a row: one noisy batch is no news
OFF_TARGET = 0.05  # relative error that a spent coefficient is told of
NO_AUTHORITY = 0.01  # share of tokens: under it a coefficient has nothing to act on
SAID = -(10**9)  # never again


class Alarms:
    """Looks at every iteration's row; each alarm speaks once a run, resumed or not: its state goes to the checkpoint."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._runs = {"spent": 0, "idle": 0, "hacking": 0, "longer": 0}

    def look(self, row: Mapping[str, float]) -> list[str]:
        """The alarms that this row sets off, a sentence each."""
        said = []
        for name, holds in self._now(row).items():
            self._runs[name] = self._runs[name] + 1 if holds or self._runs[name] < 0 else 0
            if self._runs[name] == PATIENCE:
                self._runs[name] = SAID
                said.append(self._sentence(name, row))
        return said

    def _now(self, row: Mapping[str, float]) -> dict[str, bool]:
        now = {name: row.get(f"drift/{name}", 0.0) > 0.0 for name in ("hacking", "longer")}
        if self.method == "none" or row.get("entropy/released", 0.0) or "entropy/error" not in row:
            return now
        off = math.isfinite(row["entropy/error"]) and abs(row["entropy/error"]) > OFF_TARGET
        few = row.get("entropy/affected", 1.0) < NO_AUTHORITY and self.method not in (
            "clip_cov",
            "kl_cov",
        )  # by design
        return now | {"spent": off and row.get("entropy/saturated", 0.0) > 0.0, "idle": off and few}

    def _sentence(self, name: str, row: Mapping[str, float]) -> str:
        if name == "hacking":
            check = f"the environment's own verdict changed by {row['drift/check']:+.3g}"
            if "drift/held_out" in row:
                check += f" and held-out pass@1 by {row['drift/held_out']:+.3g}"
            return (
                f"the reward may be gamed: since the start it rose by {row['drift/reward']:.3g} while {check}, for {PATIENCE} "
                "iterations: read samples.jsonl, and weigh the terms of the reward anew"
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
        if name == "spent":
            bound = (
                "raise entropy.controller.high"
                if error > 0
                else "lower entropy.controller.low or allow a negative coefficient"
            )
            return (
                f"the coefficient of {self.method} is saturated: it stands at its bound {row['entropy/coefficient']:.3g} and "
                f"{where} for {PATIENCE} iterations: {bound}"
            )
        return (
            f"{self.method} has no authority: it touches {row['entropy/affected']:.2%} of the tokens and {where} for {PATIENCE} "
            "iterations: take more updates or epochs a batch, or choose a method that acts on every token"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"runs": dict(self._runs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._runs |= state["runs"]
