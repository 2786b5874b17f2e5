"""The table of keys, and which key belongs to which entry."""

import pytest

from envs.types import Status
from orchestration.telemetry.keys import KEYS, lookup


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
    found = lookup(key)
    assert found is not None
    assert (found[0], found[1].get("env")) == (family, env)


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
