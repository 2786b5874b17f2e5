"""Declares the section `entropy`: which method, moved by which controller, towards which target. Without torch."""

from __future__ import annotations

from typing import Any, Self, cast

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from learner.entropy.build import CONTROLLERS, METHODS, build, parse
from learner.entropy.target import TargetSettings
from learner.settings import KindSettings, Settings

# What holds entropy where a recipe names no method. Chosen by measurement: see "The entropy grid" in tests/benchmarks/RESULTS.md.
HELD: dict[str, Any] = {"method": {"kind": "repo"}, "controller": {"kind": "isentropic"}, "target": {"fraction": 0.7}}


class EntropySettings(Settings):
    """Holds the parts of entropy control. Without a method they are REPO, isentropic, 0.7 of the start; `method: {kind: none}`
    controls nothing.

    A target that is given replaces the default as a whole: without nats and fraction it is 1.0 of the start. A method that is
    named without a controller has the fixed one.
    """

    method: SerializeAsAny[KindSettings]
    controller: SerializeAsAny[KindSettings]
    target: TargetSettings = TargetSettings()
    # Targets of their own, by the name an environment's metrics go by.
    environments: dict[str, TargetSettings] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        parts = cast("dict[str, object]", data)
        return {**HELD, **parts} if "method" not in parts else {"controller": {"kind": "fixed"}, **parts}

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return parse(METHODS, value, "method")

    @field_validator("controller", mode="before")
    @classmethod
    def _controller(cls, value: Any) -> Any:
        return parse(CONTROLLERS, value, "controller")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.method.kind == "none" and (self.environments or self.controller.kind != "fixed"):
            what = "entropy.environments" if self.environments else "entropy.controller"
            raise ValueError(
                f"entropy.method is none, which has no coefficient to steer: leave {what} out or choose a method"
            )
        build(self.method, self.controller, self.target, self.environments)
        return self

    @property
    def start_responses(self) -> int:
        """Returns how many responses the targets' starts are measured on; 0 where no target is a fraction of its start."""
        targets = [] if self.method.kind == "none" else [self.target, *self.environments.values()]
        return max((t.start_responses for t in targets if t.nats is None), default=0)

    def annealed(self, iterations: int) -> EntropySettings:
        """Returns the same control with a schedule over `iterations` for every target that is a pair of fractions."""
        own = {name: target.annealed(iterations) for name, target in self.environments.items()}
        return self.model_copy(update={"target": self.target.annealed(iterations), "environments": own})

    @property
    def kind(self) -> str:
        """Returns the method's kind."""
        return self.method.kind
