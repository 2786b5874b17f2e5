"""Measures one family in a process of its own: `python tests/models/one_family.py NAME RESULT.json LOG`.

A small random model is saved, loaded by the trainer and served by a real engine. Then the policy takes real gradient steps, and
after each its weights go to the engine over the real channel. Everything measured is in nats, the largest over the tokens.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for path in (str(ROOT), str(ROOT / "tests")):
    if path not in sys.path:  # run as a script
        sys.path.insert(0, path)

import torch  # noqa: E402
from models.families import BY_NAME, VOCAB, Family  # noqa: E402
from models.served import Served  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from actors.inference import EngineDead  # noqa: E402
from learner.policy import Policy, load_policy  # noqa: E402
from learner.weights.network import listen  # noqa: E402
from learner.weights.protocol import WeightSyncError, make_manifest, make_rendezvous  # noqa: E402
from learner.weights.publisher import Publisher  # noqa: E402

UPDATES = 20
LR = 3e-3
SECONDS = 60.0
LENGTHS = (24, 17, 9, 13)


def make_model(family: Family, folder: str) -> None:
    """Saves a random model whose norms, biases and router are not at their neutral starting values."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family.kind](**family.config)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=family.scale)
            elif "A_log" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def alone(policy: Policy, sequences: list[list[int]]) -> list[list[float]]:
    """Returns the trainer's log-probs of tokens 1.. of each sequence, one sequence a forward."""
    out: list[list[float]] = []
    with torch.no_grad():
        for ids in sequences:
            tokens, n = torch.tensor([ids]), len(ids) - 1
            logp, *_ = policy(tokens, torch.arange(n + 1)[None], torch.arange(n), tokens[0, 1:], 1.0)
            out.append(logp.tolist())
    return out


def together(policy: Policy, sequences: list[list[int]], packed: bool) -> list[list[float]]:
    """Returns the same of all sequences in one forward: behind each other in a row, or in rows padded on the right."""
    predict, targets = [], []
    if packed:
        tokens = torch.tensor([list(itertools.chain.from_iterable(sequences))])
        positions = torch.cat([torch.arange(len(s)) for s in sequences])[None]
        starts = [sum(map(len, sequences[:i])) for i in range(len(sequences))]
    else:
        width = max(map(len, sequences))
        tokens = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
        positions = torch.arange(width).expand(len(sequences), width)
        starts = [i * width for i in range(len(sequences))]
    for start, ids in zip(starts, sequences, strict=True):
        predict.append(start + torch.arange(len(ids) - 1))
        targets.append(torch.tensor(ids[1:]))
    with torch.no_grad():
        logp, *_ = policy(tokens, positions, torch.cat(predict), torch.cat(targets), 1.0)
    return [part.tolist() for part in logp.split([len(s) - 1 for s in sequences])]


def plain(model: Any, sequences: list[list[int]]) -> list[list[float]]:
    """Returns what the model's own forward gives: log-softmax of `model(input_ids=...).logits`."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([s]), use_cache=False).logits[0, :-1].float() for s in sequences]
    return [
        row.log_softmax(-1).gather(-1, torch.tensor(s[1:])[:, None])[:, 0].tolist()
        for row, s in zip(rows, sequences, strict=True)
    ]


def gap(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def step(policy: Policy, optimizer: torch.optim.Optimizer, seed: int, packed: bool) -> None:
    """Takes one policy-gradient step on random tokens with random advantages: weights move by about LR each."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCAB, (2, 16), generator=generator)
    positions = torch.arange(16).expand(2, 16)
    predict = torch.cat([torch.arange(15), 16 + torch.arange(15)])
    targets, advantages = tokens[:, 1:].flatten(), torch.randn(30, generator=generator)
    if packed:
        tokens, positions = tokens.reshape(1, 32), positions.reshape(1, 32)
    logp, entropy, *_ = policy(tokens, positions, predict, targets, 1.0)
    loss = -(advantages * logp).mean() - 0.01 * entropy.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _as_served(policy: Policy, family: Family) -> Policy:
    """Returns the policy in the engine's type: itself, or a copy whose float32 masters go on being trained."""
    if family.dtype == "float32":
        return policy
    return copy.deepcopy(policy).cast(getattr(torch, family.dtype))


class Wire:
    """Connects the policy to an engine by the real weight channel."""

    def __init__(self, policy: Policy, engine: Served, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.policy, self.engine, self.version = policy, engine, 0
        listener = listen("127.0.0.1")
        mine, theirs = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 1)
        with ThreadPoolExecutor(1) as pool:
            publisher = pool.submit(Publisher, mine, SECONDS, listener=listener)
            engine.call("connect_weights", theirs, SECONDS)
            self.publisher = publisher.result()

    def send(self) -> None:
        """Sends the weights in the engine's type, under the names they have on disk. Raises WeightSyncError."""
        self.version += 1
        weights = [part for n, p in self.policy.weights() for part in self.policy.on_disk(n, p.detach().to(self.dtype))]
        manifest = make_manifest(weights, self.version)
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(self.publisher.publish, manifest, weights)
            received = self.engine.call("receive_weights", manifest, SECONDS)
            assert sent.result() == received


def measure(family: Family, folder: str, log: str) -> dict[str, Any]:
    """Returns the family's row of the table. log: where the engine's output goes."""
    make_model(family, folder)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    policy = load_policy(folder, attention="sdpa", checkpointing=False)
    row: dict[str, Any] = {"class": type(policy.model).__name__, "attention": policy.model.config._attn_implementation}
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=row["attention"])
    start = alone(policy, sequences)
    row["plain"] = gap(start, plain(own.eval(), sequences))
    row["padded"] = gap(start, together(policy, sequences, False))
    row["packed"] = gap(start, together(policy, sequences, True))
    start = alone(_as_served(policy, family), sequences)
    begun = time.monotonic()
    try:
        engine = Served(folder, family.dtype, log)
        row["engine_start_s"] = time.monotonic() - begun
        row["before"] = gap(engine.call("sequence_logprobs", sequences), start)
    except EngineDead as error:
        return {**row, "refused": str(error).replace(folder, "the model")}
    wire = Wire(policy, engine, getattr(torch, family.dtype))
    try:
        wire.send()
        row["unchanged"] = gap(engine.call("sequence_logprobs", sequences), start)
        after: list[float] = []
        optimizer = torch.optim.AdamW(policy.parameters(), LR)
        for update in range(UPDATES):
            step(policy, optimizer, update, packed=family.packs and update % 2 == 1)
            wire.send()
            after.append(gap(engine.call("sequence_logprobs", sequences), alone(_as_served(policy, family), sequences)))
        served = engine.call("sequence_logprobs", sequences)
    except (WeightSyncError, EngineDead) as error:
        return {**row, "refused": str(error).replace(folder, "the model")}
    finally:
        engine.close()
    row["after"], row["moved"] = max(after), gap(served, start)
    policy = _as_served(policy, family)
    row["padded_after"] = gap(served, together(policy, sequences, False))
    row["packed_after"] = gap(served, together(policy, sequences, True))
    row["plain_after"] = gap(served, plain(policy.model, sequences))
    return row


def main(name: str, result: str, log: str) -> None:
    """Measures the family `name` into the file `result`; what libraries print goes to `log`."""
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(BY_NAME[name], folder, log + ".engine")
        Path(result).write_text(json.dumps(row))
    os._exit(0)  # the engine's threads would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
