"""Families whose layers do not see where a packed trajectory ends are refused at the start of a run, by measurement."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import FAMILIES, VOCAB, Family
from models.one_family import make_model

from learner.model_check import check_model
from learner.policy import load_policy
from learner.types import MicroBatch
from orchestration.cluster.start_check import StartCheck, StartRules
from orchestration.errors import ModelRefused


class Trainer:
    """Answers for one real policy on the CPU, with packing on."""

    def __init__(self, folder: str) -> None:
        self.policy = load_policy(folder, attention="sdpa", checkpointing=False)

    async def check_model(self, sequences: Any) -> Any:
        device = torch.device("cpu")
        return check_model(self.policy, self.policy, self._forward, device, sequences, True)

    async def sequence_logprobs(self, sequences: Any) -> list[list[float]]:
        return [[0.0] * (len(s) - 1) for s in sequences]  # there is no engine to compare with

    async def scale_weights(self, factor: float) -> None: ...

    def _forward(self, micro: MicroBatch) -> torch.Tensor:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        logp, *_ = self.policy(*(torch.tensor(a) for a in arrays), 1.0)
        return logp


async def _refusal(family: Family, folder: Path) -> str | None:
    make_model(family, str(folder))
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in (24, 20, 16)]
    rules = StartRules(family.name, trainer="fp32", exact=True, precision="fp32", max_gap=None, packing=True)

    async def transfer() -> None:
        return None

    try:
        await StartCheck(Trainer(str(folder)), list, transfer, sequences, rules).run(untouched=True)
    except ModelRefused as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_packing_is_refused_where_it_is_not_exact_and_nowhere_else(family: Family, tmp_path: Path) -> None:
    refusal = asyncio.run(_refusal(family, tmp_path))
    if family.packs:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.startswith("packing borders")
        assert refusal.endswith("set learner.packing=false")
