"""From a configuration to running actors, and back to none.

`connect` joins Ray (or starts a cluster of its own) and checks that the run fits. `Cluster.begin` places every actor, joins the
learner group and the weight group; for a second run on the same actors it only renews what is the run's own. `close` ends all
of it. In between, `sync` moves weights and replaces generators that died.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray

from actors.pool import GeneratorPool, MemberDied, VerifierPool
from actors.remote import (
    GeneratorActor,
    LearnerActor,
    RemoteGenerator,
    RemoteLearner,
    RemoteRewardModel,
    RemoteVerifier,
    RewardModelActor,
    VerifierActor,
    answer,
    vllm_factory,
)
from actors.settings import VLLMSettings, cpu_threads
from learner.deepspeed_engine import Placement
from learner.weights.checksum import verify_checksums
from learner.weights.protocol import WeightManifest, WeightSyncError, make_rendezvous
from orchestration.cluster import actor_settings, placement
from orchestration.cluster.actor_settings import Start, cpu_env
from orchestration.cluster.actor_slots import ActorSlots
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, NumericsError, PlacementError

Member = RemoteVerifier | RemoteRewardModel | RemoteGenerator

ALIVE_S = 30.0  # for a member to say that it is there: none is asked while it is busy


def connect(config: RunConfig, copies: int = 1) -> None:
    """Join the cluster of cluster.address or RAY_ADDRESS, or start one in this process. PlacementError if it is too small for
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
    """Every actor of one run. All waits are bounded; see the section of the configuration that each names."""

    def __init__(self, config: RunConfig, on_event: Callable[[str], None]) -> None:
        self.config, self.on_event = config, on_event
        self._slots = ActorSlots(placement.plan(config))
        self._epoch = 0
        self.learner: RemoteLearner
        self.generators: GeneratorPool[RemoteGenerator]
        self.verifiers: VerifierPool[RemoteVerifier]
        # Empty unless the reward has such a term:
        self.reward_models: VerifierPool[RemoteRewardModel]
        self.judges: GeneratorPool[RemoteGenerator]
        self.version = 0

    @property
    def cuda(self) -> bool:
        return self.config.learner.gpus > 0

    # --- start and end ------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.on_event(text)

    async def begin(self, config: RunConfig, start: Start) -> None:
        """Ready for a run: the actors are placed, or those of the run before, of the same `layout_key`, are made its own."""
        self.config = config
        await (self._renew(start) if self._slots.reserved else self._start(start))

    async def _renew(self, start: Start) -> None:
        """Nothing of the run before is left but processes: new learner, new environments, new weights on every engine."""
        limit = self.config.cluster.start_timeout_s
        self._source, self.version = start, start.version
        await self._replace_judges()
        specs = actor_settings.environment_specs(self.config)
        starts = [
            actor.start.remote(actor_settings.rank_settings(self.config, start), place)
            for actor, place in zip(self.learner.actors, self._places, strict=True)
        ]
        await asyncio.gather(
            *(answer(f"learner rank {r}", ref, limit) for r, ref in enumerate(starts)),
            *(answer(v.name, v.actor.configure.remote(specs), limit) for v in self.verifiers.members),
            *(answer(g.name, g.actor.call.remote("forget"), limit) for g in self.generators.members),
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
        self.generators = GeneratorPool(generators, self._say)
        self.verifiers = VerifierPool(verifiers, self._say)
        self.reward_models = VerifierPool(models, self._say, gather_s=0.0 if term is None else term.gather_ms / 1000)
        self.judges = GeneratorPool(judges, self._say)

    async def _restore(self, start: Start) -> None:
        if start.engine is not None:
            await self.learner.all("load", start.engine)
        if start.learner is not None:
            await self.learner.all("load_state_dict", start.learner)

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
            # after the other, and after everybody else.
            await asyncio.gather(*others)
            engines = []
            for make in makers:
                engines.append(made := make())
                await self._admit(made)
        else:
            engines = [make() for make in makers]
            await asyncio.gather(*others, *(self._admit(e) for e in engines))
        generators, judges = engines[: config.generators.count], engines[config.generators.count :]
        self._make_pools(generators, verifiers, models, judges)
        for g in generators:
            await answer(g.name, g.actor.call.remote("mark_current", start.version), limit)
        await self._join_weight_group()

    async def _admit(self, member: Member) -> None:
        """Returns when it answers. Raises ConfigError where an environment cannot be built in a verifier's process: every verdict
        there would be an error."""
        limit = self.config.cluster.start_timeout_s
        await answer(member.name, member.actor.ready.remote(), limit)
        if isinstance(member, RemoteVerifier):
            fault = await answer(member.name, member.actor.prepare.remote(), limit)
            if fault is not None:
                raise ConfigError(
                    f"{member.name} cannot build the environments, {fault}; files of your own have to be where every node sees "
                    "them, or below the --working-dir of `ray job submit`"
                )

    async def _start_learner(self, start: Start) -> None:
        config = self.config
        ranks, limit = config.learner.ranks, config.cluster.start_timeout_s
        number = config.learner.threads or cpu_threads(config.learner.cpus, config.learner.gpus)
        env = {} if self.cuda else {**cpu_env(number), "DS_ACCELERATOR": "cpu"}
        kind = "learner rank"
        actors = [self._slots.place(self._slots.name(kind), kind, r, LearnerActor, env=env) for r in range(ranks)]
        host, port = await answer("learner rank 0", actors[0].address.remote(), limit)
        self._host = host
        settings = actor_settings.rank_settings(config, start)
        self._places = [Placement(r, ranks, host, port, self.cuda, config.learner.timeout_s) for r in range(ranks)]
        starts = [actor.start.remote(settings, place) for actor, place in zip(actors, self._places, strict=True)]
        await asyncio.gather(*(answer(f"learner rank {r}", ref, limit) for r, ref in enumerate(starts)))
        self.learner = RemoteLearner(actors, config.learner.timeout_s)
        await self._restore(start)

    def _generator(self, i: int, model: str) -> RemoteGenerator:
        """It starts STALE: it serves once somebody has called its weights current."""
        settings = actor_settings.policy_engine(self.config, model, self._source.version)
        return self._engine("generator", i, settings, self.version)

    def _judge(self, i: int) -> RemoteGenerator:
        judge = self.config.judge_generator
        if judge is None:
            raise PlacementError("generators that judge are placed where the reward asks for them")
        return self._engine("judge", i, actor_settings.judge_engine(self.config, judge), None)

    def _engine(self, kind: str, i: int, settings: VLLMSettings, required: int | None) -> RemoteGenerator:
        g, name = settings.generator, self._slots.name(kind)
        built, env = (vllm_factory(settings), name, required), cpu_env(cpu_threads(g.cpus, g.gpus))
        actor = self._slots.place(name, kind, i, GeneratorActor, *built, env=env, max_concurrency=1000)
        return RemoteGenerator(name, actor, g.timeout_s)

    def _verifier(self, i: int) -> RemoteVerifier:
        limit, name = self.config.verifiers.timeout_s, self._slots.name("verifier")
        specs = actor_settings.environment_specs(self.config)
        env = {"OMP_NUM_THREADS": "1"}
        return RemoteVerifier(name, self._slots.place(name, "verifier", i, VerifierActor, specs, limit, env=env), limit)

    def _reward_model(self, i: int) -> RemoteRewardModel:
        term, kind = self.config.rewards.model, "reward-model"
        if term is None:
            raise PlacementError("a reward model is placed where the reward has such a term")
        settings, name = actor_settings.reward_model(term), self._slots.name(kind)
        env = cpu_env(cpu_threads(term.cpus, term.gpus))
        actor = self._slots.place(name, kind, i, RewardModelActor, settings, env=env)
        return RemoteRewardModel(name, actor, term.timeout_s)

    async def close(self) -> None:
        await self._slots.close()

    async def begin_stage(self, index: int) -> None:
        """The learner goes over to the stage. Generators and verifiers have nothing to change: they know every environment."""
        await self.learner.begin_stage(actor_settings.learner_stage(self.config, index))

    # --- weights --------------------------------------------------------------------------------------------------------

    async def _join_weight_group(self) -> None:
        """A new group of learner rank 0 and every generator; an older one is closed."""
        timeout = self.config.weights.timeout_s
        members = self.generators.members
        self._epoch += 1
        port = await self.learner.first("listen", timeout_s=timeout)
        engines = [(m.name, self.config.generators.tensor_parallel) for m in members]
        backend = "nccl" if self.cuda and not self.config.shares_gpus else "gloo"
        mine, *theirs = make_rendezvous(self._host, port, engines, backend, self._epoch)
        await asyncio.gather(
            self.learner.first("connect_weights", mine, timeout, timeout_s=timeout * 2),
            *(m.connect_weights(r, timeout) for m, r in zip(members, theirs, strict=True)),
        )

    async def sync(self, version: int) -> WeightManifest:
        """Send the learner's weights to every generator as `version`. A transfer that breaks because a generator died is
        made again, once, with a replacement; any other failure is the run's."""
        await self._replace_judges()
        # A call costs a millisecond; a transfer to nobody costs weights.timeout_s.
        await self._bury_silent(self.generators)
        await self._replace_dead(version)
        try:
            manifest = await self._transfer(version)
        except (MemberDied, WeightSyncError) as error:
            if not await self._bury_silent(self.generators):
                raise
            self._say(
                f"weight transfer of version {version} broke ({error}); generators are replaced and it is made again"
            )
            await self._replace_dead(version)
            manifest = await self._transfer(version)
        self.version = version
        return manifest

    async def _transfer(self, version: int) -> WeightManifest:
        timeout = self.config.weights.timeout_s
        manifest: WeightManifest = await self.learner.first("manifest", version, timeout_s=timeout)
        members = self.generators.members
        sent, *received = await asyncio.gather(
            self.learner.all("publish", manifest, timeout_s=timeout * 2),
            *(m.receive_weights(manifest, timeout) for m in members),
            return_exceptions=True,  # all have to be heard: the first error alone may not name the culprit
        )
        errors = [r for r in (sent, *received) if isinstance(r, BaseException)]
        if errors:
            raise next((e for e in errors if isinstance(e, WeightSyncError)), errors[0])
        checksums = {m.name: r for m, r in zip(members, received, strict=True) if isinstance(r, int)}
        verify_checksums(version, cast("list[int]", sent)[0], checksums)
        return manifest

    async def _bury_silent(self, pool: GeneratorPool[Any] | VerifierPool[Any]) -> bool:
        """Find members whose process is gone; True if there were any."""
        calls = [answer(m.name, m.actor.ready.remote(), ALIVE_S) for m in pool.members]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, MemberDied):
                pool.bury(result)
        return bool(pool.dead)

    async def _replace_dead(self, version: int) -> None:
        """A replacement starts STALE and joins with the transfer that follows: it never serves the base weights."""
        dead, self.generators.dead = self.generators.dead, []
        if not dead:
            return
        for name in dead:
            fresh = self._generator(self._slots.vacate(name), self._source.base or self._source.model)
            await self._admit(fresh)
            self.generators.add(fresh)
            self._say(f"{name} was replaced by {fresh.name}, which serves from version {version} on")
        await self._join_weight_group()

    async def _replace_judges(self) -> None:
        """Without this a run would go on with the death of its last verifier, reward model or judge as everybody's verdict."""
        await self._replace_in(self.verifiers, self._verifier)
        await self._replace_in(self.reward_models, self._reward_model)
        await self._replace_in(self.judges, self._judge)

    async def _replace_in(self, pool: VerifierPool[Any] | GeneratorPool[Any], make: Callable[[int], Member]) -> None:
        await self._bury_silent(pool)
        dead, pool.dead = pool.dead, []
        for name in dead:
            fresh = make(self._slots.vacate(name))
            await self._admit(fresh)
            pool.add(fresh)
            self._say(f"{name} was replaced by {fresh.name}")

    async def probe(self, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
        """Engine against trainer, log-probs at temperature 1 of the same tokens. NumericsError beyond weights.max_logprob_gap,
        which bounds the largest gap in fp32 and the mean in bf16 and fp16."""
        members = self.generators.members
        trainer, *engines = await asyncio.gather(
            self.learner.all("sequence_logprobs", sequences), *(m.sequence_logprobs(sequences) for m in members)
        )
        worst, total, count = (0.0, ""), 0.0, 0
        for member, scores in zip(members, engines, strict=True):
            gaps = [abs(a - b) for x, y in zip(trainer[0], scores, strict=True) for a, b in zip(x, y, strict=True)]
            worst = max(worst, (max(gaps, default=0.0), member.name))
            total, count = total + sum(gaps), count + len(gaps)
        exact = self.config.exact
        mean = total / max(1, count)
        what, found = ("one token", worst[0]) if exact else ("the mean token", mean)
        limit = self.config.weights.max_logprob_gap or (1e-3 if exact else 0.05)
        if not found <= limit:  # so written that nan is beyond it too
            raise NumericsError(
                f"at version {self.version} log-probs of {worst[1]} differ from the trainer's by {found:.3g} nats in {what}, more "
                f"than weights.max_logprob_gap = {limit:g}: engine and trainer do not run the same policy"
            )
        return {"sync/logprob_gap_max": worst[0], "sync/logprob_gap_mean": mean}
