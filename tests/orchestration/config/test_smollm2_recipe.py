"""The recipe behind "The default control on a pretrained model" in tests/benchmarks/RESULTS.md, which needs that model to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs import catalog
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
