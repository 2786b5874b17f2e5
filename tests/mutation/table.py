"""Joins the tables of tests/mutation/runner.py: each formula of the learner and of rewards, broken once."""

from __future__ import annotations

from mutation.control import CONTROL_MUTATIONS
from mutation.entries import Mutation, Span
from mutation.entropy import ENTROPY_MUTATIONS
from mutation.generated import GENERATED
from mutation.loss import LOSS_MUTATIONS
from mutation.microbatches import MICROBATCH_MUTATIONS
from mutation.reward import REWARD_MUTATIONS
from mutation.staleness import STALENESS_MUTATIONS
from mutation.start import START_MUTATIONS

CURATED: tuple[Mutation, ...] = (
    *LOSS_MUTATIONS,
    *ENTROPY_MUTATIONS,
    *CONTROL_MUTATIONS,
    *REWARD_MUTATIONS,
    *START_MUTATIONS,
    *MICROBATCH_MUTATIONS,
    *STALENESS_MUTATIONS,
)
MUTATIONS: tuple[Mutation | Span, ...] = (*CURATED, *GENERATED)
