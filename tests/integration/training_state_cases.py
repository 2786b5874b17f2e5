"""Runs learners that save their state after an iteration and go on, and others that go on from what those have saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def results(out: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns the weights after the second iteration, and its metrics."""
    return dict(np.load(out / f"{name}.npz")), json.loads((out / f"{name}.json").read_text())[-1]


def is_repeated(out: Path, name: str) -> None:
    """Asserts that the case "again-NAME", which went on from what NAME saved, ended bit for bit as NAME did."""
    weights, metrics = results(out, name)
    again, repeated = results(out, f"again-{name}")
    assert repeated == metrics
    assert weights.keys() == again.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(value, again[key], key)


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Runs every case on one rank of one group; rank 0 writes OUT/NAME.npz and OUT/NAME.json.

    A case without "from" trains two iterations and saves to OUT/NAME between them; one with it trains the second alone.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from integration import learner_cases

    from learner.learner import Learner
    from learner.rank_settings import RankPlace
    from learner.training_state import shards

    shards.FILE_BYTES = 100_000  # several files a rank
    placement = RankPlace(rank, world, "127.0.0.1", port, False, 120.0)
    learner: Learner | None = None
    for case in cases:
        if case["precision"] == "fp16":
            learner_cases.allow_fp16()
        folder = Path(case.get("from") or Path(out) / case["name"])
        learner = Learner(learner_cases.settings(str(folder / "hf") if "from" in case else model, case), placement)
        if "from" in case:
            learner.load(folder / "engine")
            learner.load_state_dict(json.loads((folder / "state.json").read_text()))
        metrics = []
        for i in (1,) if "from" in case else (0, 1):
            metrics.append(learner.train(learner_cases.batches(i, world, 200, False, "token")[rank]))
            if i == 0:
                learner.save(folder / "hf", folder / "engine")
                if rank == 0:
                    (folder / "state.json").write_text(json.dumps(learner.state_dict()))
                torch.distributed.barrier()
        full = learner_cases.weights(learner)
        if rank == 0:
            np.savez(Path(out) / f"{case['name']}.npz", **full)  # type: ignore[arg-type]
            (Path(out) / f"{case['name']}.json").write_text(json.dumps(metrics))
    if learner is not None:
        learner.close()
