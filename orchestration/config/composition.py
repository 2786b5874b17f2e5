"""Composes the sections of a run, whatever they say: RunConfig adds that they fit together."""

from __future__ import annotations

from typing import Any, cast

from pydantic import Field, field_validator

from actors.settings import GeneratorSettings, JudgeGeneratorSettings, SamplingSettings, VerifierSettings
from learner.diversity.settings import FEWEST, DiversitySettings
from learner.entropy.settings import EntropySettings
from learner.settings import BODY, LearnerSettings, ModelSettings, ObjectiveSettings, PrecisionSettings, Settings
from learner.types import SignalOf
from orchestration.config.reward_sections import RewardsSection
from orchestration.config.sections import (
    BatchSection,
    CheckpointSection,
    ClusterSection,
    EnvironmentSection,
    EvaluationSection,
    RunSection,
    StageSection,
    WeightsSection,
)

UNCONTROLLED: dict[str, Any] = {"method": {"kind": "none"}}


class RunSections(Settings):
    """Holds a run's sections, each of them valid by itself."""

    run: RunSection
    model: ModelSettings
    precision: PrecisionSettings = PrecisionSettings()
    environments: list[EnvironmentSection] = Field(default_factory=list)  # or, one after the other:
    stages: list[StageSection] = Field(default_factory=list)
    batch: BatchSection
    sampling: SamplingSettings
    generators: GeneratorSettings
    verifiers: VerifierSettings = VerifierSettings()
    rewards: RewardsSection = RewardsSection()
    learner: LearnerSettings
    objective: ObjectiveSettings = ObjectiveSettings()
    entropy: EntropySettings = Field(default_factory=lambda: EntropySettings.model_validate(UNCONTROLLED))
    # None: correct responses are worth the same however common. Left out with `entropy` it is on, see `with_diversity`.
    diversity: DiversitySettings | None = None
    weights: WeightsSection = WeightsSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()

    @field_validator("precision", mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"mode": value}
        if not isinstance(value, dict | PrecisionSettings):
            raise ValueError(f"{value!r} is neither a mode, one of {', '.join(BODY)}, nor a section {{mode: ...}}")
        return value

    @property
    def dynamic_by(self) -> SignalOf:
        """Returns what the responses of a group have to differ in for dynamic sampling to keep it."""
        if self.batch.dynamic.by is not None:
            return self.batch.dynamic.by
        shaped = any(term.weight for term in self.rewards.terms.values())
        return "verdict" if shaped and self.rewards.verdict else "reward"

    @property
    def judge_generator(self) -> JudgeGeneratorSettings | None:
        """Returns the generators that judge, where the reward has such."""
        return None if self.rewards.judge is None else self.rewards.judge.generator


def with_diversity(data: Any) -> Any:
    """Returns a configuration's data with `diversity: {}` where it says nothing of control and groups are large enough for it.

    Chosen by measurement (RESULTS.md, "The default"): it changes nothing, bit for bit, where a task has one solution, and keeps
    pass@k where it has many."""
    if not isinstance(data, dict):
        return data
    sections = cast("dict[str, Any]", data)
    batch = sections.get("batch")
    if "entropy" in sections or "diversity" in sections or not isinstance(batch, dict):
        return sections
    responses = cast("dict[str, Any]", batch).get("responses")
    return {**sections, "diversity": {}} if isinstance(responses, int) and responses >= FEWEST else sections


def with_correction(data: Any) -> Any:
    """Returns a configuration's data with `objective.importance` filled in where batch.staleness needs one and none is given."""
    if not isinstance(data, dict):
        return data
    sections = cast("dict[str, Any]", data)
    batch, objective = sections.get("batch"), sections.get("objective", {})
    if not isinstance(batch, dict) or not isinstance(objective, dict) or "importance" in objective:
        return sections
    if cast("dict[str, Any]", batch).get("staleness") in (None, 0):
        return sections
    return {**sections, "objective": {**cast("dict[str, Any]", objective), "importance": {"kind": "truncated"}}}
