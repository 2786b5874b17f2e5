"""Teaches a tiny model fixed sequences with real DeepSpeed, once with AdamW's moments in 32 bits and once in 8."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

STEPS = 30
LR = 3e-3


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Runs every case; rank 0 writes OUT/NAME.json: losses before each of STEPS steps and after, and bytes of moments."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from integration import learner_cases

    from learner.learner import Learner
    from learner.rank_settings import RankPlace

    place = RankPlace(rank, world, "127.0.0.1", port, False, 120.0)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 48, (8, 12), generator=generator)
    positions = torch.arange(12).expand(8, 12)
    predict = torch.tensor([12 * row + column for row in range(8) for column in range(11)])
    targets = tokens[:, 1:].flatten()
    learner: Learner | None = None
    for case in cases:
        learner = Learner(learner_cases.settings(model, case), place)
        losses: list[float] = []
        for step in range(STEPS + 1):
            learner.engine.boundary(True)
            logp, *_ = learner.engine(tokens, positions, predict, targets, 1.0, False)
            losses.append(-float(logp.detach().float().mean()))
            learner.engine.backward(-logp.mean() / world)
            if step < STEPS:
                learner.engine.step(LR)
        optimizer: Any = learner.engine.engine.optimizer
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        moments = [s[key] for s in states for key in s if key in ("exp_avg", "exp_avg_sq", "state1", "state2")]
        held = sum(m.nbytes for m in moments) / sum(m.numel() for m in moments)
        if rank == 0:
            (Path(out) / f"{case['name']}.json").write_text(json.dumps({"losses": losses, "bytes": held}))
    if learner is not None:
        learner.close()
