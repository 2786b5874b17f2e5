"""Plays many random faults in one run: kills, freezes and slow-downs of generators, verifiers and learner ranks.

The run has to end by itself. Every iteration has the prompts of the undisturbed run, by their ids, each once; the log-probs of
every response are computed again with the weights of the version that it says it has; rewards lie within the spread of
undisturbed seeds.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from chaos import checks, faults
from chaos.harness import START_S, Failed, Lab, Run
from orchestration.telemetry.sinks.jsonl import read_samples

ITERATIONS = 60
FAULTS = 26  # one every second iteration
SEEDS = (0, 1, 2)  # of the undisturbed runs; the disturbed one has the first
PATIENCE_S = 200.0  # for the run to go on after a fault
WINDOW = 10  # iterations that rewards are averaged over
ROUNDING = 0.03  # of a mean reward: a token that was a tie falls the other way
MAX_GAP = 1e-4  # nats, fp32: another version's log-probs are off by a hundred times that
SETTINGS = (
    f"run.iterations={ITERATIONS}", "verifiers.count=2", "run.samples_per_iteration=64", "run.sample_tokens=true",
    "checkpoint.every=1", f"checkpoint.keep={ITERATIONS}", "learner.timeout_s=40",
)  # fmt: skip
KINDS = ("generator", "generator", "verifier", "learner rank")
DEEDS = ("kill", "kill", "freeze", "slow")


def storm(lab: Lab) -> str:
    """Plays it; returns the row of the table in words, and prints it as JSON."""
    undisturbed = [lab.reference(*SETTINGS, f"run.seed={seed}") for seed in SEEDS]
    run = lab.start(*SETTINGS, f"run.seed={SEEDS[0]}", f"learner.restarts={FAULTS}")
    done = inject(run, random.Random(0))
    checks.ending(run, (0,), PATIENCE_S + 2 * ITERATIONS)
    if sum(done.values()) < 25:
        raise Failed(f"only {sum(done.values())} faults met the run: {dict(done)}")
    if (numbers := [row["iteration"] for row in run.rows()]) != list(range(1, ITERATIONS + 1)):
        raise Failed(f"the iterations are {numbers}, each of 1 to {ITERATIONS} was expected once")
    checks.all_judged(run)
    prompts = same_prompts(run, undisturbed[0])
    gap = recomputed(run, lab.model())
    off = outside([rewards(run.rows()), *(rewards(other.rows()) for other in undisturbed)])
    counters = run.status().get("counters") or {}
    row = {"faults": dict(done), "prompts": prompts, "largest_gap": gap, "counters": counters, "reward_outside": off}
    print(json.dumps(row), flush=True)
    said = f"{prompts} responses of the same prompts, log-probs within {gap:.1e}, rewards {off:.3f} outside"
    return f"{sum(done.values())} faults, exit 0, {said}"


def inject(run: Run, rng: random.Random) -> Counter[str]:
    """Makes a fault every second iteration; returns how many of each kind. Waits for the run to go on in between."""
    done: Counter[str] = Counter()
    slowed: list[threading.Thread] = []
    for number in range(FAULTS):
        wanted = 1 + 2 * number
        limit = START_S if number == 0 else PATIENCE_S
        run.until(
            f"iteration {wanted} after {dict(done)}",
            lambda w=wanted: run.iteration() >= w or ended(run),
            limit,
            ended=True,
        )
        if ended(run):
            break
        kind, deed = rng.choice(KINDS), rng.choice(DEEDS)
        victims = run.actors(kind)
        if not victims:
            continue
        try:
            victim = rng.choice(sorted(victims, key=lambda process: process.pid))
            if deed == "slow":
                slowed.append(faults.slow(victim, 4))
            else:
                (faults.kill if deed == "kill" else faults.freeze)(victim)
        except psutil.NoSuchProcess:  # it ended by itself: of an earlier fault
            continue
        done[f"{kind} {deed}"] += 1
    for thread in slowed:
        thread.join(30)
    return done


def ended(run: Run) -> bool:
    return run.process.poll() is not None


def same_prompts(run: Run, reference: Run) -> int:
    """Checks that every iteration was trained on the prompts of the undisturbed run, each once; returns how many responses."""
    mine, theirs = (prompts(r) for r in (run, reference))
    for iteration in theirs.keys() | mine.keys():
        one, other = mine.get(iteration, Counter()), theirs.get(iteration, Counter())
        if one != other:
            lost, more = (other - one).total(), (one - other).total()
            raise Failed(
                f"iteration {iteration}: {lost} responses of the undisturbed prompts are lost, {more} are of others"
            )
    return sum(counts.total() for counts in mine.values())


def prompts(run: Run) -> dict[int, Counter[str]]:
    """Returns the ids of the prompts of every iteration, each as often as it has responses."""
    found: dict[int, Counter[str]] = {}
    for sample in read_samples(run.run):
        found.setdefault(sample["iteration"], Counter())[f"{sample['env']}/{sample['index']}"] += 1
    return found


def recomputed(run: Run, model: Path) -> float:
    """Computes all log-probs again with the weights of the version that each response names; returns the largest gap, in nats."""
    weights = {0: model}
    for step in (run.run / "checkpoints").glob("step_??????"):
        weights[json.loads((step / "state.json").read_text("utf-8"))["policy_version"]] = step / "hf"
    by_version: dict[int, list[Mapping[str, Any]]] = {}
    for sample in read_samples(run.run):
        low, high = sample["versions"]
        if low != high or high not in weights:
            raise Failed(
                f"a response of iteration {sample['iteration']} has versions {low} to {high}, and {sorted(weights)} exist"
            )
        by_version.setdefault(high, []).append(sample)
    worst = 0.0
    for version, samples in sorted(by_version.items()):
        gap = largest_gap(weights[version], samples)
        if gap > MAX_GAP:
            raise Failed(
                f"responses of version {version} are {gap:.3g} nats off what its weights give: it was not held"
            )
        worst = max(worst, gap)
    return worst


def largest_gap(folder: Path, samples: Sequence[Mapping[str, Any]]) -> float:
    """Returns the largest difference of a response's log-probs from those of the weights in `folder`, at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    worst = 0.0
    for sample in samples:
        ids, at = [], 0
        for turn in sample["turns"]:
            ids += turn["context"] + turn["response"]
        with torch.no_grad():
            table = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        for turn in sample["turns"]:
            at += len(turn["context"])
            for token, logprob in zip(turn["response"], turn["logprobs"], strict=True):
                worst = max(worst, abs(float(table[at - 1, token]) - logprob))
                at += 1
    return worst


def rewards(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the mean reward of every WINDOW iterations."""
    values = [row["reward/mean"] for row in rows]
    return [statistics.fmean(values[i : i + WINDOW]) for i in range(0, len(values), WINDOW)]


def outside(curves: Sequence[Sequence[float]]) -> float:
    """Returns how far the first curve leaves the range of the others at most; 0 within. Raises Failed beyond ROUNDING."""
    disturbed, *others = curves
    off = max(max(min(column) - one, one - max(column), 0.0) for one, *column in zip(disturbed, *others, strict=True))
    if off > ROUNDING:
        raise Failed(f"the reward is {off:.3f} outside the spread of {len(others)} undisturbed seeds")
    return off


STORM = (
    "storm", f"{FAULTS} random kills, freezes and slow-downs", f"in {ITERATIONS} iterations",
    "exit 0, no prompt lost or twice, every version held, rewards within the spread", storm,
)  # fmt: skip
