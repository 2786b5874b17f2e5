"""Plays two ranks of a learner group that read a model once and send it in buckets: real DeepSpeed and gloo."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from integration.learner_cases import batches, settings

BUCKET = 1 << 14  # of the tiny model's 200 KB: many gathers and many buckets
TIMEOUT = 60.0
SCORED = [(1, 2, 3, 4), (5, 6)]  # while engines load: a collective under ZeRO-3, also where a transfer failed


def rank_main(rank: int, world: int, port: int, model: str, cases: list[dict[str, Any]], out: str) -> None:
    """Runs every case on one rank of one group; rank 0 writes out/NAME.npz, every rank out/NAME-RANK.json."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from dataclasses import replace

    from learner.deepspeed_engine import RankPlace
    from learner.learner import Learner

    place = RankPlace(rank, world, "127.0.0.1", port, False, TIMEOUT)
    for case in cases:
        chosen = settings(case.get("model", model), case)
        reads = count_reads(case.get("all_read", False))
        learner = Learner(replace(chosen, bucket_bytes=BUCKET, shared_memory=case.get("memory", True)), place)
        found: dict[str, Any] = {"reads": reads()}
        loaded = learner.engine.whole_weights(learner.policy.weights())
        arrays = {
            f"loaded {n}": t.float().numpy().copy() for n, t in loaded.items()
        }  # below ZeRO-3 they are the model's own
        buffers = {n: b.float().numpy() for n, b in learner.policy.named_buffers()}
        found["buffers"] = float(sum(np.abs(b).sum() for b in buffers.values()))
        found["training"] = learner.policy.model.training
        found["metrics"] = learner.train(batches(0, world, 200, False, "token")[rank])
        if "sends" in case:
            found["sent"] = play_transfers(learner, case["sends"], arrays)
        stepped = learner.engine.whole_weights(learner.policy.weights())
        if rank == 0:
            arrays |= {f"stepped {n}": t.float().numpy() for n, t in stepped.items()}
            save: Any = np.savez  # its annotation takes names for its own options
            save(Path(out) / f"{case['name']}.npz", **arrays)
        (Path(out) / f"{case['name']}-{rank}.json").write_text(json.dumps(found))
        learner.release()


def count_reads(all_read: bool) -> Any:
    """Counts how often this process reads weights from now on; all_read: the model without its weights is always another."""
    from transformers import AutoModelForCausalLM

    from learner.training_state import one_read

    auto: Any = AutoModelForCausalLM
    original = getattr(auto, "plain_read", auto.from_pretrained)
    auto.plain_read = original
    seen: list[str] = []

    def read(path: str, **options: Any) -> Any:
        seen.append(path)
        return original(path, **options)

    auto.from_pretrained = read
    plain = one_read.__dict__.setdefault("plain_structure", one_read.structure)
    one_read.structure = (lambda model: plain(model) + int(os.environ["RANK"])) if all_read else plain
    return lambda: len(seen)


def receive(kind: str, subscriber: Any, manifest: Any, got: dict[str, np.ndarray]) -> None:
    for name, tensor in subscriber.receive(manifest):
        got[name] = tensor.float().numpy().copy()
        if kind == "torn" and len(got) == 3:
            subscriber.close()
            return


def close(found: list[list[float]], expected: list[list[float]]) -> bool:
    """Says whether log-probs of sequences that were scored together are those of each alone."""
    pairs = zip(found, expected, strict=True)
    return all(len(a) == len(b) and np.allclose(a, b, rtol=0, atol=1e-5) for a, b in pairs)


def play_transfers(learner: Any, sends: list[str], arrays: dict[str, np.ndarray]) -> list[str]:
    """Publishes once for each of `sends`, with an engine in a thread of rank 0; returns how each went.

    "whole" arrives, "nobody" has no engine that comes, "torn" loses its engine after a few tensors.
    """
    from learner.weights.protocol import WeightSyncError, make_rendezvous
    from learner.weights.subscriber import Subscriber

    went: list[str] = []
    for version, kind in enumerate(sends):
        manifest = learner.manifest(version)
        expected = learner.sequence_logprobs(SCORED)
        if learner.rank != 0:
            _, logprobs = learner.publish(manifest, SCORED)
            went.append("gathered" if close(logprobs, expected) else "scored otherwise")
            continue
        limit = 1.0 if kind == "nobody" else TIMEOUT
        own, end = make_rendezvous("127.0.0.1", learner.listen(), [("generator 0", 1)], "gloo", version)
        subscribers: list[Subscriber] = []
        joining = threading.Thread(target=lambda e=end, s=subscribers: s.append(Subscriber(e, TIMEOUT)))
        joining.start()
        learner.connect_weights(own, limit)
        joining.join(TIMEOUT)
        got: dict[str, np.ndarray] = {}

        receiving = threading.Thread(target=receive, args=(kind, subscribers[0], manifest, got))
        if kind != "nobody":
            receiving.start()
        try:
            checksum, logprobs = learner.publish(manifest, SCORED)
            receiving.join(TIMEOUT)
            arrived = "arrived" if checksum == subscribers[0].checksum else "another checksum"
            went.append(arrived if close(logprobs, expected) else "scored otherwise")
            arrays |= {f"sent {n}": t for n, t in got.items()}
        except WeightSyncError as error:
            went.append(f"failed: {error.phase}")
    return went
