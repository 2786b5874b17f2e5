"""Runs the start's check with real parts: on ranks of a learner group (DeepSpeed, gloo), and against a vLLM engine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from integration import learner_cases

SEQUENCES = [[(7 * i * i + 3 * k * i + k) % 48 for i in range(20 + k)] for k in range(4)]


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Writes, on rank 0, what each case's learner measured, and whether it was left as it was: NAME.json."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from dataclasses import asdict

    from learner.learner import Learner
    from learner.rank_settings import RankPlace

    placement = RankPlace(rank, world, "127.0.0.1", port, False, 120.0)
    for case in cases:
        settings = learner_cases.settings(model, case)
        plan = learner_cases.batches(0, world, 200, False, "token")[rank]
        untouched = Learner(settings, placement)
        untouched.train(plan)
        expected = learner_cases.weights(untouched)
        learner = Learner(settings, placement)
        before = learner_cases.weights(learner)
        check = learner.check_model(SEQUENCES)
        logprobs = learner.sequence_logprobs(SEQUENCES)
        learner.engine.scale_weights(0.5)
        halved, sent = learner.sequence_logprobs(SEQUENCES), learner_cases.weights(learner)
        learner.engine.scale_weights(2.0)
        after, again = learner_cases.weights(learner), learner.sequence_logprobs(SEQUENCES)
        learner.train(plan)
        trained = learner_cases.weights(learner)
        if rank == 0:
            same = {
                "sent": all(np.array_equal(sent[k], 0.5 * before[k]) for k in before),
                "restored": all(np.array_equal(after[k], before[k]) for k in before) and again == logprobs,
                "trained": all(np.array_equal(trained[k], expected[k]) for k in expected),
            }
            measured = {"check": asdict(check), "logprobs": logprobs, "halved": halved, "same": same}
            (Path(out) / f"{case['name']}.json").write_text(json.dumps(measured))
        learner.close() if case is cases[-1] else None


def refusals(folder: str, family: str = "qwen3", tied: bool = True) -> dict[str, str]:
    """Checks one real engine as it is and in several broken ways; returns how each ended: "" where it passed."""
    import torch
    from integration import weight_sync_bench

    from learner.model_check import check_model
    from learner.policy import Policy
    from learner.weights.protocol import make_manifest
    from orchestration.cluster.start_check import StartCheck, StartRules
    from orchestration.errors import ModelRefused

    sequences = [list(ids) for ids in weight_sync_bench.prompts(4, 40)]
    rules = StartRules(family, trainer="fp32", exact=True, precision="fp32", max_gap=None, packing=True)
    ended: dict[str, str] = {}
    with weight_sync_bench.bench(folder, family, tied) as bench:
        policy = Policy(bench.model)  # type: ignore[arg-type]

        class Trainer:
            def forward(self, micro: Any) -> Any:
                arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
                return policy(*map(torch.tensor, arrays), 1.0)[0]

            async def check_model(self, ids: Any) -> Any:
                return check_model(policy, policy, self.forward, torch.device("cpu"), ids, True)

            async def sequence_logprobs(self, ids: Any) -> list[list[float]]:
                return [bench.logprobs(x).gather(1, torch.tensor(x[1:])[:, None])[:, 0].tolist() for x in ids]

            async def scale_weights(self, factor: float) -> None:
                with torch.no_grad():
                    for parameter in bench.model.parameters():
                        parameter.mul_(factor)

        class Engine:
            name = "generator 0"

            async def sequence_logprobs(self, ids: Any) -> list[list[float]]:
                return bench.engine.sequence_logprobs(ids)

        def run(name: str, change: Callable[[list[Any]], list[Any]] = lambda tensors: tensors) -> None:
            """change: what reaches the engine instead of the tensors that the trainer sends."""

            async def transfer() -> None:
                bench.version += 1
                sent = change(weight_sync_bench.sendable(bench.model))
                manifest = make_manifest(sent, bench.version, 2**14)
                received = weight_sync_bench.in_thread(lambda: bench.engine.receive_weights(manifest, 60.0))
                bench.publisher.publish(manifest, sent)
                received.result(60.0)

            trainer: Any = Trainer()
            engines: Any = lambda: [Engine()]  # noqa: E731
            check = StartCheck(trainer, engines, transfer, sequences, rules)
            try:
                ended[name] = "; ".join(asyncio.run(check.run(untouched=True)).remarks)
            except ModelRefused as error:
                ended[name] = str(error)

        kept = {n: t.clone() for n, t in weight_sync_bench.sendable(bench.model)}
        run("right")
        stuck = next(n for n in kept if n.endswith("down_proj.weight"))
        run("a copy is kept", lambda sent: [(n, kept[n] if n == stuck else t) for n, t in sent])
        run("right again")  # a refusal leaves the engine as the transfer that it was found in did
        run("nothing arrives", lambda sent: [(n, kept[n]) for n, _ in sent])
        bench.perturb()  # the engine has the weights of before, the halved ones did not reach it
        run("loaded other weights")
        with torch.no_grad():
            policy.model.base_model.layers[0].mlp.down_proj.weight.mul_(1.5)  # type: ignore[union-attr, operator, index]
        run("another model", lambda sent: [(n, t / 1.5 if n == stuck else t) for n, t in sent])
        run("a name is missing", lambda sent: [(n, t) for n, t in sent if n != stuck])
    return ended
