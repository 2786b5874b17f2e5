"""The table of keys, and which key belongs to which entry."""

import pytest

from envs.types import Status
from orchestration.telemetry.keys import KEYS, lookup, present_row
from orchestration.telemetry.typed_keys import (
    DISTINCT,
    EnvKey,
    EvalKey,
    QuantileKey,
    TermKey,
    environment_of,
    short_evals,
)


@pytest.mark.parametrize(
    ("key", "family", "env"),
    [
        ("reward/mean", "reward/mean", None),
        ("reward/countdown", "reward/{env}", "countdown"),
        ("reward/gym/chain_sum", "reward/{env}", "gym/chain_sum"),
        ("eval/gym/chain_sum/pass@16", "eval/{env}/pass@{k}", "gym/chain_sum"),
        ("eval/gym/gcd/pass@1/T=0.3", "eval/{env}/pass@{k}/T={temperature}", "gym/gcd"),
        ("eval/countdown/pass@1/T=0.3", "eval/{env}/pass@{k}/T={temperature}", "countdown"),
        ("eval/countdown/distinct_correct", "eval/{env}/distinct_correct", "countdown"),
    ],
)
def test_a_key_finds_its_entry(key: str, family: str, env: str | None) -> None:
    entry = lookup(key)
    assert entry is not None
    assert (entry[0], entry[1].get("env")) == (family, env)


@pytest.mark.parametrize(
    "key", ["reward/{env}", "eval/a/pass@0", "eval/a/pass@1/T=hot", "reward/", "reward//b", "", "loss "]
)
def test_a_key_outside_the_table_is_not_found(key: str) -> None:
    assert lookup(key) is None


def test_every_entry_explains_itself() -> None:
    assert all(meaning for meaning, _ in KEYS.values())


def test_every_status_has_an_entry() -> None:
    assert {key for key in KEYS if key.startswith("status/")} == {
        f"status/{status}{env}" for status in Status for env in ("", "/{env}")
    }


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("eval/countdown/pass@16", EvalKey("countdown", 16)),
        ("eval/gym/gcd/pass@1/T=0.3", EvalKey("gym/gcd", 1, 0.3)),
        ("eval/a/pass@4/T=0", EvalKey("a", 4, 0.0)),
        ("gap/q99.9", QuantileKey("gap", 99.9)),
        ("ratio/q50", QuantileKey("ratio", 50.0)),
        ("term/verdict", TermKey("verdict")),
        ("term/length/gym/gcd", TermKey("length", "gym/gcd")),
        ("reward/gym/gcd", EnvKey("reward/{env}", "gym/gcd")),
        ("status/ok/a", EnvKey("status/ok/{env}", "a")),
        ("eval/a/distinct_correct", EnvKey(DISTINCT, "a")),
    ],
)
def test_a_key_is_parsed_by_one_class_and_written_as_it_was(key: str, parsed: object) -> None:
    entry = [kind.parse(key) for kind in (EvalKey, QuantileKey, TermKey, EnvKey)]
    assert [x for x in entry if x is not None] == [parsed]
    assert str(parsed) == key


@pytest.mark.parametrize("key", ["reward/mean", "entropy/exact", "reward/{env}", "eval/a/pass@0", "gap/q", "", "loss"])
def test_a_key_without_fields_is_parsed_by_none(key: str) -> None:
    assert not [kind for kind in (EvalKey, QuantileKey, TermKey, EnvKey) if kind.parse(key) is not None]
    assert environment_of(key) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("knob/gym/gcd", EnvKey("coefficient/{env}", "gym/gcd")),
        ("reply/length/a", EnvKey("response/length/{env}", "a")),
    ],
)
def test_a_typed_key_reads_the_name_a_metric_had_before(old: str, new: EnvKey) -> None:
    assert EnvKey.parse(old) == new
    assert EnvKey.parse(str(new)) == new


def test_the_evaluations_of_a_row_in_short_are_those_at_the_first_temperature() -> None:
    row = {"eval/a/pass@1/T=1": 0.2, "eval/a/pass@1": 0.2, "eval/b/distinct_correct": 3.0, "reward/a": 0.1}
    assert short_evals(row) == {"a/pass@1": 0.2, "b/distinct_correct": 3.0}


def test_the_predicted_change_of_an_older_run_is_what_has_another_name_now() -> None:
    """It was that of a tabular policy, and stood for both; a row of today has the two apart."""
    old = {"entropy/predicted_dh": 1.0, "entropy/predicted_dh_free": 2.0, "entropy/knob": 3.0}
    assert present_row(old) == {
        "entropy/predicted_dh": 1.0,
        "entropy/tabular_dh": 1.0,
        "entropy/tabular_dh_free": 2.0,
        "entropy/coefficient": 3.0,
    }
    today = {"entropy/predicted_dh": 1.0, "entropy/tabular_dh": 4.0, "entropy/tabular_dh_free": 2.0}
    assert present_row(today) == today
