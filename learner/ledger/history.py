"""Joins the iterations of a run: realised changes of entropy beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from learner.ledger.states import chosen_power, state_metrics, suffix
from learner.ledger.tally import Tally
from learner.types import Observed, StepMetrics

RATIO_PERCENTS = (0.1, 1.0, 50.0, 99.0, 99.9)
GAP_PERCENTS = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Part:
    """Holds sums over the tokens of some environments."""

    tokens: float  # or, as the entropies, sums of the states' weights: learner/ledger/states.py
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
    step: float = math.nan  # what the iteration before did to entropy: see Observed.step
    correction: float = 0.0  # power of the weights of states that older policies reached: learner/ledger/states.py

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
            step=self.step if set(envs) == set(self.parts) else math.nan,  # of all responses, not of some environments
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


def ledger_row(tally: Tally, updates: int, envs: tuple[str, ...]) -> LedgerRow:
    """Returns what one measurement says by itself, without the iterations before it.

    tally: of `tally_policy`, reduced over ranks; updates: updates of one pass over the batch.
    """
    power = chosen_power(tally)
    parts = {e: _part(tally, e, power) for e in envs}
    bare = LedgerRow(parts, updates, {})
    correct = bare.observed(envs, "successful")
    failed = (
        sum(p.tokens - p.ok_tokens for p in parts.values()),
        sum(p.entropy - p.ok_entropy for p in parts.values()),
    )
    metrics = {"entropy/exact": bare.observed(envs, "all").entropy, **policy_metrics(tally)}
    as_they_are = LedgerRow({e: _part(tally, e, 0.0) for e in envs}, updates, {})
    metrics |= state_metrics(tally, power, as_they_are.observed(envs, "all").entropy)
    if math.isfinite(correct.entropy):
        metrics["entropy/successful"] = correct.entropy
    if failed[0]:
        metrics["entropy/failed"] = failed[1] / failed[0]
    metrics |= {f"entropy/{name}": p.entropy / p.tokens for name, p in parts.items() if p.tokens}
    return LedgerRow(parts, updates, metrics, correction=power)


def _part(tally: Tally, env: str, power: float) -> Part:
    """Returns an environment's sums, those over states weighted at `power`."""
    weighted = ("tokens", "entropy", "ok_tokens", "ok_entropy")
    names = (n + suffix(power) if n in weighted else n for n in Part.__dataclass_fields__)
    return Part(*(tally.sums[f"{n}/{env}"] for n in names))


class Regression:
    """Fits y = slope * x + c over a run, from sums, and goes on after a resume; its part of the ledger's state has a prefix."""

    SUMS = ("n", "x", "y", "xx", "yy", "xy")

    def __init__(self, state: dict[str, float], prefix: str) -> None:
        self._state, self._prefix = state, prefix

    def add(self, x: float, y: float) -> None:
        """Adds a pair; one that was not measured is left out."""
        if math.isfinite(x) and math.isfinite(y):
            for name, value in zip(self.SUMS, (1.0, x, y, x * x, y * y, x * y), strict=True):
                self._state[self._prefix + name] += value

    def line(self) -> tuple[float, float] | None:
        """Returns (slope, correlation); None while they are undefined."""
        n, x, y, xx, yy, xy = (self._state[self._prefix + name] for name in self.SUMS)
        if n < 3:
            return None
        var_x, var_y, cov = xx - x * x / n, yy - y * y / n, xy - x * y / n
        return (cov / var_x, cov / math.sqrt(var_x * var_y)) if var_x > 0 and var_y > 0 else None


class Ledger:
    """Joins iterations: predicted and realised changes of entropy, their running regressions, cumulative entropy.

    Two regressions on the predicted change: of what the step did to the same responses, which is complete at once, and of the
    difference between the fresh responses on both sides of it, which is complete at the next iteration. State is in every
    checkpoint.
    """

    FIELDS = (
        "entropy",
        "predicted",
        "step",
        "cumulative",
        *Regression.SUMS,
        *(f"step_{name}" for name in Regression.SUMS),
    )

    def __init__(self) -> None:
        unknown = dict.fromkeys(("entropy", "predicted", "step"), math.nan)
        self.state: dict[str, float] = dict.fromkeys(self.FIELDS, 0.0) | unknown

    def interrupt(self) -> None:
        """Forgets the entropy so far: other environments follow, and the difference to theirs is not what an update did."""
        self.state["entropy"] = self.state["predicted"] = self.state["step"] = math.nan

    def row(self, tally: Tally, updates: int, envs: tuple[str, ...]) -> LedgerRow:
        """Returns the iteration as the controllers see it.

        tally: of `tally_policy`, reduced over ranks; updates: updates of one pass over the batch.
        """
        s = self.state
        row = replace(ledger_row(tally, updates, envs), step=s["step"])
        entropy = row.metrics["entropy/exact"]
        if not math.isnan(s["entropy"]):
            change = entropy - s["entropy"]
            row.metrics["entropy/realised_dh"] = change
            Regression(s, "").add(s["predicted"], change)
        s["entropy"] = entropy
        s["cumulative"] += entropy
        return row

    def attribute(self, tally: Tally, row: LedgerRow, eta: float) -> StepMetrics:
        """Computes which tokens push entropy where: the change of a tabular policy under plain gradient steps on its logits.

        tally: of `tally_shaping`, reduced; eta: the sum of the updates' learning rates.
        """
        scale = eta / row.updates
        parts = {k: scale * tally.sums[f"dh_{k}"] for k in ("positive", "negative", "zero")}
        out = {
            "entropy/tabular_dh": sum(parts.values()),
            "entropy/tabular_dh_free": scale * sum(p.free for p in row.parts.values()),
            "entropy/tabular_dh_positive": parts["positive"],
            "entropy/tabular_dh_negative": parts["negative"],
        }
        for name in ("positive", "negative"):
            before, after = tally.sums[f"size_{name}"], tally.sums[f"shaped_{name}"]
            if before > 0 and after > 0:
                out[f"advantage/scale_{name}"] = math.log(after / before)
        return out

    def step(self, effect: tuple[float, float] | None) -> StepMetrics:
        """Notes what the optimiser's steps should have done and did (StepEffect.end); None: it was not measured."""
        if effect is None:
            self.state["predicted"] = self.state["step"] = math.nan
            return {}
        predicted, realised = effect
        self.state["predicted"], self.state["step"] = predicted, realised
        Regression(self.state, "step_").add(predicted, realised)
        return {"entropy/predicted_dh": predicted, "entropy/step_dh": realised}

    def no_step(self) -> StepMetrics:
        """Notes that no update follows: the next change of entropy comes from sampling alone, and no regression counts it."""
        self.state["predicted"] = self.state["step"] = math.nan
        return {"tokens/trained": 0.0}

    def metrics(self) -> StepMetrics:
        """Returns the running regressions realised = slope * predicted + c and their correlations; absent while undefined."""
        out = {"entropy/cumulative": self.state["cumulative"]}
        for prefix, name in (("", "regression"), ("step_", "step")):
            if line := Regression(self.state, prefix).line():
                out |= {f"entropy/{name}_slope": line[0], f"entropy/{name}_r": line[1]}
        return out
