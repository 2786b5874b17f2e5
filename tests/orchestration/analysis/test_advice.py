"""Which control a run is advised to have: by what it lost, by how many solutions its prompts have, and by what it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestration.analysis.advice import HOLD, choice
from orchestration.analysis.run_data import RunData
from orchestration.config.loader import parse_overrides
from orchestration.config.run_config import configure

NONE = {"entropy": {"method": {"kind": "none"}, "controller": {"kind": "fixed"}}}
HELD = {"entropy": {"method": {"kind": "repo"}, "controller": {"kind": "isentropic"}}}


def run(config: Mapping[str, Any], start: Mapping[str, float], end: Mapping[str, float], **always: float) -> RunData:
    """Builds a run of 20 iterations in which every key goes over from one value to the other half way."""
    rows = [{"iteration": float(i), **always, **(start if i < 10 else end)} for i in range(20)]
    return RunData("run", rows, [], config, "")


def values(entropy: float, reward: float, one: float, many: float, distinct: float) -> dict[str, float]:
    return {
        "entropy/exact": entropy,
        "reward/mean": reward,
        "eval/a/pass@1": one,
        "eval/a/pass@32": many,
        "eval/a/distinct_correct": distinct,
    }


def test_what_is_advised_holds_entropy_where_it_was_measured_to_pay() -> None:
    entropy = configure("countdown-grpo", parse_overrides([HOLD])).entropy
    assert (entropy.kind, entropy.controller.kind, entropy.target.fraction) == ("repo", "isentropic", 0.7)


@pytest.mark.parametrize(
    ("config", "start", "end", "always", "words"),
    [
        (NONE, (1.0, 0.2, 0.15, 0.9, 5), (0.1, 0.3, 0.01, 0.04, 0.1), {}, "settled on what pays without being right"),
        (
            NONE,
            (1.0, 0.3, 0.3, 0.99, 8),
            (0.3, 0.6, 0.5, 0.86, 3),
            {},
            "8.0 distinct correct solutions: solution diversity",
        ),
        (NONE, (1.0, 0.3, 0.3, 0.99, 1), (0.3, 0.6, 0.5, 0.86, 1), {}, "if another task follows, hold entropy"),
        (HELD, (1.0, 0.3, 0.3, 0.9, 1), (0.7, 0.6, 0.5, 0.9, 1), {}, "goes on sampling wrong ones"),
        # and what asks for nothing
        (NONE, (1.0, 0.3, 0.3, 0.99, 8), (0.3, 0.6, 0.5, 0.98, 3), {}, None),  # nothing lost
        (NONE, (1.0, 0.3, 0.3, 0.99, 8), (0.3, 0.6, 0.5, 0.86, 3), {"diversity/coefficient": 0.8}, None),
        (NONE, (1.0, 0.3, 0.3, 0.99, 1), (0.9, 0.6, 0.5, 0.86, 1), {}, None),  # entropy is there
        (NONE, (1.0, 0.3, 0.15, 0.9, 1), (0.1, 0.2, 0.01, 0.88, 1), {}, None),  # reward fell too: no optimum, a failure
        (HELD, (1.0, 0.3, 0.3, 0.9, 5), (0.7, 0.6, 0.5, 0.9, 5), {}, None),
        (HELD, (1.0, 0.3, 0.3, 0.9, 1), (0.7, 0.6, 0.5, 0.9, 1), {"stage/index": 0.0}, None),  # another task may follow
        (HELD, (1.0, 0.3, 0.3, 0.9, 1), (0.7, 1.0, 0.99, 1.0, 1), {}, None),
    ],
)
def test_advice(
    config: Mapping[str, Any],
    start: tuple[float, ...],
    end: tuple[float, ...],
    always: dict[str, float],
    words: str | None,
) -> None:
    steering = {"entropy/target": 0.7} if config is HELD else {}
    found = choice(run(config, values(*start), values(*end), **always, **steering))
    assert (found is None) == (words is None), found
    assert words is None or (found is not None and words in found.text)
