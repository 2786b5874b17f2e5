"""The entropy ledger: what entropy was, what the update should have done to it, what it did. Pure.

Every figure is over the GLOBAL batch of an iteration: ranks add up `Tally`s, then one division. Predicted change of entropy,
first order, unbiased from samples a ~ pi (tabular softmax, step eta on the logits; entropy notes of arXiv 2603.11682):

    dH = mean over tokens of -eta * A'_a * (pi_a L_a - kappa),    kappa = sum_b pi_b^2 L_b,  L = log pi + H

with A' the advantage after shaping and eta the sum of the learning rates of the iteration's updates. For a network it is a
correlate, not a law: `entropy/regression_*` says how good a one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner.types import Shaping, StepMetrics, TokenStats


@dataclass
class Tally:
    """Sums and maxima of one rank. Keys are the same on every rank, so that two collectives reduce all of it."""

    sums: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def add(self, key: str, value: Tensor | float) -> None:
        value = float(value.sum(dtype=torch.float64)) if isinstance(value, Tensor) else value
        self.sums[key] = self.sums.get(key, 0.0) + value

    def peak(self, key: str, value: Tensor) -> None:
        found = float(value.max()) if len(value) else -math.inf
        self.peaks[key] = found if math.isnan(found) else max(self.peaks.get(key, -math.inf), found)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(sums, peaks) as float64 vectors, keys in order: reduce them with SUM and MAX, then `replace`."""
        return tuple(torch.tensor([d[k] for k in sorted(d)], dtype=torch.float64) for d in (self.sums, self.peaks))  # type: ignore[return-value]

    def replace(self, sums: Tensor, peaks: Tensor) -> None:
        self.sums = dict(zip(sorted(self.sums), sums.tolist(), strict=True))
        self.peaks = dict(zip(sorted(self.peaks), peaks.tolist(), strict=True))

    def mean(self, key: str, over: str) -> float:
        return self.sums[key] / self.sums[over] if self.sums[over] else math.nan


def dh_per_step(stats: TokenStats, shaped: Tensor) -> Tensor:
    """-A' (pi L - kappa), the token's share of dH for a step of size 1 on the logits. [N], nats"""
    return -shaped * (stats.logp.exp() * stats.centred - stats.kappa)


def tally_policy(
    tally: Tally, stats: TokenStats, shaping: Shaping, engine_logp: Tensor, env: Tensor, envs: tuple[str, ...]
) -> None:
    """The policy at the start of the iteration, on the iteration's own (fresh) samples. All tensors [N]."""
    shaped = stats.advantages if shaping.advantages is None else shaping.advantages
    dh = dh_per_step(stats, shaped)
    gap = (stats.logp - engine_logp).abs()
    ratio = (stats.logp - engine_logp).exp()
    tally.add("tokens", float(len(stats.logp)))
    tally.add("entropy", stats.entropy)
    tally.add("surprisal", -stats.logp)
    tally.add("dh_positive", dh[stats.advantages > 0])
    tally.add("dh_negative", dh[stats.advantages < 0])
    tally.add("dh_zero", dh[stats.advantages == 0])  # REPO-D moves these as well
    tally.add("advantage", stats.advantages)
    tally.add("advantage_square", stats.advantages.double() ** 2)
    tally.add("gap", gap)
    tally.peak("gap", gap)
    tally.add("gap_outside", ((ratio < 0.9) | (ratio > 1.1)).double())
    for i, name in enumerate(envs):
        here = env == i
        tally.add(f"tokens/{name}", here.double())
        tally.add(f"entropy/{name}", stats.entropy[here])


def tally_update(tally: Tally, loss: Tensor, tokens: dict[str, Tensor], touched: Tensor | None) -> None:
    """One micro-batch of an update; the share touched by the knob is measured where it acts."""
    count = float(len(tokens["ratio"]))
    tally.add("loss", loss.detach())
    tally.add("trained", count)
    tally.add("touched", count if touched is None else touched.double())
    tally.add("ratio", tokens["ratio"])
    tally.add("clipped_high", tokens["clipped_high"].double())
    tally.add("clipped_low", tokens["clipped_low"].double())
    tally.add("kl", tokens["kl"])
    tally.peak("ratio", tokens["ratio"])


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One iteration. Entropies in nats per token."""

    entropy_exact: float
    entropy_sampled: float
    predicted_dh: float
    predicted_dh_positive: float  # the part of tokens with A > 0
    predicted_dh_negative: float
    realised_dh: float | None  # entropy now minus entropy one iteration ago, each on fresh samples; None on the first
    by_env: dict[str, float]

    def metrics(self) -> StepMetrics:
        row = {
            "entropy/exact": self.entropy_exact,
            "entropy/sampled": self.entropy_sampled,
            "entropy/predicted_dh": self.predicted_dh,
            "entropy/predicted_dh_positive": self.predicted_dh_positive,
            "entropy/predicted_dh_negative": self.predicted_dh_negative,
            **{f"entropy/{name}": value for name, value in self.by_env.items()},
        }
        return row if self.realised_dh is None else {**row, "entropy/realised_dh": self.realised_dh}


def policy_metrics(tally: Tally) -> StepMetrics:
    """Figures of the start-of-iteration pass that are not entropy."""
    mean = tally.mean("advantage", "tokens")
    variance = max(0.0, tally.mean("advantage_square", "tokens") - mean * mean)
    return {
        "advantage/std": math.sqrt(variance),
        "gap/engine_mean": tally.mean("gap", "tokens"),
        "gap/engine_max": tally.peaks["gap"],
        "gap/outside": tally.mean("gap_outside", "tokens"),
    }


def update_metrics(tally: Tally, updates: int) -> StepMetrics:
    """Figures of the iteration's updates; `updates` optimiser steps."""
    return {
        "loss": tally.sums["loss"] / updates,
        "clip/high": tally.mean("clipped_high", "trained"),
        "clip/low": tally.mean("clipped_low", "trained"),
        "ratio/mean": tally.mean("ratio", "trained"),
        "ratio/max": tally.peaks["ratio"],
        "kl/old": tally.mean("kl", "trained"),
        "entropy/authority": tally.mean("touched", "trained"),
        "tokens/trained": tally.sums["trained"],
    }


class Ledger:
    """Joins iterations: realised change, its running regression on the predicted one, cumulative entropy.

    The pair of iteration i is complete at iteration i + 1: predicted for the update between them, realised on both sides of it.
    State is in every checkpoint.
    """

    FIELDS = ("entropy", "predicted", "cumulative", "n", "x", "y", "xx", "yy", "xy")

    def __init__(self) -> None:
        self.state: dict[str, float] = dict.fromkeys(self.FIELDS, 0.0) | {"entropy": math.nan, "predicted": math.nan}

    def row(self, tally: Tally, eta: float, envs: tuple[str, ...]) -> LedgerRow:
        """tally: reduced over ranks. eta: sum of the learning rates of the iteration's updates."""
        s = self.state
        entropy = tally.mean("entropy", "tokens")
        parts = {k: eta * tally.mean(k, "tokens") for k in ("dh_positive", "dh_negative", "dh_zero")}
        realised = None if math.isnan(s["entropy"]) else entropy - s["entropy"]
        if realised is not None:
            x, y = s["predicted"], realised
            for key, value in (("n", 1.0), ("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y)):
                s[key] += value
        s["entropy"], s["predicted"] = entropy, sum(parts.values())
        s["cumulative"] += entropy
        return LedgerRow(
            entropy_exact=entropy,
            entropy_sampled=tally.mean("surprisal", "tokens"),
            predicted_dh=s["predicted"],
            predicted_dh_positive=parts["dh_positive"],
            predicted_dh_negative=parts["dh_negative"],
            realised_dh=realised,
            by_env={name: tally.mean(f"entropy/{name}", f"tokens/{name}") for name in envs},
        )

    def metrics(self) -> StepMetrics:
        """Running regression realised = slope * predicted + c, and the correlation; absent while undefined."""
        s = self.state
        out = {"entropy/cumulative": s["cumulative"]}
        n = s["n"]
        if n >= 3:
            var_x, var_y = (s["xx"] - s["x"] ** 2 / n), (s["yy"] - s["y"] ** 2 / n)
            cov = s["xy"] - s["x"] * s["y"] / n
            if var_x > 0 and var_y > 0:
                out |= {"entropy/regression_slope": cov / var_x, "entropy/regression_r": cov / math.sqrt(var_x * var_y)}
        return out
