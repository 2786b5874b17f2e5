"""Joins the iterations of a run: realised changes of entropy beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.ledger.tally import Tally
from learner.types import Observed, StepMetrics

RATIO_PERCENTS = (0.1, 1.0, 50.0, 99.0, 99.9)
GAP_PERCENTS = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Part:
    """Holds sums over the tokens of some environments."""

    tokens: float
    entropy: float
    ok_tokens: float  # of correct responses
    ok_entropy: float
    free: float  # weighted: see Observed.free
    slope: float
    weight: float  # sum of the loss weights
    advantage_square: float  # weighted

    def __add__(self, other: Part) -> Part:
        return Part(*(getattr(self, n) + getattr(other, n) for n in Part.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Describes one iteration before its updates. Entropies in nats per token."""

    parts: Mapping[str, Part]  # by environment
    updates: int  # updates in one pass over the batch; the loss weights of each sum to 1
    metrics: StepMetrics

    def observed(self, envs: Sequence[str], over: str) -> Observed:
        """Returns what a controller of these environments sees; over: "all" or "successful" responses."""
        if not envs:
            return Observed(math.nan)
        p = self.parts[envs[0]]
        for name in envs[1:]:
            p = p + self.parts[name]
        tokens, entropy = (p.ok_tokens, p.ok_entropy) if over == "successful" else (p.tokens, p.entropy)
        weight = p.weight or math.nan
        return Observed(
            entropy=entropy / tokens if tokens else math.nan,
            free=p.free / max(1, self.updates),
            slope=p.slope / max(1, self.updates),
            advantage=math.sqrt(p.advantage_square / weight),
            trained=p.weight > 0,
        )


def policy_metrics(tally: Tally) -> StepMetrics:
    """Computes the metrics of the start-of-iteration pass that need no history."""
    count, learnt = "count", "learnt"
    out = {
        "entropy/sampled": tally.mean("surprisal", count),
        "entropy/first": tally.mean("first_entropy", "first"),
        "entropy/last": tally.mean("last_entropy", "last"),
        "gap/engine_mean": tally.mean("gap", count),
        "gap/engine_max": tally.peaks["gap"],
        "gap/outside": tally.mean("gap_outside", count),
        **tally.quantiles("gap", GAP_PERCENTS),
    }
    if tally.sums[learnt]:
        mean = tally.mean("advantage", learnt)
        out["entropy/covariance"] = tally.mean("product", learnt) + mean * tally.mean("learnt_surprisal", learnt)
        out["advantage/std"] = math.sqrt(max(0.0, tally.mean("square", learnt) - mean * mean))
    if tally.sums["rare"]:
        out["gap/outside_rare"] = tally.mean("gap_outside_rare", "rare")
    if "reference" in tally.sums:
        out["kl/reference"] = tally.mean("reference", count)
    return out


def update_metrics(tally: Tally, updates: int, corrected: bool) -> StepMetrics:
    """Computes the metrics of the iteration's updates; `updates` optimiser steps. corrected: with importance weights."""
    trained = tally.sums["trained"]
    out = {
        "loss": tally.sums["loss"] / updates,
        "clip/high": tally.mean("clipped_high", "trained"),
        "clip/low": tally.mean("clipped_low", "trained"),
        "ratio/mean": tally.mean("ratio", "trained"),
        "ratio/max": tally.peaks["ratio"],
        "ratio/ess": tally.sums["ratio"] ** 2 / (trained * tally.sums["ratio_square"]) if trained else math.nan,
        **tally.quantiles("ratio", RATIO_PERCENTS),
        "kl/old": tally.mean("kl", "trained"),
        "entropy/forgone_dh_high": tally.sums["forgone_high"],
        "entropy/forgone_dh_low": tally.sums["forgone_low"],
        "entropy/affected": tally.mean("touched", "trained"),
        "tokens/trained": trained,
    }
    if corrected:
        out["importance/mean"] = tally.mean("importance", "trained")
        out["importance/limited"] = tally.mean("limited", "trained")
    return out


class Ledger:
    """Joins iterations: realised change, its running regression on the predicted one, cumulative entropy.

    The pair of iteration i is complete at iteration i + 1: predicted for the update between them, realised on both sides of it.
    State is in every checkpoint.
    """

    FIELDS = ("entropy", "predicted", "cumulative", "n", "x", "y", "xx", "yy", "xy")

    def __init__(self) -> None:
        self.state: dict[str, float] = dict.fromkeys(self.FIELDS, 0.0) | {"entropy": math.nan, "predicted": math.nan}

    def interrupt(self) -> None:
        """Forgets the entropy so far: other environments follow, and the difference to theirs is not what an update did."""
        self.state["entropy"] = self.state["predicted"] = math.nan

    def row(self, tally: Tally, updates: int, envs: tuple[str, ...]) -> LedgerRow:
        """Returns the iteration as the controllers see it.

        tally: of `tally_policy`, reduced over ranks; updates: updates of one pass over the batch.
        """
        parts = {e: Part(*(tally.sums[f"{n}/{e}"] for n in Part.__dataclass_fields__)) for e in envs}
        bare = LedgerRow(parts, updates, {})
        everything, correct = bare.observed(envs, "all"), bare.observed(envs, "successful")
        failed = (
            sum(p.tokens - p.ok_tokens for p in parts.values()),
            sum(p.entropy - p.ok_entropy for p in parts.values()),
        )
        s, entropy = self.state, everything.entropy
        metrics = {"entropy/exact": entropy, **policy_metrics(tally)}
        if math.isfinite(correct.entropy):
            metrics["entropy/successful"] = correct.entropy
        if failed[0]:
            metrics["entropy/failed"] = failed[1] / failed[0]
        metrics |= {f"entropy/{name}": p.entropy / p.tokens for name, p in parts.items() if p.tokens}
        if not math.isnan(s["entropy"]):
            x, y = s["predicted"], entropy - s["entropy"]
            metrics["entropy/realised_dh"] = y
            for key, value in (("n", 1.0), ("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y)):
                s[key] += value
        s["entropy"] = entropy
        s["cumulative"] += entropy
        return LedgerRow(parts, updates, metrics)

    def predict(self, tally: Tally, row: LedgerRow, eta: float) -> StepMetrics:
        """Computes what the iteration's updates should do to entropy.

        tally: of `tally_shaping`, reduced; eta: the sum of their learning rates.
        """
        scale = eta / row.updates
        parts = {k: scale * tally.sums[f"dh_{k}"] for k in ("positive", "negative", "zero")}
        self.state["predicted"] = sum(parts.values())
        out = {
            "entropy/predicted_dh": self.state["predicted"],
            "entropy/predicted_dh_free": scale * sum(p.free for p in row.parts.values()),
            "entropy/predicted_dh_positive": parts["positive"],
            "entropy/predicted_dh_negative": parts["negative"],
        }
        for name in ("positive", "negative"):
            before, after = tally.sums[f"size_{name}"], tally.sums[f"shaped_{name}"]
            if before > 0 and after > 0:
                out[f"advantage/scale_{name}"] = math.log(after / before)
        return out

    def predict_nothing(self) -> StepMetrics:
        """Notes that no update follows: the next change of entropy is left out of the regression, since only sampling caused it."""
        self.state["predicted"] = 0.0
        return {"entropy/predicted_dh": 0.0, "tokens/trained": 0.0}

    def metrics(self) -> StepMetrics:
        """Computes the running regression realised = slope * predicted + c and the correlation; absent while undefined."""
        s = self.state
        out = {"entropy/cumulative": s["cumulative"]}
        n = s["n"]
        if n >= 3:
            var_x, var_y = (s["xx"] - s["x"] ** 2 / n), (s["yy"] - s["y"] ** 2 / n)
            cov = s["xy"] - s["x"] * s["y"] / n
            if var_x > 0 and var_y > 0:
                out |= {"entropy/regression_slope": cov / var_x, "entropy/regression_r": cov / math.sqrt(var_x * var_y)}
        return out
