"""The interface of entropy control.

A method says what its knob does to the loss; a controller moves the knob; a target says where entropy should be. Every
knob is oriented the same way: turning it up is meant to raise entropy. To add a method, write one file with a class that
satisfies `Method` and name it in build.METHODS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from learner.types import Shaping, TokenStats

if TYPE_CHECKING:
    from learner.entropy.controllers import Controller
    from learner.entropy.target import Target
    from learner.ledger import LedgerRow


class Settings(BaseModel):
    """Base of all settings here: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Knob(BaseModel):
    """What a method asks of a controller: where it starts, how far it may go, whether a negative value means anything."""

    model_config = ConfigDict(frozen=True)
    start: float
    low: float  # smallest magnitude a controller moves to
    high: float  # largest magnitude
    signed: bool  # a negative knob pushes entropy down


class Method(Protocol):
    """One way to act on entropy. Pure: `shape` depends on its arguments alone."""

    Settings: ClassVar[type[Settings]]
    knob: ClassVar[Knob]
    # "token": `shape` treats every token by itself and may be called on any part of a batch.
    # "batch": `shape` takes statistics over tokens and is called once per update, on the whole global batch.
    scope: ClassVar[Literal["token", "batch"]]
    # Surrogates under which the method acts at all; None: all. A combination that does nothing is refused.
    surrogates: ClassVar[frozenset[str] | None]

    def shape(self, tokens: TokenStats, knob: float) -> Shaping: ...


class Steering:
    """A method, its controller and its target: the entropy protocol the learner speaks.

    Its state is in every checkpoint and is the same on every rank, because what it observes is globally reduced.
    """

    def __init__(self, method: Method, controller: Controller, target: Target) -> None:
        self.method = method
        self.controller = controller
        self.target = target

    def shape(self, tokens: TokenStats) -> Shaping:
        return self.method.shape(tokens, self.controller.value)

    def observe(self, row: LedgerRow) -> dict[str, float]:
        """Once per iteration, after its updates: the controller moves the knob for the next one. Returns metrics."""
        target = self.target.observe(row.entropy_exact)
        used = self.controller.value
        self.controller.update(row.entropy_exact, target)
        return {
            "entropy/target": target,
            "entropy/error": (target - row.entropy_exact) / target,
            "entropy/knob": used,
            "entropy/knob_low": self.controller.knob.low,
            "entropy/knob_high": self.controller.knob.high,
            "entropy/saturated": float(self.controller.saturated(row.entropy_exact, target)),
        }

    def state_dict(self) -> dict[str, float]:
        return {
            **{f"controller/{k}": v for k, v in self.controller.state_dict().items()},
            **{f"target/{k}": v for k, v in self.target.state_dict().items()},
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        for part, holder in (("controller/", self.controller), ("target/", self.target)):
            holder.load_state_dict({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})
