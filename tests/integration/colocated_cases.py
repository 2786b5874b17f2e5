"""Runs a recipe with generators that take turns with the learner, on CPUs: `python colocated_cases.py RECIPE KEY=VALUE... [WHO N]`.

A configuration refuses that without GPUs, so it is changed behind its back. vLLM frees nothing on a CPU and does all the rest; the
learner's state really leaves. WHO, "generator" or "learner", is killed in the learner's turn number N, from 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from orchestration.cluster import actor_settings
from orchestration.cluster.cluster import Cluster
from orchestration.config.run_config import load_config
from orchestration.run import resume
from orchestration.run.lifecycle import train


def main(recipe: str, overrides: list[str], victim: str, when: int) -> int:
    config = load_config(recipe, overrides)
    generators = config.generators.model_copy(update={"colocated": True})
    engine = actor_settings.policy_engine
    actor_settings.policy_engine = lambda _, *more: engine(config, *more)  # the engine itself is one as ever
    turn, turns = Cluster.learners_turn, []

    async def learners_turn(self: Cluster) -> None:
        await turn(self)
        turns.append(self.version)
        if len(turns) == when:
            at = (self.generators.members if victim == "generator" else self.learner.ranks)[0].whereabouts
            assert at is not None
            os.kill(at.pid, signal.SIGKILL)

    Cluster.learners_turn = learners_turn  # type: ignore[method-assign]
    changed = config.model_copy(update={"generators": generators})
    resume.own_config = lambda folder: json.loads(changed.model_dump_json())
    train(changed)
    return 0


if __name__ == "__main__":
    keys = [word for word in sys.argv[2:] if "=" in word]
    killed = [word for word in sys.argv[2:] if "=" not in word] or ["nobody", "0"]
    sys.exit(main(sys.argv[1], keys, killed[0], int(killed[1])))
