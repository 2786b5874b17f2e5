"""Builds small wire values, strategies for random ones, configurations and run folders."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from envs.types import Group, Message, Prompt, Status, Trajectory, Turn, Verdict
from learner.checkpoint import Checkpoints
from learner.types import LossData, TokenStats
from orchestration.config.run_config import RunConfig

VOCAB = 50


def assert_close(
    actual: Tensor | None, expected: Tensor, rtol: float = 1e-6, atol: float = 1e-12, what: str = ""
) -> None:
    """Asserts what torch.testing.assert_close does, without its seconds of imports; the types may differ."""
    assert actual is not None, what
    arrays = (actual.detach().double().numpy(), expected.detach().double().numpy())
    np.testing.assert_allclose(*arrays, rtol=rtol, atol=atol, err_msg=what)


def make_prompt(index: int = 0, env: str = "toy") -> Prompt:
    return Prompt(env, "train", index, (Message("user", f"task {index}"),), {"answer": "1"})


def make_trajectory(
    turns: Sequence[tuple[int, int]] = ((3, 2),),
    *,
    reward: float = 0.0,
    index: int = 0,
    env: str = "toy",
    seed: int = 0,
    version: int = 0,
    status: Status = Status.OK,
) -> Trajectory:
    """Builds a trajectory; `turns` gives (context tokens, response tokens) of each turn.

    Token ids and log-probs follow from `seed`.
    """
    rng = random.Random(f"{seed}/{index}/{tuple(turns)}")
    made = []
    for context, response in turns:
        ids = [tuple(rng.randrange(1, VOCAB) for _ in range(n)) for n in (context, response)]
        logprobs = tuple(-rng.random() * 4 for _ in range(response))
        made.append(Turn(ids[0], ids[1], logprobs, "stop", version, version))
    verdict = Verdict(reward, correct=reward > 0, status=status)
    return Trajectory(make_prompt(index, env), tuple(made), tuple("text" for _ in made), verdict)


def make_group(rewards: Sequence[float], *, index: int = 0, version: int = 0) -> Group:
    responses = [make_trajectory(reward=r, index=index, seed=i, version=version) for i, r in enumerate(rewards)]
    return Group(make_prompt(index), tuple(responses))


def group_of(members: Sequence[tuple[float, str | None, bool]]) -> Group:
    """Builds a group of (reward, solution, whether it is correct)."""
    made = [
        replace(make_trajectory(seed=i), verdict=Verdict(reward, correct, solution))
        for i, (reward, solution, correct) in enumerate(members)
    ]
    return Group(make_prompt(), tuple(made))


def solved_group(names: Sequence[str]) -> Group:
    """Builds a group of rewards 0 and 1: the solution of each response, "" for one that is not correct."""
    return group_of([(float(bool(name)), name or None, bool(name)) for name in names])


@st.composite
def trajectories(draw: st.DrawFn, min_size: int = 1, max_size: int = 12) -> list[Trajectory]:
    """Draws trajectories of one to three turns in up to three environments."""
    count = draw(st.integers(min_size, max_size))
    first = st.tuples(st.integers(1, 6), st.integers(1, 9))
    later = st.tuples(st.integers(0, 4), st.integers(1, 5))
    made = []
    for i in range(count):
        turns = [draw(first), *draw(st.lists(later, max_size=2))]
        made.append(make_trajectory(turns, index=i, env=draw(st.sampled_from(["a", "b", "c"]))))
    return made


def alike(responses: Sequence[Trajectory], size: int = 4) -> list[Trajectory]:
    """Gives the prompt of each first of `size` trajectories to all of them: the tokens before their first response."""
    made: list[Trajectory] = []
    for i, t in enumerate(responses):
        prompt = responses[i - i % size].turns[0].context_ids
        made.append(replace(t, turns=(replace(t.turns[0], context_ids=prompt), *t.turns[1:])))
    return made


def make_stats(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, envs: int = 1) -> TokenStats:
    """Returns consistent statistics of n tokens, each sampled from a random distribution of its own.

    They have equal weights, and PPO's clip at 0.2 has taken away the gradient of some.
    """
    generator = torch.Generator().manual_seed(seed)
    log_p = (2 * torch.randn(n, 7, generator=generator, dtype=torch.float64)).log_softmax(-1)
    p = log_p.exp()
    action = torch.multinomial(p, 1, generator=generator) if n else torch.zeros(0, 1, dtype=torch.long)
    entropy = -(p * log_p).sum(-1)
    pull = p * (log_p + entropy[:, None])
    logp = log_p.gather(-1, action)[:, 0]
    old = logp + 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64).round(decimals=1)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    ratio = (logp - old).exp()
    clipped = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    return TokenStats(
        logp=logp.to(dtype),
        entropy=entropy.to(dtype),
        kappa=(p * pull).sum(-1).to(dtype),
        entropy_grad_sq=(pull * pull).sum(-1).to(dtype),
        old_logp=old.to(dtype),
        advantages=advantages.to(dtype),
        uniform=uniform.to(dtype),
        env=torch.arange(n) % envs,
        gradient_weight=(ratio / max(1, n)).masked_fill(clipped, 0.0).to(dtype),
    )


def loss_data(stats: TokenStats, weight: Tensor | None = None, **more: Tensor) -> LossData:
    """Returns loss data with the stats' own old log-probs and advantages.

    Without other arguments, weights are equal and every token is a trajectory of its own.
    """
    n = len(stats.logp)
    even = torch.full((n,), 1 / max(1, n), dtype=stats.logp.dtype)
    fields: dict[str, Tensor] = {"trajectory": torch.arange(n), **more}
    return LossData(stats.old_logp, stats.advantages, even if weight is None else weight, **fields)


def config_data(**sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the smallest valid configuration that holds entropy, with the given keys of sections replaced."""
    data: dict[str, Any] = {
        "run": {"name": "demo", "iterations": 3},
        "model": {"path": "someone/some-model"},
        "environments": [{"name": "countdown"}, {"name": "arithmetic", "weight": 2}],
        "batch": {"prompts": 4, "responses": 4},
        "sampling": {"max_tokens": 16},
        "generators": {"max_model_len": 64},
        "learner": {"lr": 0.001},
        "entropy": {},
    }
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return data


def stages_data(**second: Any) -> dict[str, Any]:
    """Returns the smallest configuration with two stages, with the given keys of the second one replaced."""
    data = config_data()
    del data["environments"], data["run"]["iterations"]
    mixture = [{"name": "countdown"}, {"name": "arithmetic", "weight": 3}]
    data["stages"] = [
        {"name": "one", "environments": [{"name": "countdown"}], "iterations": 3},
        {"name": "two", "environments": mixture, "iterations": 5, **second},
    ]
    return data


def stopped_run(config: RunConfig, **state: Any) -> Checkpoints:
    """Writes the folder of a run that can resume after its first iteration; `state` adds keys to its state."""
    checkpoints = Checkpoints(config.folder / "checkpoints", 2)
    at = {"stage": 0, "iteration": 1, "rewards": [], "given": [[0, 0]]}
    whole = {
        "iteration": 1,
        "policy_version": 1,
        "owes_evaluation": False,
        "curriculum": at,
        "learner": {"steps": 1, "steering": {}, "ledger": {}},
    }
    checkpoints.finish(checkpoints.begin(1), whole | state)
    (config.folder / "config.yaml").write_text(config.to_yaml())
    return checkpoints


CONFIG = "run: {name: demo, seed: 3}\nentropy:\n  method: {kind: repo}\nobjective: {advantage: grpo}\n"
HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>\x1b[2J\u202e\ud800"


LEDGER = {  # a row of the wider ledger
    "entropy/tabular_dh": -0.012,
    "entropy/tabular_dh_free": -0.0122,
    "entropy/tabular_dh_positive": -0.01,
    "entropy/tabular_dh_negative": -0.002,
    "entropy/forgone_dh_high": 0.001,
    "entropy/forgone_dh_low": -0.0002,
    "entropy/covariance": 0.03,
    "entropy/successful": 0.3,
    "entropy/failed": 0.9,
    "entropy/first": 1.2,
    "entropy/last": 0.1,
    "entropy/affected": 0.002,
    "ratio/q0.1": 0.8,
    "ratio/q99.9": 1.3,
    "ratio/ess": 0.98,
    "gap/outside": 0.02,
    "gap/outside_rare": 0.05,
    "gap/q50": 0.001,
    "gap/q99.9": 0.3,
    "importance/limited": 0.01,
    "responses/distinct": 9.0,
    "responses/distinct_correct": 3.0,
    "groups/no_signal": 1.0,
}


def run_folder(
    folder: Path,
    n: int = 40,
    *,
    end: float = 0.5,
    target: float | None = None,
    envs: tuple[str, ...] = ("a",),
    config: str = CONFIG,
    more: Mapping[str, float] | Callable[[int], Mapping[str, float]] | None = None,
) -> Path:
    """Writes a run whose entropy moves linearly from 1 to `end`, with an evaluation at both ends.

    `more` is values that are added to every row or replace those in it, such as `LEDGER`, or a function that returns them for an
    iteration.
    """
    folder.mkdir(parents=True)
    rows = []
    for i in range(n + 1):
        row: dict[str, float] = {"iteration": i, "time/iteration": 2.0, "tokens/generated": 100.0}
        row |= {"entropy/exact": 1.0 + (end - 1.0) * i / n, "reward/mean": 0.2 + 0.4 * i / n, "time/generate": 1.0}
        row |= {"entropy/predicted_dh": math.sin(i), "entropy/realised_dh": 2.0 * math.sin(i - 1)}
        if target is not None:
            row |= {
                "entropy/target": target,
                "entropy/coefficient": 0.1,
                "entropy/coefficient_low": 0.0,
                "entropy/coefficient_high": 1.0,
            }
        for position, env in enumerate(envs if i else ()):
            row |= {f"reward/{env}": row["reward/mean"] / (position + 1), f"entropy/{env}": row["entropy/exact"]}
        if i in (0, n):
            for env in envs:
                row |= {f"eval/{env}/pass@{k}{t}": 0.1 * k + i / 100 for k in (1, 4) for t in ("", "/T=1", "/T=0.3")}
                row[f"eval/{env}/distinct_correct"] = 5.0 - i / 20
        rows.append({**row, **((more(i) if callable(more) else more) or {})})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(config)
    sample = {"env": HOSTILE, "prompt": [{"role": "user", "content": HOSTILE}], "response": HOSTILE, "reward": 1.0}
    lines = [json.dumps(sample | {"iteration": i, "status": HOSTILE}) for i in (0, n // 2, n)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


# Three stages of one environment each, two iterations a stage.
#            b     a     b     c    (environment)
BEFORE = {"a": 0.1, "b": 0.2, "c": 0.0}
AFTER = [
    {"a": 0.9, "b": 0.3, "c": 0.1},
    {"a": 0.5, "b": 0.8, "c": 0.4},
    {"a": 0.6, "b": 0.4, "c": 0.7},
]


def staged_row(
    iteration: int, stage: int, rewards: dict[str, float], scores: dict[str, float] | None = None
) -> dict[str, float]:
    made = {"iteration": float(iteration), "stage/index": float(stage)}
    made |= {f"reward/{e}": v for e, v in rewards.items()} | ({"reward/std": 0.1} if rewards else {})
    if rewards:
        made["reward/mean"] = sum(rewards.values()) / len(rewards)
    for k, factor in ((1, 1.0), (4, 1.1)):
        made |= {f"eval/{e}/pass@{k}": v * factor for e, v in (scores or {}).items()}
        made |= {f"eval/{e}/pass@{k}/T=0.3": 0.0 for e in scores or {}}
    return made


def staged_rows() -> list[dict[str, float]]:
    return [
        staged_row(0, 0, {}, BEFORE),
        staged_row(1, 0, {"a": 0.2}), staged_row(2, 0, {"a": 0.6}, AFTER[0]),
        staged_row(3, 1, {"b": 0.4}), staged_row(4, 1, {"b": 0.8}, AFTER[1]),
        staged_row(5, 2, {"c": 0.1}), staged_row(6, 2, {"c": 0.3}, AFTER[2]),
    ]  # fmt: skip
