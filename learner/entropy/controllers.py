"""What moves a knob: pure, bounded, validated. Called once per iteration with the globally measured entropy.

To add one: a class that satisfies `Controller` and a line in build.CONTROLLERS. Bounds and start default to the method's.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from learner.entropy import base


class Range(base.Settings):
    """Bounds of the knob's magnitude; what is left out comes from the method."""

    start: float | None = None
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): give low <= high")
        return self

    def over(self, knob: base.Knob) -> base.Knob:
        """The method's knob with what was set here; a start outside the bounds is refused, not clamped."""
        given = {k: v for k in ("start", "low", "high") if (v := getattr(self, k)) is not None}
        made = knob.model_copy(update=given)
        if made.low > made.high:
            raise ValueError(f"the knob's low ({made.low:g}) is above its high ({made.high:g}): give low <= high")
        if not made.low <= abs(made.start) <= made.high or (made.start < 0 and not made.signed):
            raise ValueError(
                f"the knob starts at {made.start:g}, outside its bounds [{made.low:g}, {made.high:g}]: move start, low or high"
            )
        return made


class Controller(Protocol):
    Settings: ClassVar[type[base.Settings]]
    knob: base.Knob
    value: float

    def update(self, entropy: float, target: float) -> None:
        """entropy, target: nats per token, target > 0."""
        ...

    def saturated(self, entropy: float, target: float) -> bool:
        """The knob is at the bound that the error pushes it against."""
        ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class _Base:
    """The state every controller has: the knob's value."""

    def __init__(self, knob: base.Knob) -> None:
        self.knob = knob
        self.value = knob.start

    @property
    def lowest(self) -> float:
        return self.knob.low

    def saturated(self, entropy: float, target: float) -> bool:
        return self.value >= self.knob.high if entropy < target else self.value <= self.lowest

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        value = state["value"]
        if not math.isfinite(value):
            raise ValueError(f"the saved knob is {value}: the checkpoint cannot be resumed")
        self.value = value


class Fixed(_Base):
    """The knob stays where it was put. A fixed knob is never "saturated": nothing steers it."""

    class Settings(base.Settings):
        kind: Literal["fixed"] = "fixed"
        value: float | None = None  # None: the method's start

    def __init__(self, settings: Settings, knob: base.Knob) -> None:
        if settings.value is not None:
            if settings.value < 0 and not knob.signed:
                raise ValueError(f"a fixed knob of {settings.value:g} is negative and this method's knob cannot be")
            knob = knob.model_copy(update={"start": settings.value, "low": settings.value, "high": settings.value})
        super().__init__(knob)

    def update(self, entropy: float, target: float) -> None: ...

    def saturated(self, entropy: float, target: float) -> bool:
        return False


class Doubling(_Base):
    """The published controller: entropy below target doubles the knob, above halves it (arXiv 2603.11682).

    At `low` it changes sign, if the method's knob can, so that it may push entropy down too. That flip undershoots early when
    the target lies below the start; `allow_negative: false` stops at `low` instead.
    """

    class Settings(Range):
        kind: Literal["doubling"]
        allow_negative: bool = True

    def __init__(self, settings: Settings, knob: base.Knob) -> None:
        super().__init__(settings.over(knob))
        if self.knob.low == 0:
            raise ValueError("the doubling controller needs a low bound above 0: halving never reaches 0")
        if self.knob.start == 0:
            raise ValueError("the doubling controller needs a start other than 0: doubling never leaves 0")
        self.negative = settings.allow_negative and self.knob.signed
        if self.knob.start < 0 and not self.negative:
            raise ValueError(
                f"the knob starts at {self.knob.start:g} and allow_negative is false: start at a positive value"
            )

    @property
    def lowest(self) -> float:
        return -self.knob.high if self.negative else self.knob.low

    def update(self, entropy: float, target: float) -> None:
        # `up` is the direction of the knob's sign: a negative knob grows in magnitude when entropy is too high.
        sign = 1.0 if self.value > 0 else -1.0
        grow = (entropy < target) == (sign > 0)
        magnitude = abs(self.value) * (2.0 if grow else 0.5)
        if magnitude < self.knob.low:
            sign = -sign if self.negative or sign < 0 else sign
        self.value = sign * min(max(magnitude, self.knob.low), self.knob.high)


class Proportional(_Base):
    """knob = gain * (target - H) / target, within +-high (signed knobs) or [low, high]. REPO-D's proportional form."""

    class Settings(Range):
        kind: Literal["proportional"]
        gain: float = Field(gt=0)

    def __init__(self, settings: Settings, knob: base.Knob) -> None:
        super().__init__(settings.over(knob))
        self.gain = settings.gain

    @property
    def lowest(self) -> float:
        return -self.knob.high if self.knob.signed else self.knob.low

    def update(self, entropy: float, target: float) -> None:
        self.value = min(max(self.gain * (target - entropy) / target, self.lowest), self.knob.high)
