"""Checks what is proposed to a run that does not fit: it fits, it can be set, and less would not do."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import config_data

from orchestration.config.loader import put
from orchestration.config.run_config import RunConfig, validate
from orchestration.memory.alternatives import Machine, _said, least, remedy, would_fit
from orchestration.memory.plan import host_need, misfit, needs_of
from orchestration.memory.shapes import SHAPES

GIB = 2**30
NODE = Machine(host=1024 * GIB, gpu=80 * GIB, gpus=8)
LAPTOP = Machine(host=16 * GIB)


def config(model: str, machine: Machine = NODE, **sections: Any) -> RunConfig:
    on_gpu: dict[str, Any] = {"gpus": 1} if machine.gpus else {}
    learner = {"lr": 1e-6, **on_gpu, **sections.pop("learner", {})}
    generators = {"max_model_len": 4096, **(on_gpu or {"kv_cache_mb": 512}), **sections.pop("generators", {})}
    mode = {"mode": "bf16"} if machine.gpus else {}
    return validate(
        config_data(
            model={"path": model},
            learner=learner,
            generators=generators,
            precision=mode,
            batch={"prompts": 64, "responses": 8},
            **sections,
        )
    )


def given(config: RunConfig, text: str) -> RunConfig:
    """Returns the configuration with what a sentence proposes, as somebody would copy it to the command line."""
    data = config.model_dump()
    for word in text.split():
        key, _, value = word.partition("=")
        put(data, key, {"true": True}.get(value, value) if not value.replace(".", "").isdigit() else eval(value))
    return validate(data)


CASES = [
    ("Qwen/Qwen2.5-7B", NODE, {}),
    ("Qwen/Qwen2.5-7B", NODE, {"learner": {"ranks": 4}}),
    ("Qwen/Qwen2.5-14B", NODE, {"learner": {"ranks": 4, "zero_stage": 2}}),
    ("Qwen/Qwen2.5-32B", NODE, {"learner": {"ranks": 4}, "generators": {"count": 4}}),
    ("Qwen/Qwen2.5-7B", NODE, {"generators": {"colocated": True}}),
    ("Qwen/Qwen2.5-1.5B", LAPTOP, {}),
]


@pytest.mark.parametrize(("model", "machine", "sections"), CASES)
def test_what_is_proposed_fits_and_can_be_given(model: str, machine: Machine, sections: dict[str, Any]) -> None:
    made, size = config(model, machine, **sections), SHAPES[model].size()
    assert misfit(made, needs_of(made, size, machine.gpu), machine.host, machine.gpu) is not None
    found = would_fit(made, size, machine)
    assert 1 <= len(found) <= 3
    assert remedy(made, size, machine) == f"{', or '.join(map(_said, found))} would fit"
    for change in found:
        changed = given(made, _said(change))
        assert misfit(changed, needs_of(changed, size, machine.gpu), machine.host, machine.gpu) is None, change
        assert (
            changed.learner.ranks + changed.generators.count * changed.generators.tensor_parallel
            <= max(machine.gpus, 2)
            or changed.generators.colocated
        )


def test_the_fewest_changes_are_named_the_cheapest_first() -> None:
    made, size = config("Qwen/Qwen2.5-1.5B", learner={"micro_batch_tokens": 65_536}), SHAPES["Qwen/Qwen2.5-1.5B"].size()
    assert misfit(made, needs_of(made, size, NODE.gpu), NODE.host, NODE.gpu) is not None
    # Each alone is enough, and a smaller micro-batch than that is not asked for.
    assert remedy(made, size, NODE) == (
        "learner.micro_batch_tokens=16384, or learner.gradient_checkpointing=true would fit"
    )


def test_ranks_are_proposed_as_far_as_there_are_gpus() -> None:
    size = SHAPES["Qwen/Qwen2.5-7B"].size()
    made = config("Qwen/Qwen2.5-7B", learner={"gradient_checkpointing": True, "micro_batch_tokens": 4096})
    assert "learner.ranks=4 learner.zero_stage=3" in remedy(made, size, NODE)
    assert "learner.ranks" not in remedy(made, size, Machine(1024 * GIB, 80 * GIB, gpus=2))


def test_where_nothing_fits_the_least_need_is_said() -> None:
    made, size = config("Qwen/Qwen2.5-32B", LAPTOP), SHAPES["Qwen/Qwen2.5-32B"].size()
    assert would_fit(made, size, LAPTOP) == []
    need, change = least(made, size, LAPTOP)
    assert need > LAPTOP.host and "learner.lora.rank=32" in _said(change) and "precision.mode=bf16" in _said(change)
    assert need < host_need(needs_of(made, size))
    assert remedy(made, size, LAPTOP).startswith("nothing that was tried fits; the least need is ")
