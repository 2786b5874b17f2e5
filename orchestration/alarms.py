"""What a person should hear once while a run goes on: an actuator that is spent, or that touches nothing. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

PATIENCE = 5  # iterations in a row: one noisy batch is no news
OFF_TARGET = 0.05  # relative error that a spent knob is told of
NO_AUTHORITY = 0.01  # share of tokens: under it a knob has nothing to act on


class Alarms:
    """Looks at every iteration's row; each alarm speaks once a run."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._runs = {"spent": 0, "idle": 0}

    def look(self, row: Mapping[str, float]) -> list[str]:
        """The alarms that this row sets off, a sentence each."""
        if self.method == "none" or row.get("entropy/released", 0.0) or "entropy/error" not in row:
            return []
        error, touched = row["entropy/error"], row.get("entropy/authority", 1.0)
        off = math.isfinite(error) and abs(error) > OFF_TARGET
        now = {
            "spent": off and row.get("entropy/saturated", 0.0) > 0.0,
            "idle": off
            and touched < NO_AUTHORITY
            and self.method not in ("clip_cov", "kl_cov"),  # few tokens by design
        }
        said = []
        for name, holds in now.items():
            self._runs[name] = self._runs[name] + 1 if holds else 0
            if self._runs[name] == PATIENCE:
                self._runs[name] = -(10**9)  # never again
                said.append(self._sentence(name, row, error, touched))
        return said

    def _sentence(self, name: str, row: Mapping[str, float], error: float, touched: float) -> str:
        side = "under" if error > 0 else "over"
        where = f"entropy has been {abs(error):.0%} {side} its target"
        if name == "spent":
            bound = (
                "raise entropy.controller.high"
                if error > 0
                else "lower entropy.controller.low or allow a negative knob"
            )
            return (
                f"the knob of {self.method} is spent: it stands at its bound {row['entropy/knob']:.3g} and {where} for "
                f"{PATIENCE} iterations: {bound}"
            )
        return (
            f"{self.method} has no authority: it touches {touched:.2%} of the tokens and {where} for {PATIENCE} iterations: "
            "take more updates or epochs a batch, or choose a method that acts on every token"
        )
