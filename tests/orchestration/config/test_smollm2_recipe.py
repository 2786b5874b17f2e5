"""Checks the recipes for SmolLM2 as far as that goes without the model: what they hold, and what they show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envs import catalog
from envs.builtin.arithmetic import steps_of
from envs.types import Verdict
from orchestration.config.run_config import load_config

FOLDER = Path(__file__).parents[2] / "benchmarks" / "smollm2"


def test_the_recipe_holds_a_target_of_what_is_there_before_the_first_update() -> None:
    config = load_config(str(FOLDER / "control.yaml"))
    assert (config.entropy.method.kind, config.entropy.controller.kind) == ("repo", "isentropic")
    assert (config.entropy.target.fraction, config.entropy.start_responses) == (0.7, 256)
    assert config.batch.prompts * config.batch.responses < 256  # so the start is measured on responses of its own


@pytest.mark.parametrize(
    ("text", "correct"), [("{}\n1+1=2\n", True), (" {} \nfour", True), ("{}0", False), ("", False), ("x{}", False)]
)
def test_the_first_line_of_a_response_counts(text: str, correct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    environment = catalog.load("sums:Sums", {}, seed=1)
    prompt = environment.prompt("train", 0)
    assert prompt.messages[0].content.startswith("5+2=7\n4+4=8\n")
    session = environment.open(prompt)
    verdict = session.reply(text.format(prompt.task["answer"]))
    assert getattr(verdict, "correct", None) == correct


def test_the_examples_of_smollm2_working_are_right() -> None:
    """A pretrained model copies what it is shown, mistakes included."""
    config = load_config("smollm2-working")
    environment = catalog.load("arithmetic", config.environments[0].params, seed=0)
    prompt = environment.prompt("train", 0)
    *shown, asked, begun = prompt.messages[-1].content.split("\n")
    assert (asked, begun) == (f"{prompt.task['sum']}=", "Step 1:")
    assert len(shown) == 8
    for sum_, worked in zip(shown[::2], shown[1::2], strict=True):
        task = {"sum": sum_.removesuffix("="), "answer": ""}
        assert len(steps_of(task["sum"])) == config.environments[0].params["terms"] - 1
        verdict = environment.open(replace(prompt, task=task)).reply(worked.removeprefix(begun))
        assert isinstance(verdict, Verdict) and verdict.correct, (sum_, worked, verdict)
