"""Holds what a checkpoint's state.json says of a run: what a resumed run needs beside weights and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner.diversity.control import DiversityControl
from orchestration.config.run_config import RunConfig
from orchestration.sampling.curriculum import Curriculum
from orchestration.sampling.pending import Pending
from orchestration.telemetry.alarms import Alarms
from orchestration.telemetry.reward_hacking import RewardHackingMonitor


@dataclass
class RunState:
    """Holds the state of a run, and saves and restores it.

    rewards          the recipe's section, which `monitor` observes: another one in a resumed run starts it anew
    iteration        the last one that is done
    policy_version   version of the weights that the generators have
    owes_evaluation  whether the evaluation due after `iteration`, or before training, was interrupted or is still to come
    learner          the learner's own state: controller, target, ledger
    diversity        coefficient and target of the section `diversity`; None without it
    pending          the groups that were begun and not trained on; None in a synchronous run
    """

    curriculum: Curriculum
    alarms: Alarms
    rewards: Mapping[str, Any]
    iteration: int = 0
    policy_version: int = 0
    owes_evaluation: bool = False
    monitor: RewardHackingMonitor = field(default_factory=RewardHackingMonitor)
    learner: dict[str, Any] = field(default_factory=dict)
    diversity: DiversityControl | None = None
    pending: Pending | None = None

    @classmethod
    def fresh(cls, config: RunConfig, curriculum: Curriculum) -> RunState:
        """Returns the state of a run that has not begun."""
        return cls(
            curriculum,
            Alarms(config.entropy.kind),
            config.rewards.model_dump(mode="json"),
            owes_evaluation=bool(config.evaluation.prompts) and config.evaluation.start,
            diversity=None if config.diversity is None else DiversityControl(config.diversity),
            pending=Pending() if config.batch.staleness else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as JSON values, under the keys of state.json."""
        return {
            "iteration": self.iteration,
            "policy_version": self.policy_version,
            "curriculum": self.curriculum.state_dict(),
            "owes_evaluation": self.owes_evaluation,
            "rewards": self.rewards,
            "drift": self.monitor.state_dict(),
            "alarms": self.alarms.state_dict(),
            "learner": self.learner,
            **({} if self.diversity is None else {"diversity": self.diversity.state_dict()}),
            **({} if self.pending is None else {"pending": self.pending.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Restores state.json, and the groups that wait in the folder `checkpoint`. `rewards` stay those of the present
        configuration. Raises CheckpointError.

        A checkpoint may be older than "alarms" and "drift", and resuming with another reward leaves "drift" out. A run that was
        synchronous before has no "pending": its ordinals go on behind its iterations. One that was without "diversity" measures its
        start now.
        """
        self.iteration, self.policy_version = int(state["iteration"]), int(state["policy_version"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.owes_evaluation = bool(state["owes_evaluation"])
        self.learner = state["learner"]
        if "drift" in state:
            self.monitor.load_state_dict(state["drift"])
        if "alarms" in state:
            self.alarms.load_state_dict(state["alarms"])
        if self.diversity is not None and "diversity" in state:
            self.diversity.load_state_dict(state["diversity"])
        if self.pending is not None and "pending" in state:
            self.pending.load(state["pending"], checkpoint, self.curriculum.redraw, self.iteration + 1)
        elif self.pending is not None:
            self.pending = Pending(sum(map(sum, self.curriculum.given)))
