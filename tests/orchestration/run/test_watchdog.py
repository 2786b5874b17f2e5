"""The watchdog: one sentence a stall, with the phase, what it waits for, and how long."""

from orchestration.run.watchdog import Watchdog


def test_a_stall_is_told_once_and_again_when_twice_as_long() -> None:
    now = [0.0]
    dog = Watchdog(60.0, lambda: now[0])
    dog.phase("generate", "generator 0, generator 1")
    dog.progress(12, 64)
    assert dog.look() is None
    now[0] = 61.0
    assert dog.look() == "no progress for 1 min 1 s: generate stands at 12 of 64, it waits for generator 0, generator 1"
    assert dog.look() is None
    now[0] = 119.0
    assert dog.look() is None
    now[0] = 400.0
    assert dog.look() is not None
    assert dog.look(479.0) is None
    assert dog.look(481.0) is not None


def test_progress_ends_a_stall_and_the_same_numbers_are_none() -> None:
    now = [0.0]
    dog = Watchdog(60.0, lambda: now[0])
    dog.phase("generate")
    dog.progress(12, 64)
    now[0] = 50.0
    dog.progress(12, 64)
    assert dog.look(61.0) is not None
    dog.progress(13, 64)
    assert dog.look(61.0) is None
    assert dog.look(109.0) is None and dog.look(111.0) is not None


def test_another_phase_is_progress() -> None:
    now = [0.0]
    dog = Watchdog(60.0, lambda: now[0])
    dog.phase("generate")
    now[0] = 59.0
    dog.phase("train", "learner rank 1")
    dog.phase("train", "learner rank 1")
    assert dog.look(100.0) is None
    assert "train stands, it waits for learner rank 1" in (dog.look(119.5) or "")
