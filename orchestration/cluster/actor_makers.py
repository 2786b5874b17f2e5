"""Starts one actor of each kind in its slot, and waits until it can work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.handles import RemoteGenerator, RemoteRewardModel, RemoteVerifier
from actors.health.lifeline import CouldNotStart, MemberDied
from actors.health.state import HealthLimits
from actors.remote import GeneratorActor, RewardModelActor, VerifierActor, vllm_factory
from actors.settings import VLLMSettings, cpu_threads
from actors.verifier import BUILD_TIMEOUT_S
from envs.isolation.killable import START_TIMEOUT_S
from orchestration.cluster import actor_settings
from orchestration.cluster.actor_settings import Start, cpu_env
from orchestration.cluster.actor_slots import ActorSlots, Position
from orchestration.config.run_config import RunConfig
from orchestration.errors import ConfigError, PlacementError

MAX_CONCURRENCY = 1000  # calls of one generator under way: its streams, and the weight calls beside them
START_ATTEMPTS = 3
VERDICT_GRACE_S = 30.0  # beyond the limit of a verdict, which the verifier keeps itself

AnyMember = RemoteGenerator | RemoteVerifier | RemoteRewardModel


@dataclass(slots=True)
class ActorMakers:
    """Makes actors out of a configuration. start: what generators that come later are built from."""

    config: RunConfig
    slots: ActorSlots
    start: Start

    @property
    def one_by_one(self) -> bool:
        """Returns whether engines start one after the other: each measures how much of its GPU is free, and would take the growth
        of a neighbour for its own."""
        judge = self.config.judge_generator
        return self.config.shares_gpus or (judge is not None and 0 < judge.gpus < 1)

    def make(self, kind: str, number: int) -> AnyMember:
        """Starts a replacement, or one more, of a kind. A generator starts without current weights."""
        if kind == "generator":
            return self.generator(number, self.start.base or self.start.model)
        if kind == "judge":
            return self.judge(number)
        return self.verifier(number) if kind == "verifier" else self.reward_model(number)

    def generator(self, number: int, model: str) -> RemoteGenerator:
        """Starts a generator, which serves once its weights were confirmed as current."""
        return self._engine(
            "generator", number, actor_settings.policy_engine(self.config, model, self.start.version), 0
        )

    def judge(self, number: int) -> RemoteGenerator:
        """Starts a generator that judges."""
        judge = self.config.judge_generator
        if judge is None:
            raise PlacementError("generators that judge are placed where the reward asks for them")
        return self._engine("judge", number, actor_settings.judge_engine(self.config, judge), None)

    def _engine(self, kind: str, number: int, settings: VLLMSettings, required: int | None) -> RemoteGenerator:
        g, name = settings.generator, self.slots.next_name(kind)
        position = Position(name, kind, number, cpu_env(cpu_threads(g.cpus, g.gpus)), MAX_CONCURRENCY)
        actor = self.slots.place(position, GeneratorActor, vllm_factory(settings), name, required)
        return RemoteGenerator(name, actor, g.timeout_s)

    def verifier(self, number: int) -> RemoteVerifier:
        """Starts a verifier."""
        position = Position(self.slots.next_name("verifier"), "verifier", number, {"OMP_NUM_THREADS": "1"})
        specs, limit = actor_settings.environment_specs(self.config), self.config.verifiers.timeout_s
        return RemoteVerifier(position.name, self.slots.place(position, VerifierActor, specs, limit))

    def reward_model(self, number: int) -> RemoteRewardModel:
        """Starts a reward model."""
        term, kind = self.config.rewards.model, "reward-model"
        if term is None:
            raise PlacementError("a reward model is placed where the reward has such a term")
        position = Position(self.slots.next_name(kind), kind, number, cpu_env(cpu_threads(term.cpus, term.gpus)))
        actor = self.slots.place(position, RewardModelActor, actor_settings.reward_model(term))
        return RemoteRewardModel(position.name, actor)

    async def started(self, kind: str, number: int, make: Callable[[], AnyMember] | None = None) -> AnyMember:
        """Returns an actor that answers; one whose process is lost while it starts is started again, a few times. Raises MemberDied
        and ConfigError."""
        for left in reversed(range(START_ATTEMPTS)):
            member = self.make(kind, number) if make is None else make()
            try:
                await self.admit(member)
            except MemberDied as death:
                self.slots.vacate(member.name)
                if not left or isinstance(death, CouldNotStart):
                    raise
            else:
                return member
        raise AssertionError("the last attempt returns or raises")

    async def admit(self, member: AnyMember) -> None:
        """Returns when it answers. Raises MemberDied, and ConfigError where an environment cannot be built in a verifier's process:
        every verdict there would be an error."""
        limit = self.config.cluster.start_timeout_s
        await member.ready(limit)
        if isinstance(member, RemoteVerifier):
            fault = await member.prepare(limit)
            if fault is not None:
                raise ConfigError(
                    f"{member.name} cannot build the environments, {fault}; files of your own have to be where every node sees "
                    "them, or below the --working-dir of `ray job submit`"
                )

    def limits(self, kind: str) -> HealthLimits:
        """Returns how long an actor of this kind may be without a sign or without progress."""
        config, silent = self.config, self.config.cluster.silent_s
        if kind == "learner rank":
            return HealthLimits(silent, config.learner.timeout_s, "learner.timeout_s")
        if kind == "verifier":
            # Every response may take its limit twice, in a joint call and then alone, and what hung costs a new process, which
            # builds the environments anew. Each of these has a limit that ends it: this one is for a verifier that does not.
            limit = 2 * config.verifiers.timeout_s + START_TIMEOUT_S + BUILD_TIMEOUT_S + VERDICT_GRACE_S
            return HealthLimits(silent, limit, "twice verifiers.timeout_s, and the time to build the environments")
        if kind == "reward-model" and config.rewards.model is not None:
            return HealthLimits(silent, config.rewards.model.timeout_s, "rewards.model.timeout_s")
        if kind == "judge" and config.judge_generator is not None:
            return HealthLimits(silent, config.judge_generator.timeout_s, "rewards.judge.generator.timeout_s")
        return HealthLimits(silent, config.generators.timeout_s, "generators.timeout_s")
