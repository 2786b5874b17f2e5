"""Starts a run's actors, renews them for the next run or after a loss of the learner, and closes them.

session.py joins Ray, or starts a cluster of its own, and checks that the run fits. `Cluster.begin` places every actor, joins the
learner group and the weight group; for a second run on the same actors it only renews what belongs to a run. Who is replaced, and
how many generators there are, is in members.py; when weights move in weight_sync.py; the comparison of engine and trainer in
logprob_check.py, that before anything is trained in start_check.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from actors.handles import RemoteGenerator, RemoteLearner
from actors.health.lifeline import LearnerDied, MemberDied
from actors.pool import GeneratorPool, VerifierPool
from actors.remote import LearnerActor
from learner.rank_settings import RankPlace
from learner.settings import RowLayout
from learner.tracing.spans import VARIABLE
from orchestration.cluster import actor_settings, placement
from orchestration.cluster.actor_makers import START_ATTEMPTS, ActorMakers, AnyMember
from orchestration.cluster.actor_settings import Start, cpu_env
from orchestration.cluster.actor_slots import ActorSlots, Position
from orchestration.cluster.logprob_check import compare_logprobs
from orchestration.cluster.members import Members
from orchestration.cluster.start_check import LAYOUTS, StartCheck, StartRules
from orchestration.cluster.start_progress import StartProgress
from orchestration.cluster.turns import Turns
from orchestration.cluster.weight_sync import Transfer, WeightBroadcast, WeightGroup
from orchestration.config.run_config import RunConfig
from orchestration.errors import NumericsError, PlacementError

MAX_WRONG = 3  # comparisons in a row in which a generator was not the trainer, and was replaced
# OpenMP's threads wait asleep: two that spin took five times as long as one where other processes had the cores, and asleep half.
CPU_LEARNER = {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "passive"}
START_CHECKS = 3  # times the start is compared where a generator dies meanwhile


class Cluster:
    """Holds every actor of a run. All waits are bounded, by a time or by progress; see actors/health."""

    def __init__(self, config: RunConfig, on_event: Callable[[str], None]) -> None:
        self.config, self.on_event = config, on_event
        self.on_progress: Callable[[str, float, float], None] = lambda phase, done, total: None
        self._slots = ActorSlots(placement.plan(config), {VARIABLE: "1"} if config.run.trace else {})
        self.members = Members(self._slots, self._report, self._fetch)
        self._makers: ActorMakers
        self._placements: list[RankPlace]  # of the learner's ranks
        self._weights: WeightBroadcast
        self._turns = Turns(self.members, lambda: self.learner, config.generators.colocated)
        self._moving = asyncio.Lock()  # one transfer, or change of turns, at a time
        self.learner: RemoteLearner
        self._started = False
        self.version = 0  # of the generators' weights
        self._checking = False  # whether the learner's weights are not those of `version`, for the check of a start
        self._untouched = False  # whether every generator has the weights that it loaded itself
        self.restarts = 0  # of the learner group
        self._wrong = 0  # comparisons in a row that found a generator which is not the trainer

    @property
    def cuda(self) -> bool:
        return self.config.learner.gpus > 0

    @property
    def generators(self) -> GeneratorPool[RemoteGenerator]:
        return self.members.generators

    @property
    def verifiers(self) -> VerifierPool[Any]:
        return self.members.verifiers

    @property
    def reward_models(self) -> VerifierPool[Any]:
        return self.members.reward_models

    @property
    def judges(self) -> GeneratorPool[RemoteGenerator]:
        return self.members.judges

    # --- start and end ------------------------------------------------------------------------------------------------

    def _report(self, text: str) -> None:
        self.on_event(text)  # read at each event: the next run on warm actors sets its own

    async def begin(self, config: RunConfig, start: Start) -> None:
        """Prepares a run: places the actors, or renews those of the run before, which had the same `layout_key`.

        A learner group that lost a rank is built anew, in the same places.
        """
        self.config = config
        self._makers = self.members.makers = ActorMakers(config, self._slots, start)
        if self._started:
            await self._renew(start)
            return
        try:
            await self._start(start)
        except LearnerDied as death:  # at a first start there is nothing that another attempt could keep
            raise PlacementError(f"the learner could not be started: {death}") from death
        self._started = True

    async def _start(self, start: Start) -> None:
        """Returns when every actor answers. PlacementError after cluster.start_timeout_s."""
        config, limit, make = self.config, self.config.cluster.start_timeout_s, self._makers
        self._report("reserving room for the actors")
        await self._slots.reserve(limit)
        self._report(f"loading the model: learner ranks {config.learner.ranks}, generators {config.generators.least}")
        self.version = start.version
        judge, term, count = config.judge_generator, config.rewards.model, config.generators.least
        numbers = {
            "generator": count,
            "judge": judge.count if judge else 0,
            "verifier": config.verifiers.count,
            "reward-model": term.count if term else 0,
        }
        shown = StartProgress({**numbers, "learner": 1}, self._report, lambda *at: self.on_progress(*at))

        def started(kind: str) -> list[Coroutine[Any, Any, AnyMember]]:
            def one(i: int) -> Coroutine[Any, Any, AnyMember]:
                of = partial(make.generator, i, start.model) if kind == "generator" else None
                return shown.follow(kind, make.started(kind, i, of))

            return [one(i) for i in range(numbers[kind])]

        learner = shown.follow("learner", self._start_learner(start))
        starts, scorers = [*started("generator"), *started("judge")], [*started("verifier"), *started("reward-model")]
        if make.one_by_one:  # and after all other actors
            ended: list[Any] = await asyncio.gather(learner, *scorers)
            if config.generators.colocated:  # engines begin with a turn of theirs
                await self.learner.offload()
            engines: list[Any] = [await one for one in starts]
        else:  # engines take longest, and Ray starts as many processes at once as there are cores
            engines, ended = await asyncio.gather(asyncio.gather(*starts), asyncio.gather(learner, *scorers))
        scoring = ended[1:]
        verifiers, models = scoring[: config.verifiers.count], scoring[config.verifiers.count :]
        generators, judges = engines[:count], engines[count:]
        for g in generators:
            await g.mark_current(start.version, limit)
        self._untouched = (
            start.adapter is None
        )  # of an adapter at a checkpoint they have nothing before the first transfer
        self.members.make_pools(generators, verifiers, models, judges)
        self.members.watch_all()
        if count < config.generators.count:
            self.members.scale(config.generators.count)

    async def _renew(self, start: Start) -> None:
        """Keeps the processes and renews everything else: learner, environments, the weights of every engine."""
        limit = self.config.cluster.start_timeout_s
        self.version, self._wrong = start.version, 0
        specs = actor_settings.environment_specs(self.config)
        await self._turns.clear()  # a learner begins with its optimiser's state on the GPU
        # A member that is gone meanwhile ends nothing: it is replaced.
        renewed: list[tuple[AnyMember, Any]] = [(v, v.configure(specs, limit)) for v in self.verifiers.members]
        renewed += [(g, g.forget(limit)) for g in self.members.present()]
        self._checking = True  # until the learner holds what is to be `version`, nobody who joins is sent anything
        try:
            await asyncio.gather(self._renew_learner(start, limit), *(self._ask(work) for _, work in renewed))
        finally:
            self._checking = False
        await asyncio.gather(*(self._ask(self._makers.admit(v)) for v in self.verifiers.members))
        self.members.renew_pools()
        await self.sync(start.version)

    async def _ask(self, work: Any) -> None:
        try:
            await work
        except LearnerDied:
            raise
        except MemberDied as death:
            self.members.lost(death)

    async def _renew_learner(self, start: Start, limit: float) -> None:
        if not self.learner.lost:
            await self.learner.start(actor_settings.rank_settings(self.config, start), self._placements, limit)
            self._weights.renewed()
            await self._restore(start)
            return
        self._end_learner()
        await self._start_learner(start)
        self.restarts += 1

    async def _restore(self, start: Start) -> None:
        if start.engine is not None:
            await self.learner.load(start.engine)
        if start.learner is not None:
            await self.learner.load_state_dict(start.learner)

    async def close(self) -> None:
        """Ends every actor, within a bound."""
        await self.members.close()
        await self._slots.close()

    def counts(self) -> dict[str, float]:
        """Returns metrics of the actors: generators in service, and what was replaced since the process began."""
        return {
            "cluster/generators": float(len(self.generators.members)),
            "cluster/replaced": float(self.members.replaced),
            "cluster/learner_restarts": float(self.restarts),
            "requests/aborted": self.generators.aborted / max(1, self.generators.begun),
            **self._turns.seconds(),
        }

    async def learners_turn(self) -> None:
        """Gives GPUs that learner and generators share to the learner: generators sleep."""
        if self.config.generators.colocated:
            async with self._moving:
                await self._turns.to_learner()

    async def generators_turn(self) -> None:
        """Gives them to the generators, with the weights that they have; one that joined while none was left is sent them."""
        if self.config.generators.colocated:
            async with self._moving:
                await self._turns.to_generators()
            await self._fetch()

    async def begin_stage(self, index: int) -> None:
        """Takes the learner to the stage. Verifiers have every environment already; sampling settings come with each request."""
        await self.learners_turn()
        await self.learner.begin_stage(actor_settings.learner_stage(self.config, index))

    async def _start_learner(self, start: Start) -> None:
        """Starts the ranks; where one is lost meanwhile, all of them again, a few times.

        Raises LearnerDied, and PlacementError where they do not come in time, as on a node that is gone.
        """
        for left in reversed(range(START_ATTEMPTS)):
            try:
                await self._place_learner(start)
            except LearnerDied as death:
                if death.late:
                    raise PlacementError(
                        f"the learner could not be started: {death.name} gave {death.detail}"
                    ) from death
                if not left:
                    raise
                self._end_learner()
            else:
                return

    def _end_learner(self) -> None:
        for rank in self.learner.ranks:
            self.members.monitor.forget(rank.name)
            self._slots.vacate(rank.name)

    async def _place_learner(self, start: Start) -> None:
        config = self.config
        ranks, limit = config.learner.ranks, config.cluster.start_timeout_s
        env = {} if self.cuda else {**cpu_env(placement.learner_threads(config)), **CPU_LEARNER}
        kind = "learner rank"
        positions = [Position(self._slots.next_name(kind), kind, r, env) for r in range(ranks)]
        actors = [self._slots.place(p, LearnerActor) for p in positions]
        self.learner = RemoteLearner(actors, [p.name for p in positions], config.learner.timeout_s)
        await self.learner.ready(limit)
        host, port = await self.learner.address(limit)
        self._placements = [RankPlace(r, ranks, host, port, self.cuda, config.learner.timeout_s) for r in range(ranks)]
        await self.learner.start(actor_settings.rank_settings(config, start), self._placements, limit)
        backend = "nccl" if self.cuda and not config.shares_gpus else "gloo"
        group = WeightGroup(host, backend, config.generators.tensor_parallel, config.weights.timeout_s)
        self._weights = WeightBroadcast(self.learner, self.members, group, self._report)
        self.members.watch_learner(self.learner)  # its progress bounds the reading of a checkpoint
        await self._restore(start)

    # --- weights and log-probs ----------------------------------------------------------------------------------------

    async def sync(self, version: int, sequences: Sequence[Sequence[int]] = ()) -> Transfer:
        """Sends the learner's weights to every generator as `version`, those that join among them. Then it is their turn.

        sequences: what `probe` will be asked about; the learner scores them while the generators load.
        """
        async with self._moving:
            return await self._send(version, sequences)

    async def _send(self, version: int, sequences: Sequence[Sequence[int]] = ()) -> Transfer:
        self._untouched = False
        await self._turns.to_transfer()
        sent = await self._weights.sync(version, sequences)
        self.version, self.learner.updated = version, False
        await self._turns.to_generators()
        self.members.serve(sent.names, version)
        return sent

    async def _fetch(self) -> None:
        """Sends the present weights to generators that joined while none was left. Does nothing where a transfer is due anyway:
        the learner's weights are newer than `version`."""
        async with self._moving:
            busy = self.learner.updated or self._checking or self._turns.learners
            if self.members.joining and not (self.generators.members or busy):
                await self._send(self.version)

    async def check_start(self, version: int, sequences: Sequence[Sequence[int]]) -> RowLayout:
        """Transfers what the learner holds as `version` to every generator, and compares trainer, engines and plain transformers
        on these tokens. Returns what batches may be. Raises ModelRefused, which names the part that disagrees."""
        config = self.config
        rules = StartRules(
            model=config.model.path,
            trainer=config.trainer_precision,
            exact=config.exact,
            precision=config.precision.mode,
            max_gap=config.weights.max_logprob_gap,
            packing=config.learner.packing,
            sharing=config.learner.prefix_sharing,
        )
        check = StartCheck(self.learner, lambda: self.generators.members, lambda: self.sync(version), sequences, rules)
        self.on_progress("checking", 0, 1)
        began, left = time.monotonic(), START_CHECKS
        while True:
            left -= 1
            self._checking = True
            try:
                found = await check.run(self._untouched)
            except MemberDied as death:
                if not left or isinstance(death, LearnerDied):
                    raise
                self.members.lost(death)
                await self.sync(version)
            else:
                for remark in found.remarks:
                    self._report(remark)
                self._report(
                    "trainer and engines compute the same, the first transfer included: "
                    f"{time.monotonic() - began:.1f} s; {LAYOUTS[found.layout]}"
                )
                return found.layout
            finally:
                self._checking = False

    async def probe(self, sequences: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> dict[str, float]:
        """Compares engine and trainer on these tokens, each generator by itself: it is bounded by weights.max_logprob_gap.

        expected: the trainer's log-probs of them, from the transfer of the present version.
        A generator that is not the trainer among others that are is replaced. NumericsError where all of them differ, or one does
        again and again.
        """
        metrics, deaths, wrong = await compare_logprobs(
            expected,
            self.generators.members,
            sequences,
            version=self.version,
            exact=self.config.exact,
            max_gap=self.config.weights.max_logprob_gap,
        )
        self._wrong = self._wrong + 1 if wrong else 0
        if self._wrong > MAX_WRONG:
            raise NumericsError(f"{wrong}; {MAX_WRONG} such generators were replaced before, one an iteration")
        for death in deaths:
            self.members.lost(death)
        return metrics
