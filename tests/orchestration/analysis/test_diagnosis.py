"""The diagnosis: on runs made so that the right answer is known, it is said, and is not said of runs beside them."""

import math

import pytest
from support.made_runs import Column, N, adapo, diagnosed, made, predicted

from orchestration.analysis.diagnosis import diagnose, in_brief

SAFE: dict[str, Column] = {
    "entropy/exact": 1.0,
    "entropy/target": 1.0,
    "entropy/coefficient": 0.1,
    "entropy/coefficient_low": 0.01,
    "entropy/coefficient_high": 0.5,
}
LOW: dict[str, Column] = SAFE | {"entropy/exact": 0.66}  # a third under target, all the time
EVALS: dict[str, Column] = {"eval/a/pass@1": lambda i: 0.3 + 0.2 * i / N, "eval/a/pass@16": lambda i: 0.9 - 0.2 * i / N}

DIVERSE: dict[str, Column] = {
    "diversity/coefficient": lambda i: 0.8 if i < 30 else 0.6,
    "diversity/solutions": lambda i: 8.0 if i < 30 else 4.0,
    "diversity/target": 4.4,
    "diversity/saturated": 0.0,
}


def after(start: int, value: float) -> Column:
    return lambda i: value if i >= start else 0.0


GAMED: dict[str, Column] = {
    "drift/hacking": after(30, 1.0),
    "drift/reward": lambda i: 0.3 if i == 40 else 0.2,
    "drift/check": -0.02,
    "drift/held_out": -0.1,
}

# topic, words it must have, a run it is true of, runs it is not true of
CASES: list[tuple[str, str, dict[str, Column], list[dict[str, Column]]]] = [
    ("course", "fell 36 %, from 0.99 to 0.64", {"entropy/exact": lambda i: 1 - 0.38 * i / N}, [{"reward/mean": 0.1}]),
    ("course", "stayed near 1.00", {"entropy/exact": lambda i: 1 + 0.001 * (i % 2)}, []),
    # between equal bounds a controller moves nothing
    (
        "course",
        "No controller",
        SAFE | {"entropy/target": 0.7, "entropy/coefficient_high": 0.01},
        [{"reward/mean": 0.1}],
    ),
    ("off_target", "34 % under its target of 1.00", LOW, [SAFE, {**SAFE, "entropy/exact": 0.93}]),
    ("off_target", "20 % rms off", {**SAFE, "entropy/exact": lambda i: 1.2 - 0.4 * (i % 2)}, []),
    ("off_target", "20 % under", {**SAFE, "entropy/controlled": 0.8}, [{**LOW, "entropy/controlled": 1.0}]),
    ("on_target", "within 5 % rms", {**SAFE, "entropy/exact": 1.05}, [LOW]),
    # what follows a release is no error
    (
        "on_target",
        "before its release",
        {**SAFE, "entropy/exact": lambda i: 1.0 if i < 40 else 0.3, "entropy/released": after(40, 1.0)},
        [{**SAFE, "entropy/exact": lambda i: 1.0 if i < 40 else 0.3}],
    ),
    (
        "ignorance",
        "0.30 nats per token and failed ones 0.90",
        {"entropy/successful": 0.3, "entropy/failed": 0.9},
        [{"entropy/successful": 0.8, "entropy/failed": 0.9}, {"entropy/failed": 0.9}],
    ),
    ("diversity", "0.90 nats", {"entropy/successful": 0.9, "entropy/failed": 0.3}, [{"entropy/successful": 0.9}]),
    ("even", "about alike", {"entropy/successful": 0.9, "entropy/failed": 0.8}, []),
    (
        "position",
        "first token of a response entropy fell from 1.50 to 1.20, at the last token it stayed at 0.10",
        {"entropy/first": lambda i: 1.5 if i < 30 else 1.2, "entropy/last": 0.1},
        [{"entropy/first": 1.0}],
    ),
    (
        "environments",
        "from 0.20 nats per token in gym/b to 0.90 in gym/a",
        {"entropy/gym/a": 0.9, "entropy/gym/b": 0.2},
        [{"entropy/gym/a": 0.9, "entropy/gym/b": 0.8}, {"entropy/gym/a": 0.9}],
    ),
    (
        "split",
        "−0.6 nats per token in sum, is −0.48 (80 %) from tokens with positive advantages, "
        "−0.12 (20 %) from tokens with negative advantages.",
        {
            "entropy/tabular_dh": -0.01,
            "entropy/tabular_dh_positive": -0.008,
            "entropy/tabular_dh_negative": -0.002,
        },
        [{"entropy/tabular_dh": -0.01}],
    ),
    (
        "split",
        "+0.3 from tokens with no advantage: they pulled against",
        {
            "entropy/tabular_dh": -0.005,
            "entropy/tabular_dh_positive": -0.008,
            "entropy/tabular_dh_negative": -0.002,
        },
        [],
    ),
    ("covariance", "positive in 100 %", {"entropy/covariance": 0.02}, [{"entropy/covariance": 0.0}]),
    (
        "covariance",
        "the less likely ones, which to first order raises",
        {"entropy/covariance": -0.02},
        [{"entropy/covariance": lambda i: 1.0 if i % 2 else -1.01}],
    ),
    ("covariance_mixed", "too mixed to have a direction", {"entropy/covariance": lambda i: 1 if i % 2 else -1.01}, []),
    (
        "added",
        "by −0.6 nats per token in sum; ADAPO added +0.24, offsetting 40 %",
        {"entropy/tabular_dh": -0.006, "entropy/tabular_dh_free": -0.01},
        [{"entropy/tabular_dh": -0.006}],
    ),
    ("added", "next to nothing", {"entropy/tabular_dh": -0.0099, "entropy/tabular_dh_free": -0.01}, []),
    (
        "forgone",
        "+0.3 from above and −0.06 from below, in nats per token and in sum: left alone, these tokens would have raised",
        {"entropy/forgone_dh_high": 0.005, "entropy/forgone_dh_low": -0.001},
        [{"entropy/forgone_dh_high": 0.0, "entropy/forgone_dh_low": 0.0}],
    ),
    (
        "too_few_tokens",
        "ADAPO acted on too few tokens: 0.2 % of them were clipped, and entropy was 34 % under its target",
        {**LOW, "entropy/affected": 0.002},
        [
            {**SAFE, "entropy/affected": 0.002},
            {**LOW, "entropy/affected": 0.05},
            LOW,
            # few tokens by design, and yet they move entropy
            {**LOW, "entropy/affected": 0.002, "entropy/tabular_dh": 0.01, "entropy/tabular_dh_free": -0.01},
        ],
    ),
    ("affected", "0.02 % of tokens", {**SAFE, "entropy/affected": 0.0002}, [{**LOW, "entropy/affected": 0.002}]),
    (
        "saturated",
        "upper bound (0.5), with entropy off target, in 45 of 60 iterations, and the error persisted (34 % under",
        {**LOW, "entropy/saturated": after(15, 1.0)},
        [
            {**LOW, "entropy/saturated": lambda i: float(i < 30)},
            {**SAFE, "entropy/saturated": 1.0},
            {**LOW, "entropy/saturated": 0.0},
        ],
    ),
    (
        "saturated",
        "lower bound (0.01)",
        {**SAFE, "entropy/exact": 1.5, "entropy/coefficient": 0.01, "entropy/saturated": 1.0},
        [],
    ),
    ("sometimes_saturated", "in 1 of 60", {**LOW, "entropy/saturated": lambda i: float(i == 5)}, [LOW]),
    (
        "saturated_environments",
        "saturated in b (30 % rms off)",
        {"error/a": 0.02, "saturated/a": 1.0, "error/b": 0.3, "saturated/b": 1.0},
        [{"error/b": 0.3, "saturated/b": 0.0}, {"error/b": 0.02, "saturated/b": 1.0}],
    ),
    (
        "step_size",
        "1.5 times on positive advantages, 0.67 times on negative",
        {"advantage/scale_positive": math.log(1.5), "advantage/scale_negative": -math.log(1.5)},
        [{"advantage/scale_positive": 0.05, "advantage/scale_negative": -0.05}],
    ),
    ("released", "at iteration 40", {**SAFE, "entropy/released": after(40, 1.0)}, [{**SAFE, "entropy/released": 0.0}]),
    ("reward", "rose from 0.02 to 0.95", {"reward/mean": lambda i: i / N}, [SAFE]),
    (
        "gamed",
        "From iteration 30 to 59 the reward stood up to 0.3 above its start while the environment's own verdict had changed by "
        "\N{MINUS SIGN}0.02 and held-out pass@1 by \N{MINUS SIGN}0.1",
        GAMED,
        [SAFE, GAMED | {"drift/hacking": lambda i: float(i % 5 > 0)}, GAMED | {"drift/hacking": after(56, 1.0)}],
    ),
    (
        "gamed",
        "changed by +0.01: the reward may be gamed",
        GAMED | {"drift/held_out": math.nan, "drift/check": 0.01},
        [],
    ),
    (
        "longer",
        "Responses were 80 % longer than at the start by iteration 59 while the reward rose",
        {"drift/longer": after(20, 1.0), "drift/length": 0.8},
        [SAFE, {"drift/longer": after(56, 1.0), "drift/length": 0.8}],
    ),
    ("longer", "60 % shorter", {"drift/longer": 1.0, "drift/length": -0.6}, []),
    (
        "coverage_lost",
        "pass@1 rose from 0.30 to 0.50, pass@16 fell from 0.90 to 0.70: the policy sharpened",
        EVALS,
        [{**EVALS, "eval/a/pass@16": lambda i: 0.9 - 0.02 * i / N}, {**EVALS, "eval/a/pass@16": 0.9}, {}],
    ),
    ("coverage", "pass@16 stayed at 0.90.", {**EVALS, "eval/a/pass@16": 0.9}, [EVALS, {"eval/a/pass@1": 0.5}]),
    (
        "distinct",
        "evaluation, fell from 4.0 to 2.0; distinct correct responses a prompt, in training, stayed at 3.0",
        {"eval/a/distinct_correct": lambda i: 4.0 if i < 30 else 2.0, "responses/distinct_correct": 3.0},
        [{"eval/a/distinct_correct": 4.0}],
    ),
    (
        "diversity",
        "The effective number of solutions fell from 8.0 to 4.0 under a coefficient of diversity of 0.6 in the last third, with a "
        "target of 4.4.",
        DIVERSE,
        [DIVERSE | {"diversity/saturated": 1.0}, DIVERSE | {"diversity/solutions": math.nan}, SAFE],
    ),
    (
        "diversity_saturated",
        "with a target of 4.4: the coefficient stood at its bound in 67 % of iterations",
        DIVERSE | {"diversity/saturated": after(20, 1.0)},
        [DIVERSE | {"diversity/saturated": after(40, 1.0)}, SAFE],
    ),
    ("no_solutions", "no two correct responses", {"diversity/coefficient": 0.8}, [DIVERSE, SAFE]),
    ("no_signal", "75 % of groups", {"groups/no_signal": 12.0}, [{"groups/no_signal": 4.0}, {}]),
    (
        "some_signal",
        "25 % of groups",
        {"groups/no_signal": 16.0, "dynamic/generated": 64.0},
        [{"groups/no_signal": 48.0, "dynamic/generated": 64.0}],
    ),
    ("some_signal", "25 % of groups", {"groups/no_signal": 4.0}, [{"groups/no_signal": 12.0}]),
    (
        "phantom_clipping",
        "for 2 % of tokens. Such tokens",
        {"gap/outside": 0.02},
        [{"gap/outside": 0.004}, {"gap/outside_rare": 0.01}, {"gap/q99.9": 0.1}, {"gap/q50": 0.3}],
    ),
    ("phantom_clipping", "4 % of rare tokens", {"gap/outside": 0.004, "gap/outside_rare": 0.04}, []),
    ("phantom_clipping", "99.9 % of log-probs differ by less than 0.3 nats", {"gap/q50": 0.0, "gap/q99.9": 0.3}, []),
    ("phantom_clipping", "Trainer and engine run in bf16", {"gap/outside": 0.02}, []),
    ("engines_agree", "for 0.4 % of tokens", {"gap/outside": 0.004}, [{"gap/outside": 0.02}, {}]),
    ("low_ess", "of 30 % of the tokens", {"ratio/ess": 0.3}, [{"ratio/ess": 0.9}, {}]),
    ("ess", "10 % at the lowest", {"ratio/ess": lambda i: 0.9 if i else 0.1}, [{"ratio/ess": 0.3}]),
    ("limited", "8 % of tokens", {"importance/limited": 0.08}, [{"importance/limited": 0.01}]),
    ("somewhat_limited", "1 % of tokens", {"importance/limited": 0.01}, [{"importance/limited": 0.0}]),
    ("skipped", "60 optimiser steps", {"steps/skipped": 1.0}, [{"steps/skipped": 0.0}]),
    ("not_finite", "once: loss.", {"loss": lambda i: math.inf if i == 7 else 0.1}, [{"loss": 0.1}]),
]
CONFIG = adapo(batch={"prompts": 16}, precision={"mode": "bf16"})


@pytest.mark.parametrize(("topic", "words", "true", "false"), CASES, ids=[f"{c[0]}-{c[1][:12]}" for c in CASES])
def test_what_is_so_is_said_and_what_is_not_is_not(
    topic: str, words: str, true: dict[str, Column], false: list[dict[str, Column]]
) -> None:
    findings = diagnosed(true, CONFIG)
    assert topic in findings, findings
    assert words in findings[topic].text.replace("\N{NO-BREAK SPACE}", " "), findings[topic].text
    for columns in false:
        assert topic not in diagnosed(columns, CONFIG)


WARNINGS = (
    "diversity_saturated "
    "off_target too_few_tokens saturated saturated_environments step_size gamed longer coverage_lost no_signal "
    "phantom_clipping low_ess limited not_finite"
)


def test_only_what_asks_for_action_is_a_warning() -> None:
    findings = {f for _, _, true, _ in CASES for f in diagnosed(true, CONFIG).values()}
    assert {f.topic for f in findings if f.severity == "warning"} == set(WARNINGS.split())


@pytest.mark.parametrize("kind", ["none", "clip_higher"])
def test_a_run_that_nothing_steers_is_not_off_target(kind: str) -> None:
    config = {"entropy": {"method": {"kind": kind}, "controller": {"kind": "fixed"}}}
    findings = diagnosed(LOW | {"entropy/affected": 0.0}, config)
    assert not {"off_target", "too_few_tokens"} & set(findings)
    assert "No controller" in findings["course"].text
    assert ("affected" in findings) == (kind != "none")


@pytest.mark.parametrize("kind", ["trajectory", "turn"])
def test_groups_without_signal_are_not_reported_under_turn_level_advantages(kind: str) -> None:
    """The metric looks at verdicts: where they are all equal, what turns earned may still differ."""
    topics = set(diagnosed({"groups/no_signal": 12.0}, {**CONFIG, "objective": {"credit": {"kind": kind}}}))
    topics |= set(diagnosed({"groups/no_signal": 4.0}, {**CONFIG, "objective": {"credit": {"kind": kind}}}))
    assert topics & {"no_signal", "some_signal"} == (set() if kind == "turn" else {"no_signal", "some_signal"})


@pytest.mark.parametrize("advantage", ["grpo", "reinforce_pp"])
def test_groups_without_signal_are_not_reported_under_the_batchs_baseline(advantage: str) -> None:
    """REINFORCE++ learns from groups of equal rewards too: with one response a prompt all of them are."""
    topics = set(diagnosed({"groups/no_signal": 12.0}, {**CONFIG, "objective": {"advantage": advantage}}))
    assert ("no_signal" in topics) == (advantage == "grpo")


def test_methods_have_their_names() -> None:
    config = {"entropy": {"method": {"kind": "repo_d"}, "controller": {"kind": "doubling"}}}
    assert diagnosed(LOW | {"entropy/saturated": 1.0}, config)["saturated"].text.startswith("REPO-D is saturated")
    assert diagnosed(LOW | {"entropy/affected": 0.0}, config)["too_few_tokens"].text.startswith(
        "REPO-D acted on too few"
    )
    # What was called repo_d before, as a run's config.yaml has it, is today's repo.
    former = {"entropy": {"method": {"kind": "repo_d", "centred": True}, "controller": {"kind": "doubling"}}}
    assert diagnosed(LOW | {"entropy/saturated": 1.0}, former)["saturated"].text.startswith("REPO is saturated")
    assert diagnosed(LOW | {"entropy/saturated": 1.0}, {"entropy": "?"})["saturated"].text.startswith(
        "The control is saturated"
    )


def test_the_findings_are_in_reading_order_and_a_run_without_numbers_has_none() -> None:
    every: dict[str, Column] = {}
    for _, _, true, _ in CASES:
        every |= true
    order = [f.chapter for f in diagnose(made(every))]
    chapters = ["entropy", "why", "control", "cost", "trust"]
    assert order == sorted(order, key=chapters.index)
    assert set(order) == set(chapters)
    assert diagnosed({}) == {}
    assert diagnosed({"unheard of": 1.0}, {}) == {}


def test_in_brief_are_the_cause_and_the_warnings() -> None:
    findings = diagnose(made(predicted(0.0) | {"gap/outside": 0.5, "reward/mean": 0.1}))
    assert [f.topic for f in in_brief(findings)] == ["cause", "phantom_clipping"]
