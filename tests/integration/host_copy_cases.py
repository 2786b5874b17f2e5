"""Trains learners whose optimiser state goes to the host and back between two iterations, and others that keep it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Runs every case on one rank of one group; rank 0 writes OUT/NAME.npz and OUT/NAME.json.

    With "away" the state is away between the iterations: "called" brings it back by name, "needed" leaves that to what needs
    it. The JSON file has, beside the metrics, bytes: those that AdamW's moments and the weights had while it was away.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    from integration import learner_cases

    from learner.learner import Learner
    from learner.rank_settings import RankPlace

    placement = RankPlace(rank, world, "127.0.0.1", port, False, 120.0)
    learner: Learner | None = None
    for case in cases:
        if case["precision"] == "fp16":
            learner_cases.allow_fp16()
        learner = Learner(learner_cases.settings(model, case), placement)
        metrics, held = [], {}
        for i in (0, 1):
            metrics.append(learner.train(learner_cases.batches(i, world, 200, False, "token")[rank]))
            if i == 0 and "away" in case:
                before = learner.sequence_logprobs([[1, 2, 3, 4]])
                learner.engine.offload()
                learner.engine.offload()  # a second one is none
                held = sizes(learner)
                assert learner.sequence_logprobs([[1, 2, 3, 4]]) == before  # the weights are there
                if case["away"] == "called":
                    learner.engine.reload()
                else:
                    learner.save(Path(out) / case["name"] / "hf", Path(out) / case["name"] / "engine")
        full = learner_cases.weights(learner)
        if rank == 0:
            np.savez(Path(out) / f"{case['name']}.npz", **full)  # type: ignore[arg-type]
            (Path(out) / f"{case['name']}.json").write_text(json.dumps({"metrics": metrics, "bytes": held}))
    if learner is not None:
        learner.close()


def sizes(learner: Any) -> dict[str, int]:
    """Returns the bytes that the storages of moments, of masters and of this rank's weights have now."""
    optimizer = learner.engine.engine.optimizer
    adam = getattr(optimizer, "optimizer", optimizer)
    moments = [m for state in adam.state.values() for m in state.values() if getattr(m, "ndim", 0)]
    masters = [master for group in adam.param_groups for master in group["params"]]
    weights = [getattr(p, "ds_tensor", p) for p in learner.policy.parameters()]
    named = {"moments": moments, "masters": masters, "weights": weights}
    storages = {name: [t.untyped_storage() for t in tensors] for name, tensors in named.items()}
    return {name: sum({s.data_ptr(): s.nbytes() for s in own}.values()) for name, own in storages.items()}
