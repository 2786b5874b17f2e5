"""Part `activations` of check.py: layers' inputs on the host, and AdamW's moments in 8 bits, on a GPU, with a model of 0.7 billion.

Gradients are compared with those of gradient checkpointing alone, and peak and time of a pass beside them. Of AdamW in 8 bits: its
bytes, that a checkpoint's values give the same codes, and that it goes on from them as it would have.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

Say = Callable[..., None]  # (what, found, ok)
MIB = 2**20
TOKENS = 16_384
SHAPE: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 16,
                         "num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 2048}  # fmt: skip
LENGTH = 1024


def activations(say: Say) -> None:
    """Runs both comparisons."""
    inputs_on_the_host(say)
    eight_bits(say)


def inputs_on_the_host(say: Say) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from learner.policy import load_policy

    folder, device = Path(mkdtemp()), torch.device("cuda")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16).save_pretrained(folder)
    tokens = torch.randint(0, 32_000, (TOKENS // LENGTH, LENGTH), device=device)
    positions = torch.arange(LENGTH, device=device).expand_as(tokens)
    predict = torch.arange(0, TOKENS, 16, device=device)
    found: dict[bool, tuple[float, int, Any]] = {}
    for offload in (False, True):
        policy = load_policy(folder, attention="sdpa", checkpointing=True, offload=offload).to(device, torch.bfloat16)
        times, resident = list[float](), 0
        for _ in range(6):
            policy.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            resident, began = torch.cuda.memory_allocated(), time.perf_counter()
            policy(tokens, positions, predict, tokens.flatten()[predict], 1.0, False)[0].sum().backward()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() - resident
        gradients = {name: p.grad.cpu() for name, p in policy.named_parameters() if p.grad is not None}
        found[offload] = statistics.median(times[1:]), peak, gradients
        del policy
        torch.cuda.empty_cache()
    (seconds, peak, there), (other, less, away) = found[False], found[True]
    far = max(float((there[n].float() - away[n].float()).norm() / there[n].float().norm()) for n in there)
    say("gradients with and without inputs on the host differ by", f"{far:.1e}", far < 1e-2)
    inputs = (SHAPE["num_hidden_layers"] - 2) * TOKENS * SHAPE["hidden_size"] * 2
    freed = peak - less
    text = f"{freed / MIB:.0f} of {peak / MIB:.0f} MiB freed, {inputs / MIB:.0f} planned"
    say(f"{TOKENS} tokens, peak of a pass", text, freed > 0.5 * inputs)
    say("seconds of a pass, without and with", f"{seconds:.3f}, {other:.3f}", other < 1.5 * seconds)


def eight_bits(say: Say) -> None:
    import torch

    from learner.optimiser import adamw
    from learner.settings import EngineSettings

    size = 64 * MIB + 100
    weights, after = [torch.zeros(size, device="cuda", requires_grad=True) for _ in range(2)], list[Any]()

    def step(weight: Any, optimiser: Any, seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        weight.grad = torch.randn(size, device="cuda", generator=generator).pow(3)
        optimiser.step()

    first: Any = adamw.build(EngineSettings(optimiser_bits=8), [{"params": [weights[0]]}], 1e-3, cuda=True)
    for seed in range(3):
        step(weights[0], first, seed)
    second: Any = adamw.build(EngineSettings(optimiser_bits=8), [{"params": [weights[1]]}], 1e-3, cuda=True)
    weights[1].data.copy_(weights[0].data)
    old, new = (adamw.values_of(o, w) for o, w in zip((first, second), weights, strict=True))
    adamw.StepCount(second.state[weights[1]]).set(3)
    for key, moment in old.items():
        adamw.range_of(new[key], 0, size).write(0, adamw.range_of(moment, 0, size).read())
        stored = [adamw.range_of(m[key], 0, size).stored for m in (old, new)]
        other = [int((a != b).sum()) for a, b in zip(*stored, strict=True)]
        held = sum(t.nbytes for t in stored[0])
        say(f"{key} in 8 bits: other codes and scales after a checkpoint", other, sum(other) == 0)
        say(f"{key}: bytes an element", f"{held / size:.4f}", held / size < 1.02)
    for weight, optimiser in zip(weights, (first, second), strict=True):
        step(weight, optimiser, 9)
        after.append(weight.detach())
    say("the next step is the same", "equal bits", torch.equal(*after))
