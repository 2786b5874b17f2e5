"""Defines what crosses function boundaries in this package. The one shape legend:

    B rows of a micro-batch        T tokens of a row          N action tokens of a micro-batch, flattened
    V vocabulary                   D hidden width             G responses of a group

An action token is a token the policy sampled. Everything per action token is a flat [N] array, so that the maths is the same
for padded and for packed rows. Batches are numpy (they travel through Ray without a copy), TokenStats and Shaping are torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]  # see learner/objective.py
SignalOf = Literal["reward", "verdict", "correct"]  # see learner/batching.py:informative


class UnsupportedModel(ValueError):
    """Reports a model that cannot be trained here, or not with these settings."""


class UnsupportedPrecision(ValueError):
    """Reports a device that cannot train in the precision asked for."""


class NonFiniteError(RuntimeError):
    """Reports a loss or gradient that is not a number. The update that made it was not published."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Holds one forward pass of one rank.

    `weight` is the scaling contract of the loss: over ALL micro-batches of ALL ranks of one update it sums to 1 (aggregation
    "constant" aside), so the loss of an update is sum(weight * token loss) however the batch was divided. A trajectory lies
    whole in one micro-batch, its action tokens in order. In a packed row it may be a branch: it leaves out the first tokens of its
    prompt, and goes on from the position that it leaves out, behind the last trajectory before it that leaves out none.
    """

    tokens: NDArray[np.int64]  # [B, T] right-padded with 0, or several trajectories one after the other
    positions: NDArray[
        np.int64
    ]  # [B, T] position in its own trajectory; it restarts where a packed trajectory or a branch starts
    predict: NDArray[np.int64]  # [N] flat index b * T + t of the position whose logits predict the action token
    targets: NDArray[np.int64]  # [N] the action token
    advantages: NDArray[np.float32]  # [N] the trajectory's advantage, or the turn's
    engine_logprobs: NDArray[np.float32]  # [N] the generator's log-prob at the sampling temperature
    weight: NDArray[np.float32]  # [N] see above
    trajectory: NDArray[np.int32]  # [N] index into the iteration's trajectories
    action_index: NDArray[np.int32]  # [N] which of its trajectory's action tokens, from 0
    last: NDArray[np.bool_]  # [N] the last of them
    correct: NDArray[np.bool_]  # [N] the trajectory was scored correct
    env: NDArray[np.int16]  # [N] index into RankBatch.envs
    version: NDArray[np.int32]  # [N] policy version of the oldest token of its turn

    @property
    def action_tokens(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class RankBatch:
    """Holds one rank's share of an iteration: updates[k] is the list of micro-batches of the k-th optimiser step.

    Every rank has the same number of micro-batches in every update, and as many measured ones (ZeRO's collectives must pair
    up); the short ones are filled with empty micro-batches of zero weight.
    """

    updates: tuple[tuple[MicroBatch, ...], ...]  # none where dynamic sampling left nothing to train on
    envs: tuple[str, ...]  # names behind MicroBatch.env, the same on every rank
    temperature: float  # sampling temperature of the responses
    # Responses of the iteration that are not trained on, of zero weight: entropy is measured on them as on the others.
    measured: tuple[MicroBatch, ...] = ()
    # Some of the responses that are trained on, once more: on these the steps' effect on entropy is predicted and measured.
    ledger: tuple[MicroBatch, ...] = ()
    # By how many optimiser steps the learning rate's schedule goes on where fewer are taken: those of a full batch.
    steps: int = 0
    # The policy version that is trained, and by how many that of a token may be behind it; 0: it is the same one.
    version: int = 0
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Describes the current policy at N action tokens, all detached float32 [N].

    The tokens are any subset of a batch, or, for a method of scope "batch", the global batch of the update.
    """

    logp: Tensor  # log pi(a|s) at the sampling temperature
    entropy: Tensor  # H(s), exact, nats
    kappa: Tensor  # sum_b pi_b^2 L_b, for the unbiased dH (learner/ledger/predicted.py)
    # sum_b pi_b^2 L_b^2 = |dH/dz|^2 for logits z: what a step along the entropy's own gradient gains.
    entropy_grad_sq: Tensor
    old_logp: Tensor  # log-prob under the policy at the start of the iteration
    advantages: Tensor  # A before any shaping
    # A draw from [0, 1) that belongs to the token: from the run's seed, the update and the token's position.
    uniform: Tensor
    env: Tensor  # int64, index into RankBatch.envs
    # What the uncontrolled loss multiplies a token's A by on its way to log pi (objective.gradient_weight): its weight in the
    # loss, the correction for engine log-probs and the surrogate's ratio. 0 where the clip has taken the gradient away.
    gradient_weight: Tensor

    @property
    def centred(self) -> Tensor:
        """Returns L = log pi + H, [N]; its mean under pi is 0 at every position."""
        return self.logp + self.entropy

    def take(self, index: slice | Tensor) -> TokenStats:
        """Returns the statistics of a part of the tokens."""
        return TokenStats(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Shaping:
    """Lists what an entropy method changes in the loss; None leaves the objective's own value. All [N]."""

    advantages: Tensor | None = None  # replaces A
    clip_low: Tensor | float | None = None  # replaces the lower clip range; inf: no bound
    clip_high: Tensor | float | None = None  # replaces the upper clip range; inf: no bound
    weight: Tensor | None = None  # multiplies the token's loss weight
    bonus: Tensor | float | None = None  # coefficient of the differentiable exact entropy, added to the objective
    kl: Tensor | None = (
        None  # coefficient of the differentiable penalty towards the policy at the start of the iteration
    )
    kl_form: Literal["kl", "abs"] = "kl"  # what that penalty is: objective.old_policy_penalty
    touched: Tensor | None = None  # bool: tokens the coefficient acts on; None: all of them

    def take(self, index: slice) -> Shaping:
        """Returns the part of a batch-wide shaping that belongs to one micro-batch."""
        part = {
            f.name: v[index]
            for f in fields(self)
            if (v := getattr(self, f.name)) is not None and not isinstance(v, float | str)
        }
        return replace(self, **part)


@dataclass(frozen=True, slots=True)
class LossData:
    """Holds what the loss of a micro-batch takes besides the policy being trained: data, without gradient. All [N]."""

    old_logp: Tensor  # log-prob under the policy at the start of the iteration
    advantages: Tensor  # before any shaping
    weight: Tensor  # MicroBatch.weight
    trajectory: Tensor  # int64; equal for the action tokens of one trajectory, which stand together
    engine_logp: Tensor | None = None  # the generator's; needed by importance corrections alone
    reference_logp: Tensor | None = None  # the reference policy's; needed by the KL to it alone


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Holds sums over the tokens given, with the micro-batch's weights.

    The loss of an update is the sum of `loss` over its micro-batches.
    """

    loss: Tensor  # scalar, differentiable
    # Per-token diagnostics, detached [N]: ratio, clipped_high, clipped_low, withheld, kl, importance, limited.
    tokens: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Observed:
    """Holds what a controller sees of an iteration, over all ranks, before the updates that its coefficient will shape."""

    entropy: float  # nats per token, over the responses that the target is about
    # Predicted dH, in nats per token, of a unit step on the logits where the coefficient has no effect.
    free: float = math.nan
    # What one unit of the coefficient adds to that; nan where the method is not linear in its coefficient.
    slope: float = math.nan
    advantage: float = math.nan  # root mean square of the advantages
    # What the steps of the iteration before did to entropy, nats per token, on the same responses; nan where it was not measured.
    step: float = math.nan
    # Whether updates follow that the coefficient can act on: dynamic sampling may have dropped every group.
    trained: bool = True


StepMetrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """Holds log-probs at temperature 1 of tokens 1.. of the same sequences, computed in several ways.

    alone    as trained, one sequence in a micro-batch
    padded   as trained, all sequences in a micro-batch of rows padded on the right
    packed   as trained, one behind the other in a row; None where batches are not packed
    shared   of a few sequences that begin alike, (alone, in a packed row with their beginning once); None where prompts are not
             shared
    head     one sequence a forward, the head's product in float32 whatever the precision
    plain    log_softmax of `model(input_ids).logits`, the head's product in float32 as well

    head and plain share hidden states and the head's weights: they differ by what follows the product, and by rounding in
    float32. All others differ by the rounding of the run's precision.
    """

    alone: list[list[float]]
    padded: list[list[float]]
    packed: list[list[float]] | None
    head: list[list[float]]
    plain: list[list[float]]
    shared: tuple[list[list[float]], list[list[float]]] | None = None
