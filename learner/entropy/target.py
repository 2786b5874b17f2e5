"""Where entropy should be: absolute, or a fraction of where the run started."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from learner.entropy import base

SMALLEST = 1e-9  # nats


class TargetSettings(base.Settings):
    """Exactly one of `nats` and `fraction`. The default is the run's own start, as published."""

    nats: float | None = Field(default=None, gt=0)
    fraction: float | None = Field(default=None, gt=0)
    average_over: int = Field(default=5, ge=1)  # iterations that define the start: a single small batch is noisy

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.nats is not None and self.fraction is not None:
            raise ValueError(f"nats ({self.nats:g}) and fraction ({self.fraction:g}) both set the target: give one")
        return self


class Target:
    """Until `average_over` iterations are in, the start is the mean of those seen so far."""

    def __init__(self, settings: TargetSettings) -> None:
        self.settings = settings
        self.total = 0.0
        self.count = 0

    def observe(self, entropy: float) -> float:
        """entropy: nats per token of this iteration. Returns the target in nats."""
        if self.count < self.settings.average_over:
            self.total += entropy
            self.count += 1
        if self.settings.nats is not None:  # the start is kept all the same: a resumed run may ask for a fraction of it
            return self.settings.nats
        fraction = 1.0 if self.settings.fraction is None else self.settings.fraction
        # A policy that starts without any entropy gives a target that is not 0: errors are relative to it.
        return max(fraction * self.total / self.count, SMALLEST)

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total, "count": float(self.count)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.total, self.count = state["total"], int(state["count"])
