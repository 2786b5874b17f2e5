"""Runs the cases of test_adapter_sync.py in a process of their own: an adapter on its way into a real vLLM.

Each builds a tiny random model, serves it with an adapter, changes the adapter and compares log-probs after every update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from integration.weight_sync_bench import CONFIGS, MAX_LEN, TIMEOUT, Bench, in_thread, prompts, requests_for

from actors.inference import SamplingParams
from actors.settings import EngineDtype, GeneratorSettings, VLLMSettings
from actors.vllm_engine import VLLMEngine
from learner.policy import Policy
from learner.settings import LoraSettings
from learner.weights.network import listen
from learner.weights.protocol import WeightSyncError, make_manifest, make_rendezvous
from learner.weights.publisher import Publisher

SEQUENCES = [*prompts(1, 2), *prompts(2, 40), *prompts(1, MAX_LEN)]


@dataclass
class AdaptedBench(Bench):
    """Holds a bench whose twin is a policy with an adapter, which alone travels."""

    policy: Any = None

    def learn(self, scale: float = 0.03) -> float:
        """Moves everything that is trained; returns how far that moves a log-prob."""
        before, numbers = self.logprobs(SEQUENCES[-1]), torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for _, parameter in self.policy.adapter.trained():
                parameter.add_(scale * torch.randn(parameter.shape, generator=numbers))
        return float((self.logprobs(SEQUENCES[-1]) - before).abs().max())

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(n, t.detach()) for n, t in self.policy.weights()]

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> int:
        """Sends a version; returns the bytes of its tensors. Raises WeightSyncError."""
        self.version += 1
        manifest = make_manifest(tensors, self.version, 2**14)
        received = in_thread(lambda: self.engine.receive_weights(manifest, TIMEOUT))
        sent = self.publisher.publish(manifest, tensors)
        assert sent == received.result(TIMEOUT)
        return sum(spec.nbytes for spec in manifest.tensors)


def load(folder: str | Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make_model(path: Path, family: str, tied: bool = True) -> str:
    """Writes a tiny random model; `family` may be a Hugging Face folder as well, which is used as it is."""
    if family not in CONFIGS:
        return family
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](tied), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # the usual init is so small that every token is equally likely
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


@contextmanager
def bench(folder: str, family: str, lora: LoraSettings, dtype: EngineDtype = "float32") -> Iterator[AdaptedBench]:
    torch.set_num_threads(1)
    path = make_model(Path(folder) / family, family)
    policy = Policy(load(path)).cast(getattr(torch, dtype))
    policy.adapt(lora, path, 0)
    generator = GeneratorSettings(max_model_len=MAX_LEN, max_num_seqs=64, kv_cache_mb=32, gpu_memory_utilization=0.2)
    engine = VLLMEngine(VLLMSettings(model=path, generator=generator, dtype=dtype, lora=lora), start_timeout_s=180)
    publisher = connect(engine, 0)
    try:
        yield AdaptedBench(policy.model, engine, publisher, policy=policy)
    finally:
        publisher.close()
        engine.close()


def connect(engine: VLLMEngine, epoch: int) -> Publisher:
    listener = listen("127.0.0.1")
    mine, theirs = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", epoch)
    joined = in_thread(lambda: engine.connect_weights(theirs, TIMEOUT))
    publisher = Publisher(mine, TIMEOUT, listener=listener)
    joined.result(TIMEOUT)
    return publisher


def many_updates(folder: str, family: str, lora: LoraSettings, updates: int = 20) -> dict[str, float]:
    """Returns the largest gaps between engine and trainer over all updates, how far one moves a log-prob, and the bytes of each."""
    with bench(folder, family, lora) as b:
        found = {"start": b.worst_score(SEQUENCES), "score": 0.0, "sample": 0.0, "moved": 0.0}
        for _ in range(updates):
            found["moved"] = max(found["moved"], b.learn())
            found["sent"] = b.send(b.tensors())
            requests = requests_for(4, SamplingParams(8, temperature=0.7), seed=b.version)
            responses = b.sample(requests)
            assert {(r.version_min, r.version_max) for r in responses} == {(b.version, b.version)}
            found["score"] = max(found["score"], b.worst_score(SEQUENCES))
            found["sample"] = max(found["sample"], b.worst_sample(requests, responses))
        found["trained"] = sum(p.nbytes for _, p in b.policy.adapter.trained())
        assert b.engine.stats().updates == updates
    return found


def small_update_in_bf16(folder: str, lora: LoraSettings, scale: float) -> dict[str, float]:
    """Compares the change that a small update makes to log-probs where weights and activations are bf16, in the engine and in the
    trainer: the slopes of it on the change in exact arithmetic."""
    with bench(folder, "llama", lora, "bfloat16") as b:
        exact = Policy(load(Path(folder) / "llama"))
        exact.cast(torch.bfloat16).cast(torch.float32)  # the rounded weights, in exact arithmetic
        exact.adapt(lora, "", 0)
        sequences = prompts(24, 60)

        def scores() -> dict[str, torch.Tensor]:
            served = torch.tensor([x for row in b.engine.sequence_logprobs(sequences) for x in row])
            return {
                "engine": served,
                "trainer": chosen(b.policy.model, sequences),
                "exact": chosen(exact.model, sequences),
            }

        before = scores()
        b.learn(scale)
        own = dict(exact.adapter.trained()) if exact.adapter is not None else {}
        with torch.no_grad():
            for name, parameter in b.policy.adapter.trained():
                own[name].copy_(parameter)
        b.send(b.tensors())
        after = scores()
        made = {name: after[name] - before[name] for name in before}
        wanted = made.pop("exact")
        return {name: float((change * wanted).sum() / (wanted * wanted).sum()) for name, change in made.items()}


def chosen(model: Any, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    rows = []
    for tokens in sequences:
        with torch.no_grad():
            table = model(torch.tensor([list(tokens)])).logits[0, :-1].float().log_softmax(-1)
        rows.append(table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0])
    return torch.cat(rows)


def broken(folder: str) -> list[str]:
    """Sends incomplete adapters of several kinds; returns the errors. A complete one mends the engine."""
    messages: list[str] = []
    with bench(folder, "qwen3", LoraSettings(rank=4, targets=("q_proj", "o_proj"))) as b:
        b.learn()
        whole = b.tensors()
        wrong = [
            [*whole, ("model.layers.0.mlp.up_proj.lora_A.weight", torch.zeros(4, 64))],
            [(n, t) for n, t in whole if n != "model.layers.1.self_attn.q_proj.lora_B.weight"],
            [(n, t[:2] if n.endswith("0.self_attn.o_proj.lora_A.weight") else t) for n, t in whole],
        ]
        for epoch, tensors in enumerate(wrong, 1):
            try:
                b.send(tensors)
            except WeightSyncError as error:
                messages.append(str(error))
            b.publisher.close()
            b.publisher = connect(b.engine, epoch)
        b.send(whole)
        assert b.worst_score(SEQUENCES) < 1e-5
    return messages
