"""Decides from the progress of an actor whether it is well: a state machine without clock or network.

    HEALTHY --half a limit passed--> SUSPECT --heard of again, or progress--> HEALTHY
    HEALTHY, SUSPECT --a limit passed, or its process is gone--> DEAD --a replacement is being made--> RESTARTING
    RESTARTING --it answers--> STALE (a generator, without the current weights) or HEALTHY (any other)
    STALE --the current weights were confirmed--> HEALTHY
    RESTARTING, STALE --a limit passed, or its process is gone--> DEAD

What counts is what an actor has done (engine steps, responses, verdicts, micro-batches), never how long a batch takes: a slow
actor that goes on is well. Two limits: one for an actor that does not answer at all, whose process is frozen or whose node cannot
be reached, and a longer one for an actor that answers, has work, and gets nothing done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MemberState(StrEnum):
    """Says how an actor is."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"


class HealthError(RuntimeError):
    """Reports a change of state that cannot be: a fault of the caller's."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Bounds how long an actor may be without a sign.

    silent_s   without any answer (`cluster.silent_s`)
    stalled_s  with work and without progress
    key        the key that sets stalled_s, for the sentence
    """

    silent_s: float
    stalled_s: float
    key: str


class Health:
    """Follows one actor. Every method is given the time, in seconds of any clock that only goes forward."""

    def __init__(self, limits: HealthLimits, now: float, state: MemberState = MemberState.HEALTHY) -> None:
        """state: RESTARTING for an actor that is just being started."""
        self.limits = limits
        self.state = state
        self.reason = ""  # why it is DEAD
        self._heard = self._moved = now
        self._done: int = -1  # what it had done when it was last heard of

    @property
    def in_service(self) -> bool:
        """Returns whether the actor can be given work."""
        return self.state in (MemberState.HEALTHY, MemberState.SUSPECT)

    def hear(self, done: int, busy: bool, now: float) -> bool:
        """Takes an answer in; returns whether the actor has done more than before.

        done: what the actor has done so far, a count; busy: whether it has work under way.
        """
        if self.state in (MemberState.DEAD, MemberState.RESTARTING):
            return False  # an answer that was under way when it was given up
        moved = done != self._done
        self._heard = now
        if moved or not busy:
            self._done, self._moved = done, now
        return moved

    def excuse(self, now: float) -> None:
        """Counts from this time on: nobody could have been heard before it."""
        self._heard = self._moved = now

    def look(self, now: float) -> MemberState:
        """Returns the state at this time, after the limits were applied."""
        if self.state in (MemberState.DEAD, MemberState.RESTARTING):
            return self.state  # who starts a process bounds its start
        silent, stalled = now - self._heard, now - self._moved
        limits = self.limits
        if silent > limits.silent_s:
            self.die(
                f"no sign of life for {silent:.0f} s (cluster.silent_s = {limits.silent_s:g}): its process is frozen, or its node "
                "cannot be reached"
            )
        elif stalled > limits.stalled_s:
            self.die(f"it has work and made no progress for {stalled:.0f} s ({limits.key} = {limits.stalled_s:g})")
        elif self.in_service:
            late = silent > limits.silent_s / 2 or stalled > limits.stalled_s / 2
            self.state = MemberState.SUSPECT if late else MemberState.HEALTHY
        return self.state

    def die(self, reason: str) -> None:
        """Gives the actor up. Its first reason stays."""
        if self.state is not MemberState.DEAD:
            self.state, self.reason = MemberState.DEAD, reason

    def restart(self) -> None:
        """Notes that a replacement is being started in the place of this one. Raises HealthError unless it is DEAD."""
        self._go(MemberState.RESTARTING, MemberState.DEAD)

    def started(self, now: float, *, stale: bool) -> None:
        """Notes that the replacement answers. stale: it needs weights before it can be given work."""
        self._go(MemberState.STALE if stale else MemberState.HEALTHY, MemberState.RESTARTING)
        self._heard = self._moved = now
        self._done = -1

    def confirm(self, now: float) -> None:
        """Notes that a generator has the current weights."""
        self._go(MemberState.HEALTHY, MemberState.STALE)
        self._heard = self._moved = now

    def _go(self, to: MemberState, of: MemberState) -> None:
        if self.state is not of:
            raise HealthError(f"an actor that is {self.state} cannot become {to}: it has to be {of} before")
        self.state, self.reason = to, ""
