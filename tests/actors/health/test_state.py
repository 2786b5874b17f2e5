"""The state machine of an actor's health: only the edges it declares, and what it takes to be given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.health.state import Health, HealthError, HealthLimits, MemberState

LIMITS = HealthLimits(silent_s=10.0, stalled_s=40.0, key="generators.timeout_s")
H, S, D, R, T = (
    MemberState.HEALTHY,
    MemberState.SUSPECT,
    MemberState.DEAD,
    MemberState.RESTARTING,
    MemberState.STALE,
)
EDGES = {(H, S), (S, H), (H, D), (S, D), (D, R), (R, T), (R, H), (T, H), (R, D), (T, D)}
ACTIONS = ("wait", "answer", "progress", "idle", "die", "restart", "started", "started stale", "confirm", "excuse")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.floats(0, 50)), max_size=40))
def test_only_declared_edges_are_taken_and_a_refused_one_changes_nothing(script: list[tuple[str, float]]) -> None:
    now, done = 0.0, 0
    health = Health(LIMITS, now)
    for action, seconds in script:
        before, now = health.state, now + seconds
        try:
            match action:
                case "answer":
                    health.hear(done, True, now)
                case "progress":
                    done += 1
                    health.hear(done, True, now)
                case "idle":
                    health.hear(done, False, now)
                case "die":
                    health.die("killed")
                case "restart":
                    health.restart()
                case "started":
                    health.started(now, stale=False)
                case "started stale":
                    health.started(now, stale=True)
                case "confirm":
                    health.confirm(now)
                case "excuse":
                    health.excuse(now)
                case _:
                    pass
        except HealthError:
            assert health.state is before
        between = health.state
        after = health.look(now)
        for edge in ((before, between), (between, after)):
            assert edge[0] is edge[1] or edge in EDGES
        assert (after is D) == bool(health.reason)
        assert health.look(now) is after


@given(st.lists(st.floats(0.1, 9.9), min_size=1, max_size=200))
def test_an_actor_that_goes_on_is_never_given_up_however_long_it_takes(gaps: list[float]) -> None:
    """A batch may take hours: a step now and then is enough."""
    health, now = Health(LIMITS, 0.0), 0.0
    for done, gap in enumerate(gaps):
        now += gap
        assert health.look(now) is not D
        health.hear(done, True, now)


@given(st.floats(0.1, 9.9), st.integers(1, 100))
def test_an_actor_that_answers_and_gets_nothing_done_is_given_up_after_its_own_limit(gap: float, more: int) -> None:
    health, now = Health(LIMITS, 0.0), 0.0
    health.hear(3, True, now)
    while now <= LIMITS.stalled_s:
        assert health.look(now) in (H, S)
        now += gap
        health.hear(3, True, now)
    assert health.look(now) is D
    assert "made no progress for" in health.reason and "generators.timeout_s = 40" in health.reason


def test_an_actor_without_work_may_rest_and_one_that_is_silent_may_not() -> None:
    health = Health(LIMITS, 0.0)
    for now in range(0, 1000, 5):
        health.hear(7, False, now)
        assert health.look(now) is H
    assert [health.look(995 + late) for late in (4, 6, 10, 11)] == [H, S, S, D]
    assert "no sign of life for 11 s (cluster.silent_s = 10)" in health.reason


def test_a_suspect_that_answers_is_well_and_a_dead_one_that_answers_stays_dead() -> None:
    health = Health(LIMITS, 0.0)
    assert health.look(6) is S
    health.hear(1, True, 6)
    assert health.look(6) is H
    assert health.look(17) is D
    health.hear(2, True, 17)
    assert health.look(17) is D


def test_the_life_of_a_generator_that_was_replaced() -> None:
    health = Health(LIMITS, 0.0)
    health.die("killed")
    health.restart()
    assert health.look(1000) is R  # who starts a process bounds its start
    health.started(1000, stale=True)
    assert health.look(1001) is T and not health.in_service
    health.confirm(1005)
    assert health.look(1006) is H and health.in_service and not health.reason


@pytest.mark.parametrize("call", ["restart", "started", "confirm"])
def test_what_cannot_be_is_said(call: str) -> None:
    health = Health(LIMITS, 0.0)
    with pytest.raises(HealthError, match="an actor that is healthy cannot become"):
        {
            "restart": health.restart,
            "started": lambda: health.started(0, stale=False),
            "confirm": lambda: health.confirm(0),
        }[call]()


def test_the_first_reason_stays() -> None:
    health = Health(LIMITS, 0.0)
    health.die("killed")
    health.die("no answer")
    assert health.reason == "killed"
