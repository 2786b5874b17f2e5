"""Measures what a response costs the driver, with up to 4,096 simulated generators and responses of up to 2,048 tokens.

    PYTHONPATH=.:tests python -m benchmarks.driver [--json FILE] [--generators 64 256 1024 4096] [--lengths 64 2048]

What is real: the pools, the rollouts, the tokenizer's text, the batches of the learner and the row of metrics, all on one event
loop, and the unpickling of every response, which Ray does on the driver. What is simulated: generators and verifiers, which answer
at once with responses made before. The figures are seconds of CPU of this process, as whatever else runs would spoil wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import random
import statistics
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.workloads.reply_lengths import ALPHABET, ReplyLengths, score

from actors.inference import Completion, Request
from actors.pool import GeneratorPool, VerifierPool
from actors.rollout import RolloutSettings, rollout_group
from actors.settings import SamplingSettings
from actors.verifier import ScoreRequest
from envs.types import Group, Observation, Verdict
from learner.advantages import ADVANTAGES
from learner.batching import build_batches, trajectory_advantages
from learner.settings import BatchPlan
from orchestration.telemetry.rollout_metrics import describe

RESPONSES = 8  # of a group
TOKENS = 1 << 17  # about what a round has at least, whatever the length of a response
LEAST = 128  # groups of a round
MADE = 32  # different responses


@dataclass
class SimulatedGenerator:
    """Answers each request with one of `made`, pickled lists of token ids and log-probs."""

    name: str
    made: Sequence[bytes]

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        for i, request in enumerate(requests):
            await asyncio.sleep(0)
            ids, logprobs = pickle.loads(self.made[(request.seed + i) % len(self.made)])
            yield [Completion(request.id, ids, logprobs, "stop", 0, 0)]

    async def abort(self, ids: Collection[str]) -> None: ...


@dataclass
class SimulatedVerifier:
    name: str

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Observation | Verdict]:
        await asyncio.sleep(0)
        return [score(request.responses[-1]) for request in requests]


class CharacterCodec:
    """Turns text into ids and back by the model's own tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Any]) -> tuple[int, ...]:
        from learner.chat import render

        return render(self._tokenizer, messages)

    def render_observation(self, before: Any, observation: Any, response_ids: Sequence[int]) -> tuple[int, ...]:
        raise NotImplementedError("every response here is the last of its trajectory")

    def decode(self, ids: Sequence[int]) -> str:
        from learner.chat import decode

        return decode(self._tokenizer, ids)


def make_responses(tokenizer: Any, length: int, rng: random.Random) -> list[bytes]:
    """Makes responses of half of `length` to `length` tokens, pickled as Ray would carry them."""
    letters = tokenizer.convert_tokens_to_ids(list(ALPHABET[:8]))
    made = []
    for _ in range(MADE):
        ids = tuple(rng.choice(letters) for _ in range(rng.randint(length // 2, length)))
        made.append(pickle.dumps((ids, tuple(-rng.random() for _ in ids)), protocol=5))
    return made


def one_round(generators: int, length: int, made: Sequence[bytes], codec: CharacterCodec) -> dict[str, float]:
    """Plays a round and returns its seconds of CPU by what was done, and how many responses and tokens it had."""
    environment = ReplyLengths(shares=[1.0], means=[8], limit=length)
    # A response for every generator, and enough of them that the start of the loop does not count.
    prompts = max(generators // RESPONSES, LEAST, round(TOKENS / (0.75 * length * RESPONSES)))
    settings = RolloutSettings(SamplingSettings(max_tokens=length), RESPONSES, max_model_len=length + 64, seed=0)
    tasks = [environment.prompt("train", i) for i in range(prompts)]
    members = [SimulatedGenerator(f"generator {i}", made) for i in range(generators)]
    scorers = [SimulatedVerifier(f"verifier {i}") for i in range(8)]

    async def play() -> list[Group]:
        pool, verifiers = GeneratorPool(members, print), VerifierPool(scorers, print)
        groups = (rollout_group(p, pool.begin, verifiers.score, codec, settings, "round") for p in tasks)
        return await asyncio.gather(*groups)

    began = time.process_time()
    groups = asyncio.run(play())
    played = time.process_time()
    flat = [t for group in groups for t in group.trajectories]
    plan = BatchPlan(ranks=1, updates=4)
    build_batches(
        flat, trajectory_advantages(groups, ADVANTAGES["grpo"]), plan=plan, aggregation="token", temperature=1.0
    )
    built = time.process_time()
    describe(groups)
    ended = time.process_time()
    return {"rollouts": played - began, "batches": built - played, "metrics": ended - built,
            "responses": len(flat), "tokens": sum(t.response_tokens for t in flat)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--generators", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    from learner.warmstart.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(ReplyLengths(shares=[0.5, 0.5], means=[8, 8], limit=8).alphabet())
    codec, rng = CharacterCodec(tokenizer), random.Random(0)
    lines: list[dict[str, Any]] = []
    details: dict[str, dict[str, float]] = {}
    for length in args.lengths:
        made = make_responses(tokenizer, length, rng)
        rounds: dict[int, list[dict[str, float]]] = {g: [] for g in args.generators}
        for _ in range(args.repeats):
            for g, found in rounds.items():
                found.append(one_round(g, length, made, codec))
        least, base = args.generators[0], 0.0
        for g, found in rounds.items():
            each = {
                k: statistics.median(r[k] / r["responses"] for r in found) for k in ("rollouts", "batches", "metrics")
            }
            details[f"{g} generators, {length} tokens"] = {
                **{f"{k}, ms a response": 1e3 * v for k, v in each.items()},
                "responses": found[0]["responses"],
                "ns a token": 1e9 * statistics.median(
                    (r["rollouts"] + r["batches"] + r["metrics"]) / r["tokens"] for r in found
                ),
            }  # fmt: skip
            if g == least:
                base = each["rollouts"]
            total = 1e3 * sum(each.values())
            parts = ", ".join(f"{k} {1e3 * v:.3f}" for k, v in each.items())
            what = f"driver, rollouts of at most {length} tokens: {g} generators / {least}, CPU a response"
            lines.append(measure.ratio(what, each["rollouts"] / base, ours=f"{total:.3f} ms a response ({parts})"))
    measure.write(args.json, "driver", lines, rounds=details)


if __name__ == "__main__":
    main()
