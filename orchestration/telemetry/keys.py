"""Holds the table of every metric the loop reports, with its meaning and unit, and the names that metrics had before.

Names in braces stand for a family: `reward/{env}` covers `reward/countdown` and `reward/reasoning_gym/chain_sum` (a task
family counts as an environment here). A row is a flat `dict[str, float]`, one an iteration:

    {"iteration": 12.0, "reward/mean": 0.41, "entropy/exact": 0.83, "eval/countdown/pass@16/T=0.3": 0.94}

Code that needs a part of such a key parses it (typed_keys.py), and never slices the string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

# key: (what it means, its unit)
KEYS: dict[str, tuple[str, str]] = {
    # progress
    "iteration": ("Iteration just finished; 0 is the policy before training", ""),
    "policy_version": ("Version of the weights the generators hold at the end of the iteration", ""),
    "stage/index": ("Index of the stage in the run, from 0; config.yaml has its name", ""),
    "stage/iteration": ("Iterations of the stage so far", ""),
    "time/unix": ("Wall clock at the end of the iteration, since 1970", "s"),
    # rewards
    "reward/mean": ("Mean reward of the responses", ""),
    "reward/std": ("Standard deviation of the reward over the whole batch", ""),
    "reward/{env}": ("Mean reward in one environment", ""),
    "term/{term}": ("Mean of one term of the reward before its weight; 'verdict' is the environment's own", ""),
    "term/{term}/{env}": ("Mean of that term in one environment", ""),
    "correct/mean": ("Share of responses scored correct", "share"),
    "correct/{env}": ("Share of responses scored correct in one environment", "share"),
    "groups/no_signal/{env}": (
        "Groups of one environment whose scored rewards are all equal, with `diversity` those that are trained on",
        "groups",
    ),
    # the reward-hacking monitor: the last 5 iterations of the stage against its first 5
    "drift/reward": ("Change of the mean reward since the start", ""),
    "drift/check": ("Change of the environment's own verdict since the start", ""),
    "drift/held_out": ("Change of held-out pass@1 since the start, mean over the environments in training", "share"),
    "drift/length": ("Change of the mean length of a response since the start, as a share of that length", "relative"),
    "drift/hacking": (
        "1 while the reward has risen, and the verdict has not or held-out pass@1 fell by over .03",
        "0/1",
    ),
    "drift/longer": ("1 while the reward has risen and the mean length changed by more than half", "0/1"),
    "groups/no_signal": (
        "Groups whose scored rewards, with `diversity` those that are trained on, are all equal: without turn-level advantages "
        "they have no gradient",
        "groups",
    ),
    # dynamic sampling, where it is on
    "dynamic/rounds": ("Rounds of generation in the iteration", "rounds"),
    "dynamic/generated": ("Groups generated in the iteration", "groups"),
    "dynamic/trained": ("Groups that were trained on", "groups"),
    "dynamic/all_right": ("Groups that were dropped because every response was correct", "groups"),
    "dynamic/all_wrong": ("Groups that were dropped because no response was correct", "groups"),
    "dynamic/other": (
        "Groups that were dropped for another reason: fewer than two responses scored, or nothing that differs",
        "groups",
    ),
    "dynamic/skipped": ("1 when no group was left and the weights stayed as they were", "0/1"),
    # adaptive difficulty, where it is on
    "adaptive/revisited": ("Share of the groups whose prompt had been tried before", "share"),
    "adaptive/known": ("Prompts whose difficulty is estimated, in the environments of the stage", "prompts"),
    "adaptive/solved": ("Estimated probability that a response is correct, mean over these prompts", "share"),
    "adaptive/informative": ("Share of the groups whose scored rewards differ", "share"),
    "adaptive/informative_again": ("Share of revisited groups whose scored rewards differ", "share"),
    # solution diversity, where it is on; what is observed needs groups with two correct responses that have a solution
    "diversity/coefficient": ("How much a correct response loses where all others solved the task alike", ""),
    "diversity/solutions": (
        "Effective number of solutions: 1 over the probability that two correct responses to a prompt are alike",
        "solutions",
    ),
    "diversity/controlled": ("Its running mean, which the controller observes", "solutions"),
    "diversity/target": ("Effective number of solutions the controller aims at", "solutions"),
    "diversity/shared": ("Share of these correct responses whose solution another one of the group has", "share"),
    "diversity/saturated": ("1 when the coefficient is at its bound and the number still off target", "0/1"),
    # the entropy ledger
    "entropy/exact": ("Entropy of the policy from the full distribution", "nats/token"),
    "entropy/sampled": ("Entropy estimated from the sampled tokens alone", "nats/token"),
    "entropy/successful": ("Exact entropy over the tokens of correct responses", "nats/token"),
    "entropy/failed": ("Exact entropy over the tokens of responses that are not correct", "nats/token"),
    "entropy/first": ("Exact entropy at the first token of a response", "nats/token"),
    "entropy/last": ("Exact entropy at the last token of a response", "nats/token"),
    "entropy/{env}": ("Exact entropy in one environment", "nats/token"),
    "entropy/cumulative": ("Exact entropy, summed over the iterations so far", "nats/token"),
    "entropy/covariance": ("Covariance of advantage and log-prob over the tokens trained on", "nats"),
    "entropy/predicted_dh": (
        "Change of entropy that the optimiser's steps should make, to first order, on the tokens of `learner.ledger_share`",
        "nats/token",
    ),
    "entropy/step_dh": ("Change of entropy that the steps made on the same tokens", "nats/token"),
    "entropy/step_slope": ("Slope of that change on the predicted one, running", ""),
    "entropy/step_r": ("Correlation of that change and the predicted one, running", ""),
    "entropy/tabular_dh": (
        "Change of entropy of a tabular policy under plain gradient steps on its logits: which tokens push, not how far",
        "nats/token",
    ),
    "entropy/tabular_dh_free": (
        "The same with the coefficient at no effect: what the advantages alone do",
        "nats/token",
    ),
    "entropy/tabular_dh_positive": ("Its part due to positive advantages", "nats/token"),
    "entropy/tabular_dh_negative": ("Its part due to negative advantages", "nats/token"),
    "entropy/forgone_dh_high": ("Predicted change that tokens clipped from above would have made", "nats/token"),
    "entropy/forgone_dh_low": ("Predicted change that tokens clipped from below would have made", "nats/token"),
    "entropy/realised_dh": (
        "Change of entropy since the iteration before, between fresh responses: what they sampled is in it",
        "nats/token",
    ),
    "entropy/regression_slope": ("Slope of the change between fresh responses on the predicted one, running", ""),
    "entropy/regression_r": ("Correlation of the change between fresh responses and the predicted one, running", ""),
    # the controller; with targets of their own, environments have coefficient/{env} and the like
    "entropy/controlled": (
        "The entropy the controller observes: of all responses or of the correct ones",
        "nats/token",
    ),
    "entropy/start": (
        "Exact entropy of the policy before the first update, which targets are fractions of",
        "nats/token",
    ),
    "entropy/target": ("Entropy the controller aims at", "nats/token"),
    "entropy/error": ("(target - controlled) / target", "relative"),
    "entropy/coefficient": ("Coefficient the controller moves, as used in this iteration's updates", ""),
    "entropy/coefficient_low": ("Lower bound of the coefficient", ""),
    "entropy/coefficient_high": ("Upper bound of the coefficient", ""),
    "entropy/coefficient_needed": ("Coefficient that is predicted to hold entropy where it is, a running mean", ""),
    "entropy/affected": ("Share of tokens the coefficient touches", "share"),
    "entropy/saturated": ("1 when the coefficient is at its bound and entropy is still off target", "0/1"),
    "entropy/released": ("1 once the controller has released the coefficient", "0/1"),
    "coefficient/{env}": ("Coefficient of an environment with a target of its own", ""),
    "target/{env}": ("That environment's target", "nats/token"),
    "error/{env}": ("(target - controlled) / target in that environment", "relative"),
    "saturated/{env}": ("1 when that environment's coefficient is at its bound and its entropy off target", "0/1"),
    # the update
    "clip/high": ("Share of tokens clipped from above", "share"),
    "clip/low": ("Share of tokens clipped from below", "share"),
    "ratio/mean": ("Mean ratio of new to old probability", ""),
    "ratio/max": ("Largest ratio of new to old probability", ""),
    "ratio/q{percent}": ("Quantile of the ratio of new to old probability over all updates", ""),
    "ratio/ess": ("Effective sample size of those ratios, as a share of the tokens: 1 when all are equal", "share"),
    "loss": ("Objective that was minimised", ""),
    "steps/skipped": ("Optimiser steps skipped because an fp16 gradient overflowed", "steps"),
    "steps/loss_scale": ("What the next fp16 loss is multiplied by before backward", ""),
    "grad_norm": ("Norm of the gradient before clipping", ""),
    "lr": ("Learning rate", ""),
    "kl/old": ("KL from the policy that generated the responses", "nats/token"),
    "kl/reference": ("KL from the policy to the reference policy, at the start of the iteration", "nats/token"),
    "advantage/std": ("Standard deviation of the advantages over the tokens trained on", ""),
    "advantage/scale_positive": ("log of mean |A'| over mean |A| where A > 0: a hidden change of step size", ""),
    "advantage/scale_negative": ("log of mean |A'| over mean |A| where A < 0", ""),
    "importance/mean": ("Mean weight that corrects from the engine's to the trainer's log-probs", ""),
    "importance/limited": ("Share of tokens whose weight was truncated or masked", "share"),
    # trainer against engine
    "sync/logprob_gap_max": ("Largest log-prob difference right after a weight sync", "nats"),
    "sync/logprob_gap_mean": ("Mean absolute log-prob difference right after a weight sync", "nats"),
    "sync/bytes": ("Bytes of weights sent to the generators", "B"),
    "cluster/generators": ("Generators in service at the end of the iteration", ""),
    "cluster/replaced": ("Generators and scorers that were replaced since the process began", ""),
    "cluster/learner_restarts": (
        "Times that a learner group which lost a rank was built anew since the process began",
        "",
    ),
    "gap/engine_mean": ("Mean absolute log-prob difference, trainer against engine", "nats"),
    "gap/engine_max": ("Largest absolute log-prob difference, trainer against engine", "nats"),
    "gap/q{percent}": ("Quantile of the absolute log-prob difference, trainer against engine", "nats"),
    "gap/outside": ("Share of tokens whose trainer/engine ratio leaves [0.9, 1.1]", "share"),
    "gap/outside_rare": (
        "Share of rare tokens (log-prob under -2) whose trainer/engine ratio leaves [0.9, 1.1]",
        "share",
    ),
    # asynchronous training (batch.staleness)
    "staleness/mean": (
        "Versions that the policy which sampled a trained token is behind the trained one, mean",
        "versions",
    ),
    "staleness/max": ("Versions that the oldest trained token is behind; at most batch.staleness", "versions"),
    "staleness/span": ("Versions between the oldest and the newest token of a trajectory, mean", "versions"),
    "staleness/span_max": ("Versions between the oldest and the newest token of a trajectory, largest", "versions"),
    "requests/aborted": ("Share of requests that nobody waited for to the end, since the process began", "share"),
    "entropy/uncorrected": ("Exact entropy over the states of the batch, which older policies reached", "nats/token"),
    "entropy/correction": ("How far entropy/exact is corrected to the present policy's states; 1: wholly", "share"),
    "entropy/dead_time": ("Mean age of the states that the controller saw", "iterations"),
    "staleness/entropy/{age}": ("Exact entropy of the present policy on the tokens of one age", "nats/token"),
    "staleness/tokens/{age}": ("Share of the tokens that a policy of this many versions before sampled", "share"),
    # where the time went
    "time/iteration": ("Whole iteration", "s"),
    "time/generate": ("Generating responses", "s"),
    "time/verify": ("Scoring responses", "s"),
    "time/train": ("Gradient steps", "s"),
    "time/sync": ("Sending weights to the generators; the trainer's log-probs of the probe are taken meanwhile", "s"),
    "time/eval": ("Evaluation", "s"),
    "time/turns": (
        "Colocated: generators to sleep and awake, optimiser state to the host and back; partly in time/sync",
        "s",
    ),
    "time/learner_waits": ("Asynchronous: waiting for the groups of the batch, learner idle", "s"),
    "time/generators_wait": ("Asynchronous: no response under way since the last batch, generators idle", "s"),
    "tokens/generated": ("Tokens generated by the policy", "tokens"),
    "tokens/trained": ("Tokens that entered the loss", "tokens"),
    "tokens/per_second": ("Generated tokens over the time of the iteration", "tokens/s"),
    # the responses
    "response/length_mean": ("Mean length of a response", "tokens"),
    "response/length/{env}": ("Mean length of a response in one environment", "tokens"),
    "response/length_max": ("Longest response", "tokens"),
    "responses/distinct": ("Different responses to a prompt, mean over prompts", "responses"),
    "responses/distinct_correct": ("Different correct solutions to a prompt, mean over prompts", "solutions"),
    "status/ok": ("Share of responses that ended by themselves and were scored", "share"),
    "status/truncated": ("Share of responses cut at the length limit", "share"),
    "status/turns": ("Share of trajectories that were not done within sampling.max_turns", "share"),
    "status/tokens": ("Share of trajectories that were not done within their limits on tokens", "share"),
    "status/seconds": ("Share of trajectories that were not done within sampling.max_seconds", "share"),
    "status/timeout": ("Share of responses whose scoring ran out of time", "share"),
    "status/error": ("Share of responses whose scoring failed", "share"),
    "status/ok/{env}": ("Share of one environment's responses that ended by themselves and were scored", "share"),
    "status/truncated/{env}": ("Share of one environment's responses cut at the length limit", "share"),
    "status/turns/{env}": ("Share of one environment's trajectories not done within sampling.max_turns", "share"),
    "status/tokens/{env}": ("Share of one environment's trajectories not done within their limits on tokens", "share"),
    "status/seconds/{env}": ("Share of one environment's trajectories not done within sampling.max_seconds", "share"),
    "status/timeout/{env}": ("Share of one environment's responses whose scoring ran out of time", "share"),
    "status/error/{env}": ("Share of one environment's responses whose scoring failed", "share"),
    # evaluation
    "eval/{env}/pass@{k}": ("Unbiased pass@k at the first temperature", "share"),
    "eval/{env}/pass@{k}/T={temperature}": ("Unbiased pass@k at one temperature", "share"),
    "eval/{env}/distinct_correct": ("Different correct solutions per prompt", "solutions"),
}

# Names that metrics had before -> their present names, under which every reader of a run gets them.
RENAMED = {
    "entropy/predicted_dh_free": "entropy/tabular_dh_free",
    "entropy/predicted_dh_positive": "entropy/tabular_dh_positive",
    "entropy/predicted_dh_negative": "entropy/tabular_dh_negative",
    "entropy/knob": "entropy/coefficient",
    "entropy/knob_low": "entropy/coefficient_low",
    "entropy/knob_high": "entropy/coefficient_high",
    "entropy/authority": "entropy/affected",
    "knob/{env}": "coefficient/{env}",
    "reply/length_mean": "response/length_mean",
    "reply/length_max": "response/length_max",
    "reply/length/{env}": "response/length/{env}",
    "replies/distinct": "responses/distinct",
    "replies/distinct_correct": "responses/distinct_correct",
}

_FIELDS = {
    "percent": r"\d+(?:\.\d+)?",
    "env": r"[^/\s]+(?:/[^/\s]+)*",
    "term": r"[^/\s]+",
    "k": r"[1-9]\d*",
    "age": r"\d+",
    "temperature": r"\d+(?:\.\d+)?(?:e-?\d+)?",
}


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)  # text, field, text, field, ..., text
    return re.compile("".join(f"(?P<{p}>{_FIELDS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


_FAMILIES = {pattern: _compile(pattern) for pattern in KEYS if "{" in pattern}


@lru_cache(maxsize=4096)
def present_name(key: str) -> str:
    """Returns the name a metric has now: `present_name("knob/countdown")` is "coefficient/countdown"."""
    if key in RENAMED:
        return RENAMED[key]
    for old, new in RENAMED.items():
        stem = old.removesuffix("{env}")
        if stem != old and key.startswith(stem):
            return new.removesuffix("{env}") + key.removeprefix(stem)
    return key


def present_row(row: Mapping[str, float]) -> dict[str, float]:
    """Returns a row under the names metrics have now.

    Rows of before have the change that is now `entropy/tabular_dh` as `entropy/predicted_dh`, which was theirs for both.
    """
    of_before = "entropy/predicted_dh_free" in row and "entropy/predicted_dh" in row
    tabular = {"entropy/tabular_dh": row["entropy/predicted_dh"]} if of_before else {}
    return tabular | {present_name(key): value for key, value in row.items()}


@lru_cache(maxsize=4096)
def lookup(key: str) -> tuple[str, dict[str, str]] | None:
    """Finds the entry of `KEYS` a key belongs to and what its braces stand for; None for a key outside the table.

    A literal entry wins over a family, so `reward/mean` is never an environment named "mean".

        >>> lookup("eval/countdown/pass@16/T=0.3")
        ('eval/{env}/pass@{k}/T={temperature}', {'env': 'countdown', 'k': '16', 'temperature': '0.3'})
    """
    if key in KEYS:
        # A family's own name is a pattern: "reward/{env}" is never reported.
        return None if "{" in key else (key, {})
    for pattern, regex in _FAMILIES.items():
        if match := regex.fullmatch(key):
            return pattern, match.groupdict()
    return None
