"""Defines what it means that entropy is steered, off its target or saturated, for reports and labs alike. Pure.

Relative errors are (H - target) / target, with H the entropy that the controller observes, in nats per token.
"""

import math

from orchestration.analysis.run_data import RunData
from orchestration.stats import finite, last_third, mean, rms
from orchestration.thresholds import MOSTLY_SATURATED, OFF_TARGET, affects_too_few, effect_of_control


def steered(run: RunData) -> bool:
    """Tells whether a controller could move the coefficient towards a target.

    It could not without a method, under a fixed controller and between equal bounds: the target that such a run reports is only
    drawn. Where a run reports no bounds, a controller in its configuration decides.
    """
    if run.setting("entropy.method.kind") == "none" or run.setting("entropy.controller.kind") == "fixed":
        return False
    if not run.has("entropy/target"):
        return False
    if run.has("entropy/coefficient_low") and run.has("entropy/coefficient_high"):
        bounds = zip(run.column("entropy/coefficient_low"), run.column("entropy/coefficient_high"), strict=True)
        return any(low < high for low, high in bounds)
    return run.setting("entropy.controller.kind") is not None


def target_errors(run: RunData) -> list[float]:
    """Returns (H - target) / target of every row; NaN for a row that does not count.

    Rows count in which a controller steered towards a target and had measured the entropy it observes: rows without a
    target, without that measurement (no response was correct, where it observes those), and from the release of the
    coefficient on do not. In runs that never report `entropy/controlled` the controller observes `entropy/exact`.
    """
    if not steered(run):
        return [math.nan] * len(run.rows)
    observed = "entropy/controlled" if "entropy/controlled" in run.metric_keys() else "entropy/exact"
    names = (observed, "entropy/target", "entropy/released")
    return [
        (entropy - target) / target if target and not released > 0.0 else math.nan
        for entropy, target, released in zip(*map(run.column, names), strict=True)
    ]


def late_error(run: RunData) -> tuple[float, float]:
    """Returns mean and rms of `target_errors` over the last third of the rows that count."""
    late = last_third(finite(target_errors(run)))
    return mean(late), rms(late)


def released_at(run: RunData) -> float:
    """Returns the first iteration with the coefficient released; NaN if it never was."""
    return next(
        (row.get("iteration", math.nan) for row in run.rows if row.get("entropy/released", 0.0) > 0.0), math.nan
    )


def saturated_share(run: RunData) -> float:
    """Returns the share of iterations with the coefficient at its bound and entropy off target; NaN where nothing steers."""
    flags = finite(run.column("entropy/saturated"))
    return mean(float(flag > 0.0) for flag in flags) if steered(run) else math.nan


def is_off_target(run: RunData) -> bool:
    """Tells whether entropy missed its target by more than a working controller does, in the last third."""
    return late_error(run)[1] > OFF_TARGET


def is_saturated(run: RunData) -> bool:
    """Tells whether the coefficient mostly stood at its bound in the last third, with entropy off target."""
    late = last_third(finite(run.column("entropy/saturated")))
    return is_off_target(run) and mean(late) > MOSTLY_SATURATED


def saturated_environments(run: RunData) -> dict[str, float]:
    """Returns the environments with a saturated target of their own, each with its rms error in the last third."""
    out = {}
    for env in run.envs():
        off = rms(last_third(finite(run.column(f"error/{env}"))))
        if off > OFF_TARGET and mean(last_third(finite(run.column(f"saturated/{env}")))) > MOSTLY_SATURATED:
            out[env] = off
    return out


def control_effect(run: RunData) -> float:
    """Returns the predicted change that control adds, as a share of what the advantages alone do; NaN where unknown."""
    with_control, alone = run.column("entropy/tabular_dh"), run.column("entropy/tabular_dh_free")
    return effect_of_control(zip(with_control, alone, strict=True))


def is_without_effect(run: RunData) -> bool:
    """Tells whether entropy is off target because the method acts on too few tokens."""
    affected = mean(run.column("entropy/affected"))
    too_few = affects_too_few(run.setting("entropy.method.kind"), affected, control_effect(run))
    return too_few and is_off_target(run)
