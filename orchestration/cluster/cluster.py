"""Starts a run's actors, renews them for the next run, replaces those that died, and closes them.

`connect` joins Ray (or starts a cluster of its own) and checks that the run fits. `Cluster.begin` places every actor, joins the
learner group and the weight group; for a second run on the same actors it only renews what belongs to a run. When weights move
is in weight_sync.py, the comparison of engine and trainer in logprob_check.py, that before anything is trained in start_check.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from actors.handles import RemoteGenerator, RemoteLearner, RemoteRewardModel, RemoteVerifier
from actors.pool import GeneratorPool, MemberDied, MemberPool, VerifierPool
from actors.remote import GeneratorActor, LearnerActor, RewardModelActor, VerifierActor, vllm_factory
from actors.settings import VLLMSettings, cpu_threads
from learner.deepspeed_engine import RankPlace
from learner.weights.protocol import WeightManifest
from orchestration.cluster import actor_settings, placement
from orchestration.cluster.actor_settings import Start, cpu_env
from orchestration.cluster.actor_slots import ActorSlots, Position
from orchestration.cluster.logprob_check import compare_logprobs
from orchestration.cluster.start_check import StartCheck, StartRules
from orchestration.cluster.weight_sync import WeightBroadcast, WeightGroup
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, PlacementError

M = TypeVar("M", RemoteGenerator, RemoteVerifier, RemoteRewardModel)

ALIVE_S = 30.0  # for a member to say that it is there: none is asked while it is busy
MAX_CONCURRENCY = 1000  # calls of one generator under way: its streams, and the weight calls beside them


def connect(config: RunConfig, copies: int = 1) -> None:
    """Joins the cluster of cluster.address or RAY_ADDRESS, or starts one in this process. PlacementError if it is too small for
    `copies` such runs side by side."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # an actor with no GPU leaves CUDA_VISIBLE_DEVICES alone
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PlacementError(
                f"the Ray cluster at {address} cannot be joined: {' '.join(str(error).split())}"
            ) from None
    else:
        ray.init(address="local", num_cpus=config.cluster.num_cpus, include_dashboard=False, **quiet)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    placement.check(placement.plan(config) * copies, ray.cluster_resources(), nodes)


class Cluster:
    """Holds every actor of a run. All waits are bounded; see the section of the configuration that each names."""

    def __init__(self, config: RunConfig, on_event: Callable[[str], None]) -> None:
        self.config, self.on_event = config, on_event
        self._slots = ActorSlots(placement.plan(config))
        self._source: Start
        self._placements: list[RankPlace]  # of the learner's ranks
        self._weights: WeightBroadcast
        self.learner: RemoteLearner
        self.generators: GeneratorPool[RemoteGenerator]
        self.verifiers: VerifierPool[RemoteVerifier]
        # Empty unless the reward has such a term:
        self.reward_models: VerifierPool[RemoteRewardModel]
        self.judges: GeneratorPool[RemoteGenerator]
        self.version = 0  # of the generators' weights
        self._untouched = False  # whether every generator has the weights that it loaded itself

    @property
    def cuda(self) -> bool:
        return self.config.learner.gpus > 0

    # --- start and end ------------------------------------------------------------------------------------------------

    def _report(self, text: str) -> None:
        self.on_event(text)  # read at each event: the next run on warm actors sets its own

    async def begin(self, config: RunConfig, start: Start) -> None:
        """Prepares a run: places the actors, or renews those of the run before, which had the same `layout_key`."""
        self.config = config
        await (self._renew(start) if self._slots.reserved else self._start(start))

    async def _renew(self, start: Start) -> None:
        """Keeps the processes and renews everything else: learner, environments, the weights of every engine."""
        limit = self.config.cluster.start_timeout_s
        self._source, self.version = start, start.version
        await self._replace_scorers()
        specs = actor_settings.environment_specs(self.config)
        settings = actor_settings.rank_settings(self.config, start)
        await asyncio.gather(
            self.learner.start(settings, self._placements, limit),
            *(v.configure(specs, limit) for v in self.verifiers.members),
            *(g.forget(limit) for g in self.generators.members),
        )
        await asyncio.gather(*(self._admit(v) for v in self.verifiers.members))
        await self._restore(start)
        self._make_pools(
            self.generators.members, self.verifiers.members, self.reward_models.members, self.judges.members
        )
        await self.sync(start.version)

    def _make_pools(
        self,
        generators: Sequence[RemoteGenerator],
        verifiers: Sequence[RemoteVerifier],
        models: Sequence[RemoteRewardModel],
        judges: Sequence[RemoteGenerator],
    ) -> None:
        term = self.config.rewards.model
        self.generators = GeneratorPool(generators, self._report)
        self.verifiers = VerifierPool(verifiers, self._report)
        self.reward_models = VerifierPool(models, self._report, gather_s=0.0 if term is None else term.gather_ms / 1000)
        self.judges = GeneratorPool(judges, self._report)

    async def _restore(self, start: Start) -> None:
        if start.engine is not None:
            await self.learner.load(start.engine)
        if start.learner is not None:
            await self.learner.load_state_dict(start.learner)

    async def _start(self, start: Start) -> None:
        """Returns when every actor answers and the weight group is joined. PlacementError after cluster.start_timeout_s."""
        config, limit = self.config, self.config.cluster.start_timeout_s
        await self._slots.reserve(limit)
        self._source, self.version = start, start.version
        judge = config.judge_generator
        verifiers = [self._verifier(i) for i in range(config.verifiers.count)]
        models = [self._reward_model(i) for i in range(config.rewards.model.count if config.rewards.model else 0)]
        others = [self._start_learner(start), *(self._admit(m) for m in models), *(self._admit(v) for v in verifiers)]
        makers = [lambda i=i: self._generator(i, start.model) for i in range(config.generators.count)]
        makers += [lambda i=i: self._judge(i) for i in range(judge.count if judge else 0)]
        if config.shares_gpus or (judge is not None and 0 < judge.gpus < 1):
            # An engine measures while it starts how much of its GPU is free, and takes a neighbour's growth for its own: one
            # after the other, and after all other actors.
            await asyncio.gather(*others)
            engines: list[RemoteGenerator] = []
            for make in makers:
                engines.append(made := make())
                await self._admit(made)
        else:
            engines = [make() for make in makers]
            await asyncio.gather(*others, *(self._admit(e) for e in engines))
        generators, judges = engines[: config.generators.count], engines[config.generators.count :]
        self._make_pools(generators, verifiers, models, judges)
        for g in generators:
            await g.mark_current(start.version, limit)
        await self._weights.join()
        self._untouched = True

    async def _admit(self, member: RemoteGenerator | RemoteVerifier | RemoteRewardModel) -> None:
        """Returns when it answers. Raises ConfigError where an environment cannot be built in a verifier's process: every verdict
        there would be an error."""
        limit = self.config.cluster.start_timeout_s
        await member.ready(limit)
        if isinstance(member, RemoteVerifier):
            fault = await member.prepare(limit)
            if fault is not None:
                raise ConfigError(
                    f"{member.name} cannot build the environments, {fault}; files of your own have to be where every node sees "
                    "them, or below the --working-dir of `ray job submit`"
                )

    async def close(self) -> None:
        await self._slots.close()

    async def begin_stage(self, index: int) -> None:
        """Takes the learner to the stage. Verifiers have every environment already; sampling settings come with each request."""
        await self.learner.begin_stage(actor_settings.learner_stage(self.config, index))

    # --- one actor of each kind ---------------------------------------------------------------------------------------

    async def _start_learner(self, start: Start) -> None:
        config = self.config
        ranks, limit = config.learner.ranks, config.cluster.start_timeout_s
        number = config.learner.threads or cpu_threads(config.learner.cpus, config.learner.gpus)
        env = {} if self.cuda else {**cpu_env(number), "DS_ACCELERATOR": "cpu"}
        kind = "learner rank"
        positions = [Position(self._slots.next_name(kind), kind, r, env) for r in range(ranks)]
        self.learner = RemoteLearner([self._slots.place(p, LearnerActor) for p in positions], config.learner.timeout_s)
        host, port = await self.learner.address(limit)
        self._placements = [RankPlace(r, ranks, host, port, self.cuda, config.learner.timeout_s) for r in range(ranks)]
        await self.learner.start(actor_settings.rank_settings(config, start), self._placements, limit)
        backend = "nccl" if self.cuda and not config.shares_gpus else "gloo"
        group = WeightGroup(host, backend, config.generators.tensor_parallel, config.weights.timeout_s)
        self._weights = WeightBroadcast(self.learner, self, group, self._report)
        await self._restore(start)

    def _generator(self, i: int, model: str) -> RemoteGenerator:
        """Starts a generator, which is STALE: it serves once its weights were confirmed as current."""
        settings = actor_settings.policy_engine(self.config, model, self._source.version)
        return self._engine("generator", i, settings, self.version)

    def _judge(self, i: int) -> RemoteGenerator:
        judge = self.config.judge_generator
        if judge is None:
            raise PlacementError("generators that judge are placed where the reward asks for them")
        return self._engine("judge", i, actor_settings.judge_engine(self.config, judge), None)

    def _engine(self, kind: str, i: int, settings: VLLMSettings, required: int | None) -> RemoteGenerator:
        g, name = settings.generator, self._slots.next_name(kind)
        position = Position(name, kind, i, cpu_env(cpu_threads(g.cpus, g.gpus)), MAX_CONCURRENCY)
        actor = self._slots.place(position, GeneratorActor, vllm_factory(settings), name, required)
        return RemoteGenerator(name, actor, g.timeout_s)

    def _verifier(self, i: int) -> RemoteVerifier:
        limit, kind = self.config.verifiers.timeout_s, "verifier"
        position = Position(self._slots.next_name(kind), kind, i, {"OMP_NUM_THREADS": "1"})
        specs = actor_settings.environment_specs(self.config)
        return RemoteVerifier(position.name, self._slots.place(position, VerifierActor, specs, limit), limit)

    def _reward_model(self, i: int) -> RemoteRewardModel:
        term, kind = self.config.rewards.model, "reward-model"
        if term is None:
            raise PlacementError("a reward model is placed where the reward has such a term")
        position = Position(self._slots.next_name(kind), kind, i, cpu_env(cpu_threads(term.cpus, term.gpus)))
        actor = self._slots.place(position, RewardModelActor, actor_settings.reward_model(term))
        return RemoteRewardModel(position.name, actor, term.timeout_s)

    # --- weights and log-probs ----------------------------------------------------------------------------------------

    async def sync(self, version: int) -> WeightManifest:
        """Sends the learner's weights to every generator as `version`; members that died are replaced first."""
        await self._replace_scorers()
        self._untouched = False
        manifest = await self._weights.sync(version)
        self.version = version
        return manifest

    async def check_start(self, version: int, sequences: Sequence[Sequence[int]]) -> None:
        """Transfers what the learner holds as `version` to every generator, and compares trainer, engines and plain transformers
        on these tokens. Raises ModelRefused, which names the part that disagrees."""
        config = self.config
        rules = StartRules(
            model=config.model.path,
            trainer=config.trainer_precision,
            exact=config.exact,
            precision=config.precision.mode,
            max_gap=config.weights.max_logprob_gap,
        )
        check = StartCheck(self.learner, lambda: self.generators.members, lambda: self.sync(version), sequences, rules)
        for remark in await check.run(self._untouched):
            self._report(remark)

    async def probe(self, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
        """Compares engine and trainer on these tokens. NumericsError, which names the generator, beyond weights.max_logprob_gap: it
        bounds the largest gap in fp32, and each generator's own mean in bf16 and fp16."""
        return await compare_logprobs(
            self.learner,
            self.generators.members,
            sequences,
            version=self.version,
            exact=self.config.exact,
            max_gap=self.config.weights.max_logprob_gap,
        )

    # --- replacement --------------------------------------------------------------------------------------------------

    def weight_receivers(self) -> Sequence[RemoteGenerator]:
        return self.generators.members

    async def bury_silent_generators(self) -> bool:
        """Takes generators that are gone, or silent for ALIVE_S, out of service; True if any is to be replaced."""
        return await self._bury_silent(self.generators)

    async def replace_dead_generators(self, version: int) -> bool:
        """Starts a replacement for each dead generator; True if there were any.

        A replacement starts STALE and joins with the transfer that follows: it never serves the base weights.
        """
        dead, self.generators.dead = self.generators.dead, []
        for name in dead:
            fresh = self._generator(self._slots.vacate(name), self._source.base or self._source.model)
            await self._admit(fresh)
            self.generators.add(fresh)
            self._report(f"{name} was replaced by {fresh.name}, which serves from version {version} on")
        return bool(dead)

    async def _replace_scorers(self) -> None:
        """Replaces dead verifiers, reward models and judges. Without this, all verdicts after the death of the last one would
        have that death as their error."""
        await self._replace_in(self.verifiers, self._verifier)
        await self._replace_in(self.reward_models, self._reward_model)
        await self._replace_in(self.judges, self._judge)

    async def _replace_in(self, pool: MemberPool[M, Any, Any], make: Callable[[int], M]) -> None:
        await self._bury_silent(pool)
        dead, pool.dead = pool.dead, []
        for name in dead:
            fresh = make(self._slots.vacate(name))
            await self._admit(fresh)
            pool.add(fresh)
            self._report(f"{name} was replaced by {fresh.name}")

    async def _bury_silent(self, pool: MemberPool[M, Any, Any]) -> bool:
        """Takes members that are gone, or silent for ALIVE_S, out of service; True if any is to be replaced."""
        calls = [member.ready(ALIVE_S) for member in pool.members]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, MemberDied):
                pool.bury(result)
        return bool(pool.dead)
