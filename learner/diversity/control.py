"""Moves the coefficient of diversity towards its target and changes rewards by it: on the driver, before the batch is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from envs.types import Group
from learner.diversity.rewards import diversified, measure
from learner.diversity.settings import DiversitySettings, build_controller
from learner.entropy.base import AtBoundary
from learner.entropy.steering import ControlLoop
from learner.entropy.target import Target
from learner.types import Observed

# Of the running mean of the collision probability. Its estimate from 16 simulated groups with two or three correct responses each
# had a standard deviation of a third, and 1 / it more.
MEMORY = 0.8


class DiversityControl:
    """Joins the section's controller and target: the loop of entropy control, on the effective number of solutions.

    Its state is in every checkpoint. As with entropy, the number is observed before the updates that the coefficient shapes: a
    running mean of it, since one batch has few pairs of correct responses.
    """

    def __init__(self, settings: DiversitySettings) -> None:
        self.settings = settings
        self._begin()

    def _begin(self) -> None:
        self.loop = ControlLoop(build_controller(self.settings.controller), Target(self.settings.target.followed()))
        self._forget()

    def _forget(self) -> None:
        self._collision = self._weight = 0.0  # the running mean is their quotient

    def set_start(self, groups: Sequence[Group]) -> None:
        """Takes the number of solutions in these groups, of the policy before the first update, as the target's start."""
        self.loop.target.set_start(measure(groups, self.settings.compare_texts).effective)

    def observe(self, groups: Sequence[Group], trained: bool) -> dict[str, float]:
        """Moves the coefficient by all groups of an iteration, dropped ones included. Returns the metrics diversity/...

        trained: whether updates follow; without any the coefficient stays, as it does where no two responses are correct.
        """
        found = measure(groups, self.settings.compare_texts)
        running = math.nan
        if math.isfinite(found.effective):
            self._collision = MEMORY * self._collision + (1 - MEMORY) / found.effective
            self._weight = MEMORY * self._weight + (1 - MEMORY)
            running = self._weight / self._collision
        self.loop.observe(Observed(running, trained=trained))
        metrics = {"diversity/coefficient": self.coefficient, "diversity/saturated": float(self.loop.saturated)}
        if math.isfinite(found.effective):
            metrics |= {
                "diversity/solutions": found.effective,
                "diversity/controlled": running,
                "diversity/shared": found.shared,
            }
        if self.settings.target.solutions is not None or math.isfinite(self.loop.target.start):
            metrics["diversity/target"] = self.loop.aim
        return metrics

    @property
    def coefficient(self) -> float:
        return self.loop.controller.effective

    def apply(self, groups: Sequence[Group]) -> list[Group]:
        """Returns the groups with the rewards that are trained on, at the present coefficient."""
        return [diversified(group, self.coefficient, self.settings.compare_texts) for group in groups]

    def begin_stage(self, controller: AtBoundary) -> None:
        """Keeps, resets or anchors the loop anew, as the stage says of entropy's."""
        if controller == "reset":
            self._begin()
        elif controller == "reanchor":
            self.loop.target.anchor()
            self._forget()

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {
            "controller": self.loop.controller.state_dict(),
            "target": self.loop.target.state_dict(),
            "mean": {"collision": self._collision, "weight": self._weight},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loop.controller.load_state_dict(dict(state["controller"]))
        self.loop.target.load_state_dict(dict(state["target"]))
        self._collision, self._weight = state["mean"]["collision"], state["mean"]["weight"]
