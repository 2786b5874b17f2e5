"""Checks the recipes for GPUs: what they say of memory is what is planned, and they fit the node that they are for."""

from __future__ import annotations

import pytest

from orchestration.cluster import placement
from orchestration.config.run_config import RECIPES, RunConfig, load_config, recipe_names
from orchestration.memory.alternatives import Machine, _whole
from orchestration.memory.plan import host_need, known_size, misfit, needs_of
from orchestration.text import size

GIB = 2**30
# An H100 with the 80 GB that it is sold as; an A100 has as many.
NODE = Machine(host=1024 * GIB, gpu=80 * 10**9, gpus=8)
ON_GPUS = [name for name in recipe_names() if load_config(name).learner.gpus]


def comment(config: RunConfig) -> str:
    """Returns what a recipe for GPUs says of memory."""
    model = known_size(config.model.path)
    assert model is not None, f"{config.model.path} is not in orchestration/memory/shapes.py"
    learner, generator, *_ = needs = needs_of(config, model, NODE.gpu)
    return (
        f"# Memory, planned for cards of 80 GB: a learner rank {size(learner.total)}, a generator {size(generator.total)}, "
        f"the host {size(host_need(needs))}. Not run on GPUs yet."
    )


def test_there_are_recipes_for_gpus() -> None:
    assert {"qwen-math-8gpu", "qwen-8b-8gpu", "llama-8b-lora-8gpu", "qwen-32b-8gpu"} <= set(ON_GPUS)


@pytest.mark.parametrize("name", ON_GPUS)
def test_its_comment_has_the_planned_memory(name: str) -> None:
    assert comment(load_config(name)) in (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", ON_GPUS)
def test_it_fits_one_node_of_eight_cards(name: str) -> None:
    config = load_config(name)
    model = known_size(config.model.path)
    assert model is not None
    needs = [_whole(need) for need in needs_of(config, model, NODE.gpu)]
    assert misfit(config, needs, NODE.host, NODE.gpu) is None
    assert placement.totals(placement.plan(config))["GPU"] <= NODE.gpus
