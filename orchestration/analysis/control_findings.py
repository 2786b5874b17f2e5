"""Finds what control did to entropy, and whether it could: the third chapter of the diagnosis. Pure."""

import math

from orchestration.analysis.control import (
    control_effect,
    is_saturated,
    is_without_effect,
    late_error,
    released_at,
    saturated_environments,
    steered,
    target_errors,
)
from orchestration.analysis.findings import (
    Check,
    Finding,
    capital,
    late_mean,
    method_name,
    moved,
    off_by,
    percent_small,
    signed,
    start_and_end,
    totals,
)
from orchestration.analysis.run_data import RunData
from orchestration.stats import finite, mean
from orchestration.text import label, percent
from orchestration.thresholds import MOSTLY_SATURATED, NO_EFFECT, STEP_SIZE

CLIPPERS = ("adapo", "clip_higher", "lower_clip")  # methods that act through the clip range alone


def control_added(run: RunData) -> Finding | None:
    total, free = totals(run, "entropy/tabular_dh", "entropy/tabular_dh_free")
    if not math.isfinite(total) or run.setting("entropy.method.kind") == "none":
        return None
    if control_effect(run) < NO_EFFECT:
        text = f"To first order {method_name(run)} added next to nothing: {signed(total - free)} nats per token in sum, beside "
        return Finding("control", "added", text + f"{signed(free)} from the advantages alone.")
    text = f"The advantages alone were predicted to change entropy by {signed(free)} nats per token in sum; "
    text += f"{method_name(run)} added {signed(total - free)}"
    offset = f", offsetting {percent((free - total) / free)} of it" if free * (total - free) < 0.0 else ""
    return Finding("control", "added", f"{text}{offset} (to first order).")


def forgone(run: RunData) -> Finding | None:
    sums = {side: totals(run, f"entropy/forgone_dh_{key}")[0] for side, key in (("above", "high"), ("below", "low"))}
    kept = {side: value for side, value in sums.items() if math.isfinite(value) and value}
    if not kept:
        return None
    amounts = " and ".join(f"{signed(value)} from {side}" for side, value in kept.items())
    text = f"Clipping withheld a predicted {amounts}, in nats per token and in sum"
    (total,) = totals(run, "entropy/tabular_dh")
    beside = f", beside {signed(total)} predicted for the updates" if math.isfinite(total) else ""
    net = "raised" if sum(kept.values()) > 0.0 else "lowered"
    text += f"{beside}: left alone, these tokens would have {net} entropy, to first order."
    return Finding("control", "forgone", text)


def affected(run: RunData) -> Finding | None:
    kind = run.setting("entropy.method.kind")
    share = mean(run.column("entropy/affected"))
    if not math.isfinite(share) or kind == "none":
        return None
    acted = "clipped" if kind in CLIPPERS else "touched by its coefficient"
    if is_without_effect(run):
        text = f"{capital(method_name(run))} acted on too few tokens: {percent_small(share)} of them were {acted}, and entropy was "
        text += f"{off_by(*late_error(run))} its target in the last third."
        return Finding("control", "too_few_tokens", text, "warning")
    text = f"{capital(method_name(run))} acted on {percent_small(share)} of tokens ({acted})."
    return Finding("control", "affected", text)


def saturation(run: RunData) -> Finding | None:
    flags = run.column("entropy/saturated")
    at = [i for i, flag in enumerate(flags) if flag > 0.0]
    if not at or not steered(run):
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
    if is_saturated(run):
        text = f"{capital(method_name(run))} is saturated: {stood}, and the error persisted "
        text += f"({off_by(*late_error(run))} in the last third)."
        return Finding("control", "saturated", text, "warning")
    return Finding("control", "sometimes_saturated", capital(stood) + ".")


def environment_coefficients(run: RunData) -> Finding | None:
    """Names the environments with targets of their own whose coefficient is saturated."""
    envs = [f"{env} ({percent(off)} rms off)" for env, off in saturated_environments(run).items()]
    if not envs:
        return None
    text = (
        f"Control is saturated in {', '.join(envs)}: the coefficient stood at its bound there and the error persisted."
    )
    return Finding("control", "saturated_environments", text, "warning")


def step_size(run: RunData) -> Finding | None:
    """Warns of a method that scales advantages by their sign, which changes the learning rate by sign."""
    scales = {sign: mean(run.column(f"advantage/scale_{sign}")) for sign in ("positive", "negative")}
    changed = [f"{math.exp(v):.2g} times on {sign} advantages" for sign, v in scales.items() if abs(v) > STEP_SIZE]
    if not changed:
        return None
    text = f"{capital(method_name(run))} also changed the size of the steps: {', '.join(changed)}, as mean |A'| over mean |A|. "
    return Finding("control", "step_size", text + "Part of its effect may be that of another learning rate.", "warning")


def release(run: RunData) -> Finding | None:
    when = released_at(run)
    if not math.isfinite(when):
        return None
    return Finding("control", "released", f"The controller released the coefficient at iteration {when:g}.")


def diversity(run: RunData) -> Finding | None:
    """Says what became of the number of solutions, and warns of a coefficient that stood at its bound."""
    if not run.has("diversity/coefficient"):
        return None
    if not run.has("diversity/solutions"):
        text = "Solution diversity changed nothing: no two correct responses to a prompt had a solution to compare."
        return Finding("control", "no_solutions", text)
    text = f"The effective number of solutions {moved(*start_and_end(run, 'diversity/solutions'), '.1f')}"
    target, last = start_and_end(run, "diversity/target")[1], late_mean(run, "diversity/coefficient")
    text += f" under a coefficient of diversity of {label(float(f'{last:.2g}'))} in the last third"
    if math.isfinite(target) and run.setting("diversity.controller.kind") != "fixed":
        text += f", with a target of {target:.1f}"
    share = mean(run.column("diversity/saturated"))
    if share > MOSTLY_SATURATED:
        text += f": the coefficient stood at its bound in {percent(share)} of iterations, with the number off target"
        return Finding("control", "diversity_saturated", f"{text}.", "warning")
    return Finding("control", "diversity", f"{text}.")


CHECKS: tuple[Check, ...] = (
    control_added,
    forgone,
    affected,
    saturation,
    environment_coefficients,
    step_size,
    release,
    diversity,
)
