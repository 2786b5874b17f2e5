"""What control did to entropy, and whether it could: the third chapter of the diagnosis. Pure."""

import math

from orchestration.analysis.findings import (
    OFF_TARGET,
    Check,
    Finding,
    capital,
    late_error,
    late_mean,
    method_name,
    off_by,
    percent_small,
    setting,
    signed,
    steered,
    totals,
)
from orchestration.analysis.run_data import RunData, released_at, target_errors
from orchestration.stats import finite, mean, rms
from orchestration.text import label, percent

NO_AUTHORITY = 0.01  # share of tokens: ADAPO with 0.1 to 0.3 % of them clipped could not be told from no control
NO_EFFECT = 0.05  # control's part of the predicted change below which it is next to nothing
SPENT = 0.5  # share of the last third of the iterations at the bound: more than passing by
STEP_SIZE = 0.1  # |log scale|: 10 % more or less step is a learning rate nobody chose
CLIPPERS = ("adapo", "clip_higher")  # methods that act through the upper clip range alone


def control_added(run: RunData) -> Finding | None:
    total, free = totals(run, "entropy/predicted_dh", "entropy/predicted_dh_free")
    if not math.isfinite(total) or setting(run, "entropy.method.kind") == "none":
        return None
    if _effect(run) < NO_EFFECT:
        text = f"To first order {method_name(run)} added next to nothing: {signed(total - free)} nats per token in sum, beside "
        return Finding("control", "added", text + f"{signed(free)} from the advantages alone.")
    text = f"The advantages alone were predicted to change entropy by {signed(free)} nats per token in sum; "
    text += f"{method_name(run)} added {signed(total - free)}"
    offset = f", offsetting {percent((free - total) / free)} of it" if free * (total - free) < 0.0 else ""
    return Finding("control", "added", f"{text}{offset} (to first order).")


def _effect(run: RunData) -> float:
    """Predicted change that control adds, as a share of what the advantages alone do; NaN without these numbers."""
    pairs = zip(run.column("entropy/predicted_dh"), run.column("entropy/predicted_dh_free"), strict=True)
    kept = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    alone = math.fsum(abs(b) for _, b in kept)
    return abs(math.fsum(a - b for a, b in kept)) / alone if alone > 0.0 else math.nan


def forgone(run: RunData) -> Finding | None:
    sums = {side: totals(run, f"entropy/forgone_dh_{key}")[0] for side, key in (("above", "high"), ("below", "low"))}
    kept = {side: value for side, value in sums.items() if math.isfinite(value) and value}
    if not kept:
        return None
    told = " and ".join(f"{signed(value)} from {side}" for side, value in kept.items())
    text = f"Clipping withheld a predicted {told}, in nats per token and in sum"
    (total,) = totals(run, "entropy/predicted_dh")
    beside = f", beside {signed(total)} predicted for the updates" if math.isfinite(total) else ""
    net = "raised" if sum(kept.values()) > 0.0 else "lowered"
    text += f"{beside}: left alone, these tokens would have {net} entropy, to first order."
    return Finding("control", "forgone", text)


def authority(run: RunData) -> Finding | None:
    kind = setting(run, "entropy.method.kind")
    touched = mean(run.column("entropy/affected"))
    if not math.isfinite(touched) or kind == "none":
        return None
    acted = "clipped" if kind in CLIPPERS else "touched by its coefficient"
    bias, off = late_error(run)
    # A method that picks few tokens on purpose may still move entropy: then the predicted effect speaks for it.
    idle = touched < NO_AUTHORITY and not _effect(run) >= NO_EFFECT
    if steered(run) and idle and off > OFF_TARGET:
        text = f"{capital(method_name(run))} had no authority: {percent_small(touched)} of tokens {acted}, and entropy was "
        text += f"{off_by(bias, off)} its target in the last third."
        return Finding("control", "no_authority", text, "warning")
    text = f"{capital(method_name(run))} acted on {percent_small(touched)} of tokens ({acted})."
    return Finding("control", "authority", text)


def saturation(run: RunData) -> Finding | None:
    flags = run.column("entropy/saturated")
    at = [i for i, flag in enumerate(flags) if flag > 0.0]
    if not at:
        return None
    errors = target_errors(run)
    # Entropy too low pushes the coefficient up.
    sides = {"upper": sum(errors[i] < 0.0 for i in at), "lower": sum(errors[i] > 0.0 for i in at)}
    side = max(sides, key=sides.__getitem__)
    bound = (run.column("entropy/coefficient_high") if side == "upper" else run.column("entropy/coefficient"))[at[-1]]
    where = f"its {side} bound" + (f" ({label(bound)})" if math.isfinite(bound) else "")
    stood = (
        f"the coefficient stood at {where}, with entropy off target, in {len(at)} of {len(finite(flags))} iterations"
    )
    bias, off = late_error(run)
    if late_mean(run, "entropy/saturated") > SPENT and off > OFF_TARGET:
        text = f"{capital(method_name(run))} is spent: {stood}, and the error persisted "
        text += f"({off_by(bias, off)} in the last third)."
        return Finding("control", "spent", text, "warning")
    return Finding("control", "saturated", capital(stood) + ".")


def environment_coefficients(run: RunData) -> Finding | None:
    """Environments with targets of their own whose coefficient is spent."""
    told = []
    for env in run.envs():
        errors = finite(run.column(f"error/{env}"))
        off = rms(errors[len(errors) * 2 // 3 :])
        if off > OFF_TARGET and late_mean(run, f"saturated/{env}") > SPENT:
            told.append(f"{env} ({percent(off)} rms off)")
    if not told:
        return None
    text = f"Control is spent in {', '.join(told)}: the coefficient stood at its bound there and the error persisted."
    return Finding("control", "spent_environments", text, "warning")


def step_size(run: RunData) -> Finding | None:
    """A method that scales advantages by sign changes the learning rate by sign."""
    scales = {sign: mean(run.column(f"advantage/scale_{sign}")) for sign in ("positive", "negative")}
    told = [f"{math.exp(v):.2g} times on {sign} advantages" for sign, v in scales.items() if abs(v) > STEP_SIZE]
    if not told:
        return None
    text = f"{capital(method_name(run))} also changed the size of the steps: {', '.join(told)}, as mean |A'| over mean |A|. "
    return Finding("control", "step_size", text + "Part of its effect may be that of another learning rate.", "warning")


def release(run: RunData) -> Finding | None:
    when = released_at(run)
    if not math.isfinite(when):
        return None
    return Finding("control", "released", f"The controller let go of the coefficient at iteration {when:g}.")


CHECKS: tuple[Check, ...] = (
    control_added,
    forgone,
    authority,
    saturation,
    environment_coefficients,
    step_size,
    release,
)
