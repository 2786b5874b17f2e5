"""Moves a coefficient: pure, bounded, validated.

A controller is called once per iteration with the globally measured entropy, before the updates that the coefficient then shapes.

To add one: a class that satisfies `Controller` and a line in build.CONTROLLERS. Bounds and start default to the method's.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from learner.entropy import base
from learner.settings import KindSettings
from learner.types import Observed


class Limits(KindSettings):
    """Bounds the changes of the coefficient."""

    dead_band: float = Field(default=0.0, ge=0, lt=1)  # relative error within which the coefficient stays where it is
    max_change: float | None = Field(default=None, gt=0)  # of the coefficient in one iteration


class Range(Limits):
    """Bounds the coefficient's magnitude as well.

    What is left out comes from the method; `high` then rises to what the batches turn out to need: see `Base.follow`."""

    start: float | None = None
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): give low <= high")
        return self

    def over(self, bounds: base.CoefficientRange) -> base.CoefficientRange:
        """Returns the method's range with what was set here; a start outside the bounds is refused, not clamped."""
        own = self.model_dump(include={"start", "low", "high"}, exclude_none=True)
        if self.start is not None and self.high is None and bounds.linear:
            own["high"] = max(bounds.high, abs(self.start))
        made = bounds.model_copy(update=own)
        if made.low > made.high:
            raise ValueError(
                f"the coefficient's low ({made.low:g}) is above its high ({made.high:g}): give low <= high"
            )
        if not made.low <= abs(made.start) <= made.high or (made.start < 0 and not made.signed):
            raise ValueError(
                f"the coefficient starts at {made.start:g}, outside its bounds [{made.low:g}, {made.high:g}]: move start, low or "
                "high"
            )
        return made


class Controller(Protocol):
    """Moves one coefficient towards its target."""

    Settings: ClassVar[type[KindSettings]]
    coefficient_range: base.CoefficientRange
    value: float

    @property
    def effective(self) -> float:
        """Returns the coefficient as the method is given it."""
        ...

    @property
    def lowest(self) -> float:
        """Returns the smallest value the coefficient can take."""
        ...

    @property
    def needed(self) -> float:
        """Returns the coefficient that is predicted to hold entropy where it is; nan where no prediction is linear in it."""
        ...

    def update(self, observed: Observed, target: float) -> None:
        """Moves the coefficient. target: nats per token, > 0."""
        ...

    def saturated(self, entropy: float, target: float) -> bool:
        """Returns whether the coefficient is at the bound that the error pushes it against."""
        ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


MEANS = ("free", "slope")  # of `Observed`, in every controller's state


class Base:
    """Holds the coefficient's value, its bounds, and the state every controller has. `STATE` names what is saved."""

    STATE: ClassVar[tuple[str, ...]] = ("value",)
    SPAN: ClassVar[float] = (
        8.0  # an upper bound that was left out is at least so many times what is needed: three doublings
    )

    def __init__(self, bounds: base.CoefficientRange, settings: Range | None = None) -> None:
        self.coefficient_range = bounds if settings is None else settings.over(bounds)
        self.dead_band = settings.dead_band if settings else 0.0
        self.max_change = settings.max_change if settings else None
        self.value = self.coefficient_range.start
        self._given_high = self.coefficient_range.high
        self._open = settings is not None and settings.high is None and bounds.linear  # the upper bound was left out
        self.memory = 0.9  # of the running means, over iterations
        self.free = self.slope = 0.0

    def update(self, observed: Observed, target: float) -> None:
        self.follow(observed)
        self.act(observed, target)

    def act(self, observed: Observed, target: float) -> None:
        """Moves the coefficient, once the bounds follow the batch."""
        raise NotImplementedError

    def follow(self, observed: Observed) -> None:
        """Keeps running means of the prediction, and raises an upper bound that was left out to SPAN times what it needs.

        Published bounds suit the models they were published for: 0.05 is the highest coefficient of REPO-R for models of billions
        of parameters, and one of a hundred thousand needs four times that to hold its entropy. The lower bound stays: a
        coefficient that had to jump over it would not be the published one."""
        if math.isfinite(observed.free) and math.isfinite(observed.slope):
            self.free = self.memory * self.free + (1 - self.memory) * observed.free
            self.slope = self.memory * self.slope + (1 - self.memory) * observed.slope
            self._widen()

    def _widen(self) -> None:
        if self._open and self.needed > 0:
            high = max(self._given_high, self.SPAN * self.needed)
            self.coefficient_range = self.coefficient_range.model_copy(update={"high": high})

    @property
    def needed(self) -> float:
        return -self.free / self.slope if self.slope > 0 else math.nan

    @property
    def effective(self) -> float:
        return self.value

    @property
    def lowest(self) -> float:
        return self.coefficient_range.low

    def idle(self, error: float) -> bool:
        """Returns whether the error is within the dead band, where nothing moves, integrators included."""
        return abs(error) < self.dead_band

    def move(self, wanted: float) -> None:
        """Moves the value to `wanted`, as far as one iteration and the bounds allow."""
        if self.max_change is not None:
            wanted = min(max(wanted, self.value - self.max_change), self.value + self.max_change)
        self.value = min(max(wanted, self.lowest), self.coefficient_range.high)

    def saturated(self, entropy: float, target: float) -> bool:
        if self.idle(relative_error(entropy, target)):
            return False
        return self.value >= self.coefficient_range.high if entropy < target else self.value <= self.lowest

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*self.STATE, *MEANS)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name in (*self.STATE, *MEANS):
            value = state.get(name, 0.0) if name in MEANS else state[name]  # older checkpoints have no means
            if not math.isfinite(value):
                what = "coefficient" if name == "value" else f"controller's {name}"
                raise ValueError(f"the saved {what} is {value}: the checkpoint cannot be resumed")
            setattr(self, name, value)
        self._widen()


def relative_error(entropy: float, target: float) -> float:
    return (target - entropy) / target


class Fixed(Base):
    """Keeps the coefficient where it was set. A fixed coefficient is never saturated: nothing steers it."""

    class Settings(KindSettings):
        kind: Literal["fixed"] = "fixed"
        value: float | None = None  # None: the method's start

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        if settings.value is not None:
            if settings.value < 0 and not bounds.signed:
                raise ValueError(
                    f"a fixed coefficient of {settings.value:g} is negative and this method's coefficient cannot be"
                )
            bounds = bounds.model_copy(update={"start": settings.value, "low": settings.value, "high": settings.value})
        super().__init__(bounds)

    def act(self, observed: Observed, target: float) -> None: ...

    def saturated(self, entropy: float, target: float) -> bool:
        return False


class Doubling(Base):
    """Doubles the coefficient while entropy is below its target and halves it while above, as published (arXiv 2603.11682).

    At `low` it changes sign, if the method's coefficient can, so that it may push entropy down too. That flip undershoots early
    when the target lies below the start; `allow_negative: false` stops at `low` instead."""

    class Settings(Range):
        kind: Literal["doubling"]
        allow_negative: bool = True

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        super().__init__(bounds, settings)
        if self.coefficient_range.low == 0:
            raise ValueError("the doubling controller needs a low bound above 0: halving never reaches 0")
        if self.coefficient_range.start == 0:
            raise ValueError("the doubling controller needs a start other than 0: doubling never leaves 0")
        self.negative = settings.allow_negative and self.coefficient_range.signed
        if self.coefficient_range.start < 0 and not self.negative:
            raise ValueError(
                f"the coefficient starts at {self.coefficient_range.start:g} and allow_negative is false: start at a positive value"
            )

    @property
    def lowest(self) -> float:
        return -self.coefficient_range.high if self.negative else self.coefficient_range.low

    def act(self, observed: Observed, target: float) -> None:
        if self.idle(relative_error(observed.entropy, target)):
            return
        # `up` is the direction of the coefficient's sign: a negative coefficient grows in magnitude when entropy is too high.
        sign = 1.0 if self.value > 0 else -1.0
        grow = (observed.entropy < target) == (sign > 0)
        magnitude = abs(self.value) * (2.0 if grow else 0.5)
        if magnitude < self.coefficient_range.low:
            sign = -sign if self.negative or sign < 0 else sign
        self.move(sign * min(max(magnitude, self.coefficient_range.low), self.coefficient_range.high))


class Proportional(Base):
    """Sets coefficient = gain * (target - H) / target, within +-high (signed) or [low, high]: on REPO, its proportional form."""

    class Settings(Range):
        kind: Literal["proportional"]
        gain: float = Field(gt=0)

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        super().__init__(bounds, settings)
        self.gain = settings.gain

    @property
    def lowest(self) -> float:
        return -self.coefficient_range.high if self.coefficient_range.signed else self.coefficient_range.low

    def act(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        if not self.idle(error):
            self.move(self.gain * error)


class Additive(Base):
    """Adds `step` to the coefficient while entropy is below its target and takes it away while above, down to 0.

    With `gated: true` the coefficient acts only while entropy is at or below its target: the adaptive entropy control of
    Skywork-OR1 (arXiv 2505.22312, section 4), made for the bonus: target 0.2 nats, step 1e-4, high 5e-3."""

    class Settings(Range):
        kind: Literal["additive"]
        step: float = Field(default=1e-4, gt=0)
        gated: bool = False

    STATE = ("value", "gate")

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        super().__init__(bounds.model_copy(update={"low": 0.0}), settings)
        self.step, self.gated = settings.step, settings.gated
        self.gate = 1.0

    @property
    def effective(self) -> float:
        return self.value * self.gate

    def act(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        self.gate = float(not self.gated or error >= 0)
        if not self.idle(error):
            self.move(self.value + (self.step if error > 0 else -self.step))


class Band(Base):
    """Turns the coefficient fully up below the band around the target, fully down above it, and off within: +-`high` or 0.

    The band is the dead band, 8 % to either side unless set: Entrocraft's (arXiv 2604.26326) of 0.6 to 0.7 of the start is a target
    of 0.65 with that. A coefficient without a sign is `low` above the band. It is never saturated: all or nothing is what it does.
    """

    class Settings(Range):
        kind: Literal["band"]
        dead_band: float = Field(default=0.08, gt=0, lt=1)

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        super().__init__(bounds, settings)

    @property
    def lowest(self) -> float:
        return -self.coefficient_range.high if self.coefficient_range.signed else self.coefficient_range.low

    def act(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        self.move(self.coefficient_range.start if self.idle(error) else math.copysign(math.inf, error))

    def saturated(self, entropy: float, target: float) -> bool:
        return False


class PI(Base):
    """Acts proportionally and integrally on the logarithm of the coefficient, which stays positive.

    log coefficient += gain * (e - e before) + integral * e,  e = (target - H) / target: the velocity form, so that a coefficient
    at its bound winds nothing up."""

    class Settings(Range):
        kind: Literal["pi"]
        gain: float = Field(default=4.0, ge=0)
        integral: float = Field(default=1.0, gt=0)

    STATE = ("value", "before")

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        super().__init__(bounds, settings)
        low, start = self.coefficient_range.low, self.coefficient_range.start
        if not low > 0 or not start > 0:
            raise ValueError(
                f"the pi controller moves the logarithm of the coefficient: low ({low:g}) and start ({start:g}) have to be above 0"
            )
        self.gain, self.integral = settings.gain, settings.integral
        self.before = 0.0

    def act(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        change = self.gain * (error - self.before) + self.integral * error
        self.before = error
        if not self.idle(error):
            self.move(self.value * math.exp(min(max(change, -5.0), 5.0)))
