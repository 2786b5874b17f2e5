"""Runs the trainer's part of the start's check on ranks of a real learner group: DeepSpeed, gloo, a tiny random model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from integration import learner_cases

SEQUENCES = [[(7 * i * i + 3 * k * i + k) % 48 for i in range(20 + k)] for k in range(4)]


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Writes, on rank 0, what each case's learner measured, and whether it was left as it was: NAME.json."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from dataclasses import asdict

    from learner.deepspeed_engine import RankPlace
    from learner.learner import Learner

    placement = RankPlace(rank, world, "127.0.0.1", port, False, 120.0)
    for case in cases:
        settings = learner_cases.settings(model, case)
        plan = learner_cases.batches(0, world, 200, False, "token")[rank]
        untouched = Learner(settings, placement)
        untouched.train(plan)
        expected = learner_cases.weights(untouched)
        learner = Learner(settings, placement)
        before = learner_cases.weights(learner)
        check = learner.check_model(SEQUENCES)
        logprobs = learner.sequence_logprobs(SEQUENCES)
        learner.engine.scale_weights(0.5)
        halved, sent = learner.sequence_logprobs(SEQUENCES), learner_cases.weights(learner)
        learner.engine.scale_weights(2.0)
        after, again = learner_cases.weights(learner), learner.sequence_logprobs(SEQUENCES)
        learner.train(plan)
        trained = learner_cases.weights(learner)
        if rank == 0:
            same = {
                "sent": all(np.array_equal(sent[k], 0.5 * before[k]) for k in before),
                "restored": all(np.array_equal(after[k], before[k]) for k in before) and again == logprobs,
                "trained": all(np.array_equal(trained[k], expected[k]) for k in expected),
            }
            measured = {"check": asdict(check), "logprobs": logprobs, "halved": halved, "same": same}
            (Path(out) / f"{case['name']}.json").write_text(json.dumps(measured))
        learner.close() if case is cases[-1] else None
