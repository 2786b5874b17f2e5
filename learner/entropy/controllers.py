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
    """Bounds the coefficient's magnitude as well; what is left out of the bounds comes from the method."""

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

    def update(self, observed: Observed, target: float) -> None:
        """Moves the coefficient. target: nats per token, > 0."""
        ...

    def saturated(self, entropy: float, target: float) -> bool:
        """Returns whether the coefficient is at the bound that the error pushes it against."""
        ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class _Base:
    """The coefficient's value, its bounds, and the state every controller has. `STATE` names what is saved."""

    STATE: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(self, bounds: base.CoefficientRange, settings: Range | None = None) -> None:
        self.coefficient_range = bounds if settings is None else settings.over(bounds)
        self.dead_band = settings.dead_band if settings else 0.0
        self.max_change = settings.max_change if settings else None
        self.value = self.coefficient_range.start

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
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name in self.STATE:
            value = state[name]
            if not math.isfinite(value):
                what = "coefficient" if name == "value" else f"controller's {name}"
                raise ValueError(f"the saved {what} is {value}: the checkpoint cannot be resumed")
            setattr(self, name, value)


def relative_error(entropy: float, target: float) -> float:
    return (target - entropy) / target


class Fixed(_Base):
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

    def update(self, observed: Observed, target: float) -> None: ...

    def saturated(self, entropy: float, target: float) -> bool:
        return False


class Doubling(_Base):
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

    def update(self, observed: Observed, target: float) -> None:
        if self.idle(relative_error(observed.entropy, target)):
            return
        # `up` is the direction of the coefficient's sign: a negative coefficient grows in magnitude when entropy is too high.
        sign = 1.0 if self.value > 0 else -1.0
        grow = (observed.entropy < target) == (sign > 0)
        magnitude = abs(self.value) * (2.0 if grow else 0.5)
        if magnitude < self.coefficient_range.low:
            sign = -sign if self.negative or sign < 0 else sign
        self.move(sign * min(max(magnitude, self.coefficient_range.low), self.coefficient_range.high))


class Proportional(_Base):
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

    def update(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        if not self.idle(error):
            self.move(self.gain * error)


class Additive(_Base):
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

    def update(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        self.gate = float(not self.gated or error >= 0)
        if not self.idle(error):
            self.move(self.value + (self.step if error > 0 else -self.step))


class Band(_Base):
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

    def update(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        self.move(self.coefficient_range.start if self.idle(error) else math.copysign(math.inf, error))

    def saturated(self, entropy: float, target: float) -> bool:
        return False


class PI(_Base):
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

    def update(self, observed: Observed, target: float) -> None:
        error = relative_error(observed.entropy, target)
        change = self.gain * (error - self.before) + self.integral * error
        self.before = error
        if not self.idle(error):
            self.move(self.value * math.exp(min(max(change, -5.0), 5.0)))


class Isentropic(_Base):
    """Cancels the predicted change of entropy, and adds feedback for what the prediction misses.

        coefficient = M(-free) / M(slope) + unit * (gain * max(e - lookahead * d, -REACH) + integral * sum(e within +-REACH)),
        e = (target - H) / target,    d = what the last iteration's steps did to H / target

    The predicted dH of a batch is free + coefficient * slope (learner/ledger/predicted.py), so the first term holds entropy
    where it is, to first order; M is a running mean over iterations. `unit` is the root mean square of the advantages for
    coefficients that are added to advantages, 1 for coefficients that multiply them: the gains need no tuning to the scale of
    rewards. Nor does a range need tuning: the bounds are +-`high`, in the same unit. Nothing winds up on the way to a
    distant target: the sum counts no error as larger than REACH and stops growing while the coefficient is at its bound. A target
    far below the start is let come: policy gradients lower entropy by themselves, and pushing towards it with all force would
    spend the first updates on unlearning. `lookahead` is for how many iterations the steps' present effect is taken to go on, by
    the optimiser's momentum above all: a policy that falls fast is caught above its target. The effect is that on the same
    responses (learner/ledger/step_effect.py), free of the noise between two batches. Nor may the coefficient move by more than
    `max_change`, in the same unit, in one iteration: the first ones follow from a few responses. Needs a method whose effect is
    linear in the coefficient: repo, repo_r, bonus."""

    class Settings(Limits):
        kind: Literal["isentropic"]
        gain: float = Field(default=3.0, ge=0)
        integral: float = Field(default=0.15, ge=0)
        lookahead: float = Field(default=3.0, ge=0)
        memory: float = Field(default=0.9, ge=0, lt=1)  # of the running means
        high: float = Field(default=5.0, gt=0)
        max_change: float | None = Field(default=0.5, gt=0)

    STATE = ("value", "free", "slope", "advantage", "weight", "sum")
    REACH = 0.1

    def __init__(self, settings: Settings, bounds: base.CoefficientRange) -> None:
        if not bounds.linear:
            raise ValueError(
                "the isentropic controller needs a method whose effect is linear in its coefficient: repo, repo_r or bonus"
            )
        super().__init__(bounds.model_copy(update={"start": 0.0, "low": 0.0, "high": settings.high}))
        self.settings = settings
        self.dead_band = settings.dead_band
        self.free = self.slope = self.advantage = self.weight = self.sum = 0.0

    @property
    def lowest(self) -> float:
        return -self.coefficient_range.high

    def _scale(self) -> float:
        """Returns the unit of the coefficient by now; the bounds follow it."""
        unit = 1.0
        if self.coefficient_range.unit == "advantage" and self.weight:
            unit = max(math.sqrt(self.advantage / self.weight), 1e-6)
        self.coefficient_range = self.coefficient_range.model_copy(update={"high": self.settings.high * unit})
        self.max_change = None if self.settings.max_change is None else self.settings.max_change * unit
        return unit

    def load_state_dict(self, state: dict[str, float]) -> None:
        super().load_state_dict(state)
        self._scale()

    def update(self, observed: Observed, target: float) -> None:
        s, error = self.settings, relative_error(observed.entropy, target)
        for name, value in (
            ("free", observed.free),
            ("slope", observed.slope),
            ("advantage", observed.advantage**2),
            ("weight", 1.0),
        ):
            setattr(self, name, s.memory * getattr(self, name) + (1 - s.memory) * value)
        unit = self._scale()
        if self.idle(error):
            return
        held = -self.free / self.slope if self.slope > 0 else 0.0
        step = min(max(error, -self.REACH), self.REACH)
        drift = observed.step / target if math.isfinite(observed.step) else 0.0
        ahead = error - s.lookahead * drift
        wanted = held + unit * (s.gain * max(ahead, -self.REACH) + s.integral * (self.sum + step))
        highest = self.coefficient_range.high
        if self.lowest < wanted < highest or wanted * error < 0:  # not pushed further into its bound
            self.sum += step
        self.move(wanted)
