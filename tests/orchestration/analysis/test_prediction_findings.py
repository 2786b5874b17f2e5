"""What the diagnosis says of the predicted change of entropy: whether it can be trusted, and what caused the change."""

import math

import pytest
from support.made_runs import Column, N, diagnosed, made, predicted

from orchestration.analysis.entropy_findings import trust_in_prediction


@pytest.mark.parametrize(
    ("r", "word"),
    [
        (0.95, "strong"),
        (0.6, "moderate"),
        (0.35, "weak"),
        (0.2, "none"),
        (0.0, "none"),
        (-0.2, "none"),
        (-0.9, "reversed"),
    ],
)
def test_the_prediction_is_trusted_as_far_as_it_correlates(r: float, word: str) -> None:
    columns = predicted(r)
    assert trust_in_prediction(made(columns)).word == word
    text = diagnosed(columns)["cause"].text
    assert ("do not say why" in text) == (word in ("none", "reversed"))
    assert ("so this is a lead" in text) == (word == "weak")
    assert ("prediction_none" if word in ("none", "reversed") else f"prediction_{word}") in diagnosed(columns)


def test_few_steps_prove_nothing() -> None:
    columns = predicted(0.99) | {"entropy/exact": lambda i: 1.0 - i / 10}
    assert "too few" in diagnosed(columns, n=6)["cause"].text
    assert not [topic for topic in diagnosed(columns, n=6) if topic.startswith("prediction")]


def test_a_correlation_that_many_steps_prove_may_still_explain_nothing() -> None:
    assert trust_in_prediction(made(predicted(0.05), n=5000)).word == "none"
    assert trust_in_prediction(made(predicted(0.2), n=5000)).word == "weak"


def stepped(noise: float, slope: float = 1.0) -> dict[str, Column]:
    """Returns predicted changes, steps that follow them with `slope`, and fresh responses `noise` off what the steps did."""
    turn = 2 * math.pi * 7 / (N - 1)
    return {
        "entropy/predicted_dh": lambda i: 0.01 * math.cos(turn * i),
        "entropy/step_dh": lambda i: slope * 0.01 * math.cos(turn * i) + 1e-4 * math.sin(turn * i),
        "entropy/realised_dh": lambda i: slope * 0.01 * math.cos(turn * (i - 1)) + noise * math.sin(turn * (i - 1)),
    }


def test_the_steps_are_told_apart_from_what_fresh_responses_show() -> None:
    quiet = diagnosed(stepped(1e-3, 0.9))["step"].text
    assert "slope 0.9, r = 1.00 over" in quiet
    assert "between fresh responses slope 0.9, r = 0.99." in quiet
    loud = diagnosed(stepped(0.1))["step"].text
    assert "slope 1, r = 1.00" in loud
    assert "r = 0.10, since two fresh batches differ by 0.071 nats per token (rms) beyond the steps' own 0.0071" in loud
    assert "more responses an iteration would show more" in loud
    few = {key: column for key, column in stepped(1e-3).items() if key != "entropy/realised_dh"}
    assert diagnosed(few)["step"].text.endswith("steps.")
    assert "step" not in diagnosed(predicted(0.99))  # a run of before: nobody measured the steps


def test_the_division_among_tokens_is_judged_by_what_the_steps_did() -> None:
    follows = stepped(0.1) | {"entropy/tabular_dh": stepped(0.1)["entropy/predicted_dh"]}
    assert trust_in_prediction(made(follows)).word == "strong"
    turn = 2 * math.pi * 7 / (N - 1)
    against = stepped(0.1) | {"entropy/tabular_dh": lambda i: -math.cos(turn * i)}
    assert trust_in_prediction(made(against)).word == "reversed"


def test_the_size_of_the_prediction_is_read_only_where_its_slope_is_near_one() -> None:
    assert "sizes agree too" in diagnosed(predicted(0.99))["prediction_strong"].text
    assert "not its size in nats" in diagnosed(predicted(0.99, slope=500.0))["prediction_strong"].text


def test_the_cause_is_named_by_share_and_only_when_the_sum_points_the_same_way() -> None:
    shares = {"entropy/tabular_dh_positive": -0.002, "entropy/tabular_dh_negative": -0.008}
    text = diagnosed(predicted(0.99) | shares)["cause"].text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("Entropy fell because, to first order,")
    assert "of the predicted fall came from negative advantages" in text
    against = {"entropy/tabular_dh_positive": 0.002, "entropy/tabular_dh_negative": -0.012}
    assert "negative advantages outweighed" in diagnosed(predicted(0.99) | against)["cause"].text
    assert "the predicted changes sum to +" in diagnosed(predicted(0.99, mean=0.02) | shares)["cause"].text
    assert "as predicted" in diagnosed(predicted(0.99))["cause"].text
    assert "cause" not in diagnosed(predicted(0.99) | {"entropy/exact": 1.0})  # nothing to explain
