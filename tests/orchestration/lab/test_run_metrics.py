"""The flat names of a lab's metrics: parsed by one class, written as they were."""

import pytest

from orchestration.analysis.retention import MatrixKey, StageKey
from orchestration.lab.run_metrics import PassKey, name_after_training, pass_counts


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("pass@1/start", PassKey(1, "start")),
        ("pass@16/T=0.3/end", PassKey(16, "end", 0.3)),
        ("pass@16/T=1/end", PassKey(16, "end", 1.0)),
        ("pass@4/best", PassKey(4, "best")),
        ("matrix/pass@1/start/gym/gcd", MatrixKey(1, None, "gym/gcd")),
        ("matrix/pass@16/2/add", MatrixKey(16, 2, "add")),
        ("area/reward/0", StageKey("area/reward", 0)),
        ("entropy_change/11", StageKey("entropy_change", 11)),
    ],
)
def test_a_name_is_parsed_by_one_class_and_written_as_it_was(name: str, parsed: object) -> None:
    assert [x for kind in (PassKey, MatrixKey, StageKey) if (x := kind.parse(name)) is not None] == [parsed]
    assert str(parsed) == name


@pytest.mark.parametrize("name", ["reward_end", "retained/pass@1", "pass@1", "entropy_change", "matrix/pass@1/end"])
def test_other_names_are_parsed_by_none(name: str) -> None:
    assert not [kind for kind in (PassKey, MatrixKey, StageKey) if kind.parse(name) is not None]


def test_the_name_of_a_start_after_training() -> None:
    assert name_after_training("pass@4/T=0.3/start") == "pass@4/T=0.3/end"
    assert name_after_training("distinct_start") == "distinct_end"
    assert name_after_training("pass@4/end") is None
    assert name_after_training("target") is None


def test_pass_counts_are_those_after_training_at_the_first_temperature() -> None:
    assert pass_counts(["pass@1/end", "pass@4/end", "pass@8/start", "pass@16/T=1/end", "pass@32/best"]) == {1, 4}
