"""Produces groups beside the training: generators work on later batches while the learner trains on an earlier one.

An admission gate as AReaL's (arXiv 2505.24298, section 5.1), with a bound that holds for every group. Let P be batch.prompts, A
batch.ahead and S batch.staleness. When the loop asks for the batch of iteration n, groups are begun until (A + 1) P are under way
or wait. A group that was begun for iteration b is due by iteration b + S. The batch is the P oldest that are finished, as soon as
what is left can still be trained on in time: for every d >= n, at most (d - n) P of the groups under way are due by d. Those that
wait fit in then as well, the oldest being taken first. After a resume with a lower S more may wait than that: those that are due
are all in one batch.

So no token that is trained on is from a policy more than S versions older than the one that is trained. Nothing is dropped for its
age, which would favour short responses: a slow group is passed by S - A times, its tokens being sampled by ever newer policies, and
then waited for. With S = A batches are made in the order in which they were begun; with S = 0 a batch is begun when it is asked for
and all of it is waited for, as in the synchronous loop (producer.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from envs.types import Group
from learner.batching import informative
from orchestration.config.run_config import RunConfig
from orchestration.sampling.curriculum import Curriculum
from orchestration.sampling.dynamic_sampling import Sampled
from orchestration.sampling.pending import Begun, Pending
from orchestration.sampling.producer import before_training
from orchestration.sampling.rollouts import PlayFn, ProgressFn, Rollouts


class AsynchronousProducer:
    """Keeps groups under way beside the training, and gives the loop a batch of them at a time."""

    def __init__(
        self,
        config: RunConfig,
        curriculum: Curriculum,
        rollouts: Rollouts,
        pending: Pending,
        show_progress: ProgressFn = lambda name, done, total: None,
    ) -> None:
        self._config, self._curriculum, self._rollouts = config, curriculum, rollouts
        self._pending, self._show = pending, show_progress
        self._staleness, self._prompts = config.batch.staleness, config.batch.prompts
        self._ahead = min(config.batch.ahead, self._staleness)
        self._tasks: set[asyncio.Task[None]] = set()
        self._measured = rollouts.continuous()
        self._looked_at = time.perf_counter()  # when the clocks were read last
        self._read: dict[str, float] = dict(self._measured.seconds)

    async def next_batch(self, iteration: int, stage: RunConfig) -> Sampled:
        """Begins groups as far as the gate allows, waits for the batch of `iteration`, and returns it in the order of ordinals.

        stage: the run's configuration in the present stage. Raises what a group failed with.
        """
        began, play = time.perf_counter(), self._player(stage)
        if not self._tasks:  # after a resume
            for ordinal, begun in self._pending.running.items():
                self._start(ordinal, begun, play)
        while True:
            self._admit(iteration, play)
            kept, dropped = self._finished()
            self._show("generate", min(len(kept), self._prompts), self._prompts)
            if self._ready(iteration, kept, dropped):
                break
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._tasks -= done
            for task in done:
                task.result()
        size = self._size(iteration, [self._due(self._pending.finished[n][0]) for n in kept])
        groups = self._pending.take(sorted([*kept[:size], *dropped]))
        return Sampled(
            groups,
            [self._keeps(group) for group in groups],
            math.ceil(len(groups) / self._prompts),
            self._seconds(time.perf_counter() - began),
            self._config.dynamic_by,
        )

    async def before_training(self, stage: RunConfig, responses: int) -> Sequence[Group]:
        """Samples groups that are not trained on: see `producer.before_training`."""
        return await before_training(self._config, self._curriculum, self._rollouts, stage, responses)

    def abandon(self) -> None:
        """Keeps everything: what is under way and what waits are in the checkpoint."""

    async def end_stage(self) -> str:
        """Ends what is left of a stage that its advance rule ended; returns a sentence about it, or "" where nothing was."""
        await self.close()
        running, finished = self._pending.clear()
        if not running + finished:
            return ""
        return f"{running} groups of the stage were still under way and {finished} waited: they are not trained on"

    async def close(self) -> None:
        """Ends the groups under way; they stay in `pending`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    # --- the gate -------------------------------------------------------------------------------------------------------

    def _admit(self, iteration: int, play: PlayFn) -> None:
        """Begins as many groups as the gate allows: (A + 1) P, and none that no iteration of the stage would train on.

        With refill, groups that teach nothing leave room for others, up to max_rounds batches of groups for one of them.
        """
        batches = min(self._ahead + 1, self._curriculum.left)
        kept, dropped = self._finished()
        live = len(self._pending.running) + len(kept)
        room = batches * self._prompts - live
        if self._config.batch.dynamic.kind == "refill":
            most = (batches + self._config.batch.dynamic.max_rounds - 1) * self._prompts
            room = min(room, most - live - len(dropped))
        for prompt in self._curriculum.next(max(0, room)):
            begun = Begun(prompt, iteration, self._curriculum.came_again(prompt))
            self._start(self._pending.begin(begun), begun, play)

    def _ready(self, iteration: int, kept: Sequence[int], dropped: Sequence[int]) -> bool:
        """Decides whether the batch can be taken: it is full, or nothing more will come, and all that is left can be in time."""
        running = self._pending.running.values()
        due = [self._due(begun) for begun in running]
        for later in range(self._staleness + 1):
            if sum(d <= iteration + later for d in due) > later * self._prompts:
                return False
        rounds = self._config.batch.dynamic.max_rounds
        return not running or len(kept) >= self._prompts or len(kept) + len(dropped) >= rounds * self._prompts

    def _size(self, iteration: int, waiting: Sequence[int]) -> int:
        """Returns how many groups a batch takes at most: P, and more only to make up for batches that were not full.

        waiting: by which iteration each group that waits is due.
        """
        return max(self._prompts, sum(due <= iteration for due in waiting))

    def _due(self, begun: Begun) -> int:
        """Returns the last iteration that can train on a group: with the next one it would be too old."""
        return begun.iteration + self._staleness

    def _finished(self) -> tuple[list[int], list[int]]:
        """Returns the ordinals of the groups that wait, oldest first: those that count for a batch, and those that refill drops."""
        waiting = self._pending.finished
        order = sorted(waiting, key=lambda n: (waiting[n][0].iteration, n))
        if self._config.batch.dynamic.kind != "refill":
            return order, []
        kept = [n for n in order if self._keeps(waiting[n][1])]
        return kept, [n for n in order if n not in kept]

    def _keeps(self, group: Group) -> bool:
        config = self._config
        return config.batch.dynamic.kind == "none" or informative(group, config.dynamic_by, config.diversity)

    # --- groups under way -----------------------------------------------------------------------------------------------

    def _player(self, stage: RunConfig) -> PlayFn:
        return self._rollouts.player(
            self._measured,
            stage.sampling,
            responses=self._config.batch.responses,
            temperature=stage.sampling.temperature,
        )

    def _start(self, ordinal: int, begun: Begun, play: PlayFn) -> None:
        # As the synchronous loop names them: seeds and request ids follow from the ordinal.
        stamp = f"iteration {ordinal // self._prompts + 1}"

        async def run() -> None:
            self._pending.finish(ordinal, await play(begun.prompt, stamp=stamp))

        self._tasks.add(asyncio.create_task(run()))

    def _seconds(self, waited: float) -> dict[str, float]:
        """Returns the seconds since the last batch in which generators and verifiers worked, and those that were waited."""
        now, read = time.perf_counter(), dict(self._measured.seconds)
        since, self._looked_at = now - self._looked_at, now
        passed = {name: read[name] - self._read[name] for name in read}
        self._read = read
        idle = max(0.0, since - passed["generate"])
        return {**passed, "learner_waits": waited, "generators_wait": idle}
