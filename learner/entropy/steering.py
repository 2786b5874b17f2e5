"""Steers a method's coefficients: one control loop for all environments, and one more for each with a target of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.entropy.base import AtBoundary, Method, untouched
from learner.entropy.controllers import Controller
from learner.entropy.target import Target
from learner.types import Observed, Shaping, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

    from learner.ledger.history import LedgerRow

COMMON = ""  # the name of the loop of every environment without a target of its own


@dataclass
class ControlLoop:
    """Moves one coefficient towards one target."""

    controller: Controller
    target: Target
    aim: float = math.nan  # of the iteration observed last, as is `entropy`; nats per token
    entropy: float = math.nan

    def observe(self, observed: Observed) -> None:
        """Moves the coefficient for the updates that follow.

        An entropy that was not measured (no successful response) moves nothing, nor does a released target, nor an entropy that no
        update follows, which would wind the coefficient up without a visible effect.
        """
        self.aim = self.target.observe(observed.entropy)
        self.entropy = observed.entropy
        if math.isfinite(observed.entropy) and observed.trained and not self.target.released:
            self.controller.update(observed, self.aim)

    @property
    def error(self) -> float:
        return (self.aim - self.entropy) / self.aim

    @property
    def saturated(self) -> bool:
        measured = math.isfinite(self.entropy) and not self.target.released
        # A coefficient that only raises entropy waits at its lower bound while entropy comes down from the start to the target.
        waits = self.controller.lowest >= 0 and self.aim < self.entropy <= self.target.start
        return measured and not waits and self.controller.saturated(self.entropy, self.aim)


class Steering:
    """Joins a method and its loops: what the learner knows of entropy control.

    Its state is in every checkpoint and is the same on every rank, because what it observes is globally reduced.
    """

    def __init__(self, method: Method, loops: Mapping[str, ControlLoop]) -> None:
        """loops: COMMON, and one for every environment that has a target of its own."""
        self.method = method
        self.loops = dict(loops)

    def begin_stage(self, fresh: Steering, controller: AtBoundary) -> None:
        """Goes on as `fresh`, which was built for the new stage, with what `controller` keeps of the loops so far.

        Raises ValueError where they are not the same loops.
        """
        state = self.state_dict()
        if controller != "reset":
            fresh.load_state_dict(state)
        if controller == "reanchor":
            for loop in fresh.loops.values():
                loop.target.anchor()
        self.method, self.loops = fresh.method, fresh.loops

    @property
    def controller(self) -> Controller:
        return self.loops[COMMON].controller

    def shape(self, tokens: TokenStats, envs: tuple[str, ...]) -> Shaping:
        """Returns what the method does to these tokens at the present coefficients. envs: the names behind tokens.env."""
        if all(loop.target.released for loop in self.loops.values()):
            return untouched(tokens)
        return self.method.shape(tokens, self._coefficient(tokens, envs))

    def probe(self, tokens: TokenStats, envs: tuple[str, ...]) -> tuple[Shaping, float | Tensor] | None:
        """Returns the method's shaping at a non-zero coefficient, and that coefficient: `Observed.slope` is measured with them.
        None for a method that is not linear in its coefficient."""
        if not self.method.coefficient_range.linear:
            return None
        coefficient = self._coefficient(
            tokens, envs, at_least=self.method.coefficient_range.low or self.method.coefficient_range.start
        )
        return self.method.shape(tokens, coefficient), coefficient

    def _coefficient(self, tokens: TokenStats, envs: tuple[str, ...], at_least: float = 0.0) -> float | Tensor:
        """One number for all tokens, or, with several loops, a number a token. [N]"""

        def value(loop: ControlLoop) -> float:
            effective = 0.0 if loop.target.released else loop.controller.effective
            return effective if abs(effective) >= at_least else at_least

        if len(self.loops) == 1:
            return value(self.loops[COMMON])
        table = tokens.logp.new_tensor([value(self.loops.get(name, self.loops[COMMON])) for name in envs])
        return table[tokens.env]

    def set_start(self, row: LedgerRow) -> None:
        """Gives every target its start, the entropy measured in `row`, before the first update."""
        for name, loop in self.loops.items():
            loop.target.set_start(row.observed(self._envs(name, row), loop.target.settings.over).entropy)

    def _envs(self, loop: str, row: LedgerRow) -> list[str]:
        """Lists the environments of the row that a loop controls."""
        return [env for env in row.parts if loop == (env if env in self.loops else COMMON)]

    def observe(self, row: LedgerRow) -> dict[str, float]:
        """Lets the controllers move the coefficients, once per iteration and before its updates. Returns metrics."""
        for name, loop in self.loops.items():
            loop.observe(row.observed(self._envs(name, row), loop.target.settings.over))
        common = self.loops[COMMON]
        out = {
            "entropy/controlled": common.entropy,
            "entropy/target": common.aim,
            "entropy/error": common.error,
            "entropy/coefficient": common.controller.effective,
            "entropy/coefficient_low": common.controller.lowest,
            "entropy/coefficient_high": common.controller.coefficient_range.high,
            "entropy/saturated": float(any(loop.saturated for loop in self.loops.values())),
            "entropy/released": float(common.target.released),
        }
        if math.isfinite(common.target.start):
            out["entropy/start"] = common.target.start
        if math.isfinite(common.controller.needed):
            out["entropy/coefficient_needed"] = common.controller.needed
        for name, loop in self.loops.items():
            if name != COMMON:
                out |= {
                    f"coefficient/{name}": loop.controller.effective,
                    f"target/{name}": loop.aim,
                    f"error/{name}": loop.error,
                    f"saturated/{name}": float(loop.saturated),
                }
        return out

    def state_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        return {
            name: {"controller": loop.controller.state_dict(), "target": loop.target.state_dict()}
            for name, loop in self.loops.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Restores the loops. Raises ValueError where the state is not of these loops."""
        if state.keys() != self.loops.keys():
            saved, here = (", ".join(x or "all" for x in names) for names in (state, self.loops))
            raise ValueError(
                f"the checkpoint has entropy targets for {saved}, the run for {here}: they have to be the same"
            )
        for name, loop in self.loops.items():
            loop.controller.load_state_dict(dict(state[name]["controller"]))
            loop.target.load_state_dict(dict(state[name]["target"]))
