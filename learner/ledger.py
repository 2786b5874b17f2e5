"""The entropy ledger: what entropy was, what the update should do to it, what it did. Pure.

Every figure is over the GLOBAL batch of an iteration: ranks add up `Tally`s, then one division. Predicted change of entropy,
first order, unbiased from samples a ~ pi (tabular softmax, step eta on the logits; entropy notes of arXiv 2603.11682):

    dH = sum over tokens of w * eta * [ -(i * A'_a + r_a) * (pi_a L_a - kappa) + bonus * entropy_grad_sq ]
    kappa = sum_b pi_b^2 L_b,    entropy_grad_sq = sum_b pi_b^2 L_b^2,    L = log pi + H

with A' the advantage after shaping, i the importance weight, r the pull of the KL to a reference (objective.reference_pull), w the
token's weight in the loss (1 / tokens for aggregation "token") and eta the sum of the learning rates of the iteration's updates.
For a network it is a correlate, not a law: `entropy/regression_*` says how good a one.

Entropy, and the gap to the engine, are over every fresh response. Advantages, covariance and predicted changes are of the
responses that are trained on: what dynamic sampling drops is measured and has no weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from learner.entropy.base import Observed
from learner.types import Shaping, StepMetrics, TokenStats

RARE = -2.0  # log-prob under which a token counts as rare
RATIO_PERCENTS = (0.1, 1.0, 50.0, 99.0, 99.9)
GAP_PERCENTS = (50.0, 99.0, 99.9)


class Tally:
    """Sums, maxima and values of one rank. Keys are the same on every rank, so that a few collectives reduce all of it.

    What is added stays on its device, a number each, until it is asked for: dozens of sums a micro-batch would otherwise each
    wait for a GPU to come to rest.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}  # float64
        self._peaks: dict[str, Tensor | float] = {}
        self.values: dict[str, list[Tensor]] = {}  # for quantiles: float32 [n] each

    @property
    def sums(self) -> dict[str, float]:
        return _settled(self._sums)

    @property
    def peaks(self) -> dict[str, float]:
        return _settled(self._peaks)

    def add(self, key: str, value: Tensor | float) -> None:
        value = value.sum(dtype=torch.float64) if isinstance(value, Tensor) else value
        self._sums[key] = self._sums.get(key, 0.0) + value

    def add_by(self, key: str, member: Tensor, names: Sequence[str], value: Tensor) -> None:
        """The sum of `value` [N] for every name, under key/NAME; member float64 [names, N] is 1 where a token is the name's.

        A product, not a scatter, whose order of additions a GPU does not fix: entropies have to be the same after a resume.
        """
        for name, total in zip(names, (member @ value.double()).unbind(), strict=True):
            self.add(f"{key}/{name}", total)

    def peak(self, key: str, value: Tensor) -> None:
        """nan, if there is one, stays the largest."""
        if len(value):
            found = value.max().double()
            before = torch.as_tensor(self._peaks.get(key, -math.inf), dtype=torch.float64, device=found.device)
            self._peaks[key] = torch.maximum(before, found)
        else:
            self._peaks.setdefault(key, -math.inf)

    def keep(self, key: str, value: Tensor) -> None:
        self.values.setdefault(key, []).append(value.detach().float())

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(sums, peaks) as float64 vectors on the CPU, keys in order: reduce them with SUM and MAX, then `replace`."""
        return tuple(torch.tensor([d[k] for k in sorted(d)], dtype=torch.float64) for d in (self.sums, self.peaks))  # type: ignore[return-value]

    def replace(self, sums: Tensor, peaks: Tensor) -> None:
        self._sums = dict(zip(sorted(self._sums), sums.tolist(), strict=True))
        self._peaks = dict(zip(sorted(self._peaks), peaks.tolist(), strict=True))

    def mean(self, key: str, over: str) -> float:
        return self.sums[key] / self.sums[over] if self.sums[over] else math.nan

    def quantiles(self, key: str, percents: Sequence[float]) -> dict[str, float]:
        """{"KEY/q99.9": value, ...} of the kept values; nothing where there are none."""
        values = torch.cat(self.values[key])
        if not len(values):
            return {}
        ordered = values.sort().values
        # The nearest rank, not an interpolation: exact whatever the order and the division of the tokens.
        ranks = [min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1) for p in percents]
        return {f"{key}/q{p:g}": float(ordered[max(0, r)]) for p, r in zip(percents, ranks, strict=True)}


def _settled(numbers: dict[str, Tensor | float]) -> dict[str, float]:
    """The same dict with every number on the host: one transfer for all of them."""
    waiting = [key for key, value in numbers.items() if isinstance(value, Tensor)]
    if waiting:
        numbers.update(zip(waiting, torch.stack([cast(Tensor, numbers[key]) for key in waiting]).tolist(), strict=True))
    return cast("dict[str, float]", numbers)


@dataclass(frozen=True, slots=True)
class Fresh:
    """The policy at the start of the iteration, on the iteration's own responses, and what came with them. All tensors [N]."""

    stats: TokenStats
    weight: Tensor  # in the loss; 0: measured and not trained on
    engine_logp: Tensor
    correct: Tensor  # bool: the trajectory's verdict
    first: Tensor  # bool: the response's first token
    last: Tensor  # bool: and its last
    reference_logp: Tensor | None = None
    importance: Tensor | None = None  # what the surrogate is multiplied by; None: 1
    pull: Tensor | None = None  # of the KL to the reference, as an advantage; None: 0


def planned_dh(fresh: Fresh, shaping: Shaping) -> Tensor:
    """The token's share of dH for a step of size 1 on the logits, everything in the loss counted. [N], nats"""
    dh = predicted_dh(fresh.stats, replace(shaping, bonus=None))
    if fresh.importance is not None:
        dh = dh * fresh.importance
    if fresh.pull is None and shaping.bonus is None:
        return dh
    pull = torch.zeros_like(dh) if fresh.pull is None else fresh.pull
    return dh + predicted_dh(replace(fresh.stats, advantages=pull), Shaping(bonus=shaping.bonus))


def predicted_dh(stats: TokenStats, shaping: Shaping) -> Tensor:
    """`planned_dh` of the shaped surrogate and the bonus alone. [N], nats"""
    shaped = stats.advantages if shaping.advantages is None else shaping.advantages
    dh = -shaped * (stats.logp.exp() * stats.centred - stats.kappa)
    if shaping.weight is not None:
        dh = dh * shaping.weight
    return dh if shaping.bonus is None else dh + shaping.bonus * stats.entropy_grad_sq


def tally_policy(
    tally: Tally, fresh: Fresh, probe: tuple[Shaping, float | Tensor] | None, envs: tuple[str, ...]
) -> None:
    """What the controllers and the ledger see before the updates. probe: a shaping and the coefficient that made it
    (Steering.probe)."""
    s, w = fresh.stats, fresh.weight
    free = planned_dh(fresh, Shaping())
    slope = torch.full_like(free, math.nan) if probe is None else (planned_dh(fresh, probe[0]) - free) / probe[1]
    gap = (s.logp - fresh.engine_logp).abs()
    outside = (((s.logp - fresh.engine_logp).exp() - 1.0).abs() > 0.1).double()
    rare = s.logp < RARE
    ok = fresh.correct.to(s.entropy.dtype)
    member = (s.env == torch.arange(len(envs), device=s.env.device)[:, None]).double()
    learnt = (w > 0).double()
    advantages = learnt * s.advantages.double()
    for key, value in (
        ("tokens", torch.ones_like(w)),
        ("entropy", s.entropy),
        ("ok_tokens", ok),
        ("ok_entropy", ok * s.entropy),
        ("free", w * free),
        ("slope", w * slope),
        ("weight", w),
        ("advantage_square", w * s.advantages.double() ** 2),
    ):
        tally.add_by(key, member, envs, value)
    for key, value in (
        ("count", float(len(s.logp))),
        ("surprisal", -s.logp),
        ("learnt", learnt),
        ("learnt_surprisal", -learnt * s.logp),
        ("advantage", advantages),
        ("square", advantages**2),
        ("product", advantages * s.logp),
        ("gap", gap),
        ("gap_outside", outside),
        ("rare", rare.double()),
        ("gap_outside_rare", outside * rare),
        ("first", fresh.first.double()),
        ("first_entropy", s.entropy.where(fresh.first, 0.0)),
        ("last", fresh.last.double()),
        ("last_entropy", s.entropy.where(fresh.last, 0.0)),
    ):
        tally.add(key, value)
    if fresh.reference_logp is not None:
        difference = fresh.reference_logp - s.logp
        tally.add("reference", difference.exp() - 1.0 - difference)
    tally.peak("gap", gap)
    tally.keep("gap", gap)


def tally_shaping(tally: Tally, fresh: Fresh, shaping: Shaping) -> None:
    """What the updates should do, with the coefficient they will have."""
    s = fresh.stats
    dh = fresh.weight * planned_dh(fresh, shaping)
    shaped = s.advantages if shaping.advantages is None else shaping.advantages
    for name, mask in (("positive", s.advantages > 0), ("negative", s.advantages < 0), ("zero", s.advantages == 0)):
        tally.add(f"dh_{name}", dh.where(mask, 0.0))  # zero: REPO-D and the bonus move these as well
        tally.add(f"size_{name}", s.advantages.abs().where(mask, 0.0))
        tally.add(f"shaped_{name}", shaped.abs().where(mask, 0.0))


def tally_update(
    tally: Tally, loss: Tensor, tokens: dict[str, Tensor], stats: TokenStats, shaping: Shaping, step: Tensor
) -> None:
    """One micro-batch of an update. step [N]: learning rate times the token's weight in the loss."""
    count = float(len(tokens["ratio"]))
    # Clipping acts on the surrogate alone: the bonus goes on, and a clipped token would have counted by its ratio.
    forgone = step * tokens["withheld"] * predicted_dh(stats, replace(shaping, bonus=None))
    for key, value in (
        ("loss", loss.detach()),
        ("trained", count),
        # The share touched by the coefficient is measured where it acts.
        ("touched", count if shaping.touched is None else shaping.touched.double()),
        ("ratio", tokens["ratio"]),
        ("ratio_square", tokens["ratio"].double() ** 2),
        ("clipped_high", tokens["clipped_high"].double()),
        ("clipped_low", tokens["clipped_low"].double()),
        ("forgone_high", forgone.where(tokens["clipped_high"], 0.0)),
        ("forgone_low", forgone.where(tokens["clipped_low"], 0.0)),
        ("kl", tokens["kl"]),
        ("importance", tokens["importance"]),
        ("limited", tokens["limited"].double()),
    ):
        tally.add(key, value)
    tally.peak("ratio", tokens["ratio"])
    tally.keep("ratio", tokens["ratio"])


@dataclass(frozen=True, slots=True)
class Part:
    """Sums over the tokens of some environments."""

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
    """One iteration before its updates. Entropies in nats per token."""

    parts: Mapping[str, Part]  # by environment
    updates: int  # passes of unit weight over the batch's tokens: loss weights sum to 1 in each
    metrics: StepMetrics

    def observed(self, envs: Sequence[str], over: str) -> Observed:
        """What a controller of these environments sees; over: "all" or "successful" responses."""
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
    """Figures of the start-of-iteration pass that need no history."""
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
    """Figures of the iteration's updates; `updates` optimiser steps. corrected: importance weights are in the loss."""
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
        """Other environments follow: the difference to the next entropy is not what an update did."""
        self.state["entropy"] = self.state["predicted"] = math.nan

    def row(self, tally: Tally, updates: int, envs: tuple[str, ...]) -> LedgerRow:
        """The iteration as the controllers see it. tally: of `tally_policy`, reduced over ranks; updates: updates of one pass
        over the batch."""
        parts = {e: Part(*(tally.sums[f"{n}/{e}"] for n in Part.__dataclass_fields__)) for e in envs}
        whole = LedgerRow(parts, updates, {})
        everything, correct = whole.observed(envs, "all"), whole.observed(envs, "successful")
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
        """What the iteration's updates should do to entropy. tally: of `tally_shaping`, reduced; eta: the sum of their learning
        rates."""
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
        """No update follows: what entropy does until the next row is noise of its samples, and the regression takes it as such."""
        self.state["predicted"] = 0.0
        return {"entropy/predicted_dh": 0.0, "tokens/trained": 0.0}

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
