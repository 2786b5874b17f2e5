"""Checks that spans are nested or apart in their lane, and that the ring is bounded."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.tracing import spans
from learner.tracing.spans import Busy, Recorder, Span, span, take, traced


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    ticks = itertools.count(0, 10)
    made = Recorder(capacity=100, clock=lambda: next(ticks))
    spans.record(made)
    yield made
    spans.record(None)


def apart(kept: list[Span]) -> bool:
    """Returns whether any two spans of a lane are nested or do not overlap."""
    for one, other in itertools.combinations(kept, 2):
        if one.lane == other.lane:
            first, second = sorted((one, other), key=lambda s: (s.begin, -s.end))
            if first.end > second.begin and first.end < second.end:
                return False
    return True


def test_nothing_is_kept_while_nothing_is_recorded() -> None:
    with span("a"):
        pass
    Busy("b").now(True)
    assert take() == ([], 0)


def test_a_span_within_another_shares_its_lane(recorder: Recorder) -> None:
    with span("outer"):
        with span("first"):
            pass
        with span("second"):
            pass
    kept, dropped = take()
    assert [(s.name, s.lane) for s in kept] == [("first", 0), ("second", 0), ("outer", 0)]
    assert kept[2].begin < kept[0].begin < kept[0].end < kept[1].begin < kept[1].end < kept[2].end
    assert dropped == 0 and take() == ([], 0)


def test_an_error_ends_its_span(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="x"), span("a"):
        raise ValueError("x")
    with span("b"):
        pass
    assert [(s.name, s.lane) for s in take().spans] == [("a", 0), ("b", 0)]


def test_the_oldest_are_dropped_and_counted(recorder: Recorder) -> None:
    for i in range(130):
        with span(str(i)):
            pass
    kept, dropped = take()
    assert (len(kept), dropped, kept[0].name, kept[-1].name) == (100, 30, "30", "129")


def test_tasks_that_overlap_have_lanes_of_their_own(recorder: Recorder) -> None:
    @traced("task")
    async def one(seconds: float) -> float:
        with span("inner"):
            await asyncio.sleep(seconds)
        return seconds

    async def both() -> list[float]:
        with span("all"):
            return list(await asyncio.gather(one(0.02), one(0.01)))

    assert asyncio.run(both()) == [0.02, 0.01]
    kept = take().spans
    assert sorted(s.name for s in kept) == ["all", "inner", "inner", "task", "task"]
    assert {s.lane for s in kept} == {0, 1, 2} and apart(kept)


def test_a_thread_has_a_lane_of_its_own_and_gives_it_back(recorder: Recorder) -> None:
    @traced("thread")
    def work() -> None: ...

    async def run() -> None:
        with span("outer"):
            await asyncio.to_thread(work)  # with a copy of the context

    for _ in range(2):
        asyncio.run(run())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(s.name, s.lane) for s in take().spans] == [("thread", 1), ("outer", 0)] * 2 + [("thread", 0)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_lanes_never_cross(work: list[tuple[int, int]]) -> None:
    spans.record(Recorder())

    async def one(before: int, within: int) -> None:
        for _ in range(before):
            await asyncio.sleep(0)
        with span("a"), span("b"):
            for _ in range(within):
                await asyncio.sleep(0)

    async def run() -> None:
        await asyncio.gather(*(one(*times) for times in work))

    try:
        asyncio.run(run())
        kept = take().spans
    finally:
        spans.record(None)
    assert len(kept) == 2 * len(work) and apart(kept)


def test_what_goes_on_is_recorded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 1, 2, 3, 12, 13, 14])
    monkeypatch.setattr(spans, "PIECE_NS", 10)
    spans.record(Recorder(clock=lambda: next(times)))
    busy = Busy("generate")
    try:
        for on in (False, True, True, False, False, True, False):
            busy.now(on)
        assert take().spans == [Span("generate", 0, 2, 0), Span("generate", 3, 12, 0)]
        spans.record(Recorder(clock=iter([0, 9, 10, 11, 15]).__next__))
        for on in (True, True, True, False):
            busy.now(on)
        assert take().spans == [Span("generate", 0, 10, 0), Span("generate", 11, 15, 0)]
    finally:
        spans.record(None)
