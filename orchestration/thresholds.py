"""Holds the one table of thresholds by which alarms, findings and labs judge a number, and the rule over several of them.

A threshold stands here with the measurement behind it, so that a running run, its report and a lab that compares it with
others cannot disagree on whether entropy is off target, a coefficient saturated or a method without effect.
"""

import math
from collections.abc import Iterable

# ---------------------------------------------------------------- windows

START_ROWS, END_ROWS = 3, 5  # a single batch is noisy: start and end of a run are means over these many iterations
PATIENCE = 5  # iterations in a row before an alarm or a warning: one noisy batch means nothing

# ---------------------------------------------------------------- entropy and its control

FLAT = 0.02  # relative change of entropy that counts as none: the noise of a batch is larger
OFF_TARGET = (
    0.10  # relative error: a controller that works stays within 6 to 7.5 % rms, the batch noise alone is about 5 %
)
MOSTLY_SATURATED = 0.5  # share of iterations with the coefficient at its bound: more than passing by
OFTEN_SATURATED = 0.05  # the share from which a summary mentions it
FEW_TOKENS = 0.01  # share of tokens: ADAPO with 0.1 to 0.3 % of them clipped could not be told from no control
FEW_BY_DESIGN = ("clip_cov", "kl_cov")  # methods that pick few tokens on purpose
NO_EFFECT = 0.05  # control's part of the predicted change below which it adds next to nothing
STEP_SIZE = 0.1  # |log scale|: 10 % more or less step is another learning rate
COLLAPSED = (
    0.5  # relative fall of entropy: GRPO loses half to nine tenths on every task measured, held policies a third
)
SEVERAL_SOLUTIONS = 1.5  # distinct correct solutions a prompt: one right answer gives 1, countdown two to nine
UNEVEN = 1.25  # ratio of two entropies that is called a difference

# ---------------------------------------------------------------- the first-order prediction

STRONG_R, MODERATE_R, NO_R = 0.7, 0.4, 0.1  # networks measured so far gave 0.16 to 0.45 a step, under momentum about 0
FEW_STEPS = 8  # pairs of predicted and realised change: fewer fix no correlation
STEADY = 0.6  # share of iterations of one sign: with fewer the sign is mixed
REST = 0.05  # part of the predicted change from tokens without advantage that is too small to report

# ---------------------------------------------------------------- reward and evaluation

EVAL_NOISE = 0.03  # pass@k moves by about this between two evaluations of the same policy on 100 prompts
RISEN = 3.0  # standard errors of a difference between two windows from which the reward has risen
STAYED = 1.0  # the same: a check that has not risen by more has not followed the reward
LONGER = 0.5  # relative change of the mean length of responses, up or down
NO_SIGNAL = 0.5  # share of groups without a gradient: the batch is half as large as it looks

# ---------------------------------------------------------------- trainer against engine

PHANTOM = 0.01  # share of tokens outside [0.9, 1.1]: fp16 has none, bf16 from 0.2 to 8 %
PHANTOM_RARE = 0.02  # the same among rare tokens, on which exploration lives: fp16 has none, bf16 3 to 5 %
PHANTOM_GAP = math.log(1.2)  # nats: beyond the usual clip range of 0.2 before the policy has moved at all
LOW_ESS = 0.5  # share: under it a batch weighs less than half of its tokens
LIMITED = 0.05  # share of tokens whose importance weight was cut: more biases the gradient visibly

# ---------------------------------------------------------------- where the time went

CLEARLY_LONGER = (
    0.1  # share of the time by which one side's waits exceed the other's before more of the other is advised
)
LONG_TRANSFER = 0.25  # share of the time that sending weights takes before it is what to shorten
LONG_WAIT = 0.25  # share of the time that both sides wait before taking turns is what costs


def effect_of_control(changes: Iterable[tuple[float, float]]) -> float:
    """Returns the predicted change of entropy that control adds, as a share of what the advantages alone do.

    `changes` holds (with control, advantages alone) for each iteration; NaN where no iteration has both.
    """
    kept = [(a, b) for a, b in changes if math.isfinite(a) and math.isfinite(b)]
    alone = math.fsum(abs(b) for _, b in kept)
    return abs(math.fsum(a - b for a, b in kept)) / alone if alone > 0.0 else math.nan


def affects_too_few(method: object, affected: float, effect: float) -> bool:
    """Tells whether a method acts on too few tokens to hold entropy; its predicted effect, where known, can show otherwise.

    `affected`: share of tokens; `effect`: see `effect_of_control`, NaN where it is not known.
    """
    return method not in FEW_BY_DESIGN and affected < FEW_TOKENS and not effect >= NO_EFFECT
