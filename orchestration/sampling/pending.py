"""Holds what an asynchronous run has begun and not trained on: groups under way and groups that wait for their batch.

Every group has an ordinal, by which it is begun, counted and, after a resume, begun again or taken from the checkpoint: none is
lost and none is there twice. A group that was under way is sampled anew, from its prompt and its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from envs.types import Group, Prompt
from learner.checkpoint import CheckpointError

GROUPS = "groups.json"  # the file of a checkpoint that has the groups which wait
_FILE = TypeAdapter(list[tuple[int, int, bool, Group]])

RedrawFn = Callable[[int, int, bool], Prompt]  # (environment, index, again) to the prompt: Curriculum.redraw


@dataclass(frozen=True, slots=True)
class Begun:
    """Says when a group was begun: by the number of the iteration whose batch was asked for then, which bounds its age."""

    prompt: Prompt
    iteration: int
    again: bool = False  # whether the curriculum had given the prompt before


def write_groups(folder: Path, waiting: Sequence[tuple[int, int, bool, Group]]) -> None:
    """Writes what `Pending.waiting` returned into a checkpoint's folder. Raises OSError."""
    if waiting:
        (folder / GROUPS).write_bytes(_FILE.dump_json(list(waiting)))


class Pending:
    """Holds the groups of a run by ordinal. next: the ordinal of the next one that is begun."""

    def __init__(self, next_ordinal: int = 0) -> None:
        self.next = next_ordinal
        self.running: dict[int, Begun] = {}
        self.finished: dict[int, tuple[Begun, Group]] = {}

    def begin(self, begun: Begun) -> int:
        """Counts a group that begins; returns its ordinal."""
        ordinal, self.next = self.next, self.next + 1
        self.running[ordinal] = begun
        return ordinal

    def finish(self, ordinal: int, group: Group) -> None:
        """Lets a group that was under way wait for its batch."""
        self.finished[ordinal] = (self.running.pop(ordinal), group)

    def take(self, ordinals: Sequence[int]) -> list[Group]:
        """Returns groups that wait, in this order, and forgets them: they are trained on."""
        return [self.finished.pop(ordinal)[1] for ordinal in ordinals]

    def clear(self) -> tuple[int, int]:
        """Forgets all groups; returns how many were under way and how many waited."""
        counts = len(self.running), len(self.finished)
        self.running.clear()
        self.finished.clear()
        return counts

    # --- in a checkpoint ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns what state.json says, as JSON values: of a group under way (ordinal, environment, index of its prompt, whether
        that came again), of one that waits its ordinal."""
        return {
            "next": self.next,
            "running": [[n, b.prompt.environment, b.prompt.index, b.again] for n, b in sorted(self.running.items())],
            "finished": sorted(self.finished),
        }

    def waiting(self) -> list[tuple[int, int, bool, Group]]:
        """Returns the groups that wait, for `write_groups`: (ordinal, iteration it was begun in, whether its prompt came again,
        group)."""
        return [(n, b.iteration, b.again, g) for n, (b, g) in sorted(self.finished.items())]

    def load(self, state: Mapping[str, Any], folder: Path, redraw: RedrawFn, iteration: int) -> None:
        """Restores what a checkpoint's state.json and its GROUPS say. Raises CheckpointError.

        iteration: the one that comes next: what was under way begins anew with it.
        """
        path = folder / GROUPS
        try:
            waiting = _FILE.validate_json(path.read_bytes()) if state["finished"] else []
        except (OSError, ValidationError) as error:
            raise CheckpointError(f"{path}, the groups that wait for their batch: {str(error)[:200]}") from None
        if sorted(n for n, *_ in waiting) != list(state["finished"]):
            raise CheckpointError(f"{path} has other groups than state.json names")
        self.next = int(state["next"])
        self.running = {n: Begun(redraw(env, i, again), iteration, again) for n, env, i, again in state["running"]}
        self.finished = {}
        for n, begun, again, group in waiting:
            redraw(group.prompt.environment, group.prompt.index, again)  # the curriculum counts it as drawn
            self.finished[n] = (Begun(group.prompt, begun, again), group)
