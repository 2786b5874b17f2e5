"""Parts `run`, `ledger` and `size` of check.py: `isentrope train` on shares of the GPU, and what the ledger costs there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Say = Callable[..., None]  # (what, found, ok)
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "countdown-tiny"


SHARES = (
    "generators.count=1", "generators.gpus=0.4", "generators.cpus=1", "generators.kv_cache_mb=1024", "learner.gpus=0.4",
    "learner.cpus=1", "cluster.num_cpus=4",
)  # fmt: skip


def train(
    folder: Path,
    name: str,
    limit: float,
    *overrides: str,
    recipe: str = "lab-countdown",
    placed: Sequence[str] = SHARES,
) -> tuple[int, str, list[dict[str, Any]]]:
    """Returns (exit code, end of the output, rows of metrics.jsonl). placed: where the actors are."""
    arguments = ["train", recipe, *placed, f"run.name={name}", f"run.dir={folder}", *overrides]
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "HF_HUB_OFFLINE": "1",
        "TERM": "dumb",
    }
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration", *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = -9
            process.wait(30)
    output = (folder / f"{name}.log").read_text()
    at = folder / name / "metrics.jsonl"
    rows = [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else []
    return code, output[-1500:], [r for r in rows if "entropy/exact" in r]


def column(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float(r[key]) for r in rows if key in r]


def middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan


def run(say: Say) -> None:
    folder = Path(tempfile.mkdtemp())
    for precision in ("fp32", "bf16", "fp16", "bf16-fp32head"):
        began = time.monotonic()
        code, output, rows = train(
            folder, precision, 120, f"precision={precision}", "run.iterations=4", "evaluation.prompts=20", "evaluation.samples=4",
            "evaluation.ks=[1,4]", "checkpoint.every=2", "entropy.method={kind: repo}", "entropy.controller={kind: isentropic}",
        )  # fmt: skip
        if code or len(rows) < 4:
            say(f"{precision}: isentrope train", f"exit {code}: {' '.join(output.split())[-700:]}", False)
            continue
        gap, outside = (max(column(rows, k), default=math.nan) for k in ("sync/logprob_gap_max", "gap/outside"))
        entropy, step = column(rows, "entropy/exact"), middle(column(rows, "time/iteration")[1:])
        text = (
            f"entropy {entropy[0]:.3f} to {entropy[-1]:.3f}, engine gap max {gap:.1e}, outside [.9, 1.1] {outside:.1e}, "
            f"{step:.2f} s an iteration, {time.monotonic() - began:.0f} s in all"
        )
        say(f"{precision}: isentrope train, 4 iterations", text, True)


def ledger(say: Say) -> None:
    script = [sys.executable, str(ROOT / "tests/benchmarks/ledger_cost.py"), "--cuda"]
    shape = "--hidden 1024 --layers 16 --vocab 50000 --response 256 --prompts 16 --responses 8 --updates 4 --repeats 5"
    done = subprocess.run([*script, *shape.split()], capture_output=True, text=True, timeout=110, check=False)
    result = " / ".join(done.stdout.strip().splitlines()[-2:]) or done.stderr[-600:]
    say("the ledger's cost, 0.3 B parameters", result, done.returncode == 0)


def size(say: Say) -> None:
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    folder = Path(tempfile.mkdtemp())
    small = json.loads((MODEL / "config.json").read_text())
    config = Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=4096,
        **{k: small[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in small},
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "model")
    for file in MODEL.iterdir():
        if file.name != "config.json" and not file.name.endswith(".safetensors"):
            shutil.copy(file, folder / "model" / file.name)
    wanted = (
        "precision=bf16 run.iterations=4 sampling.max_tokens=512 generators.max_model_len=640 generators.max_num_seqs=256 "
        "generators.kv_cache_mb=16000 batch.prompts=32 batch.responses=8 learner.updates=2 learner.micro_batch_tokens=16384 "
        "learner.lr=1.0e-6 weights.timeout_s=120 evaluation.prompts=0"
    )
    code, output, rows = train(folder, "size", 220, f"model.path={folder / 'model'}", *wanted.split())
    if code or len(rows) < 3:
        say("0.6 B parameters in bf16", f"exit {code}: {' '.join(output.split())[-900:]}", False)
        return
    times = {k: middle(column(rows[1:], k)) for k in sorted(rows[-1]) if k.startswith("time/")}
    say(
        "0.6 B parameters in bf16, 256 responses of up to 512 tokens",
        ", ".join(f"{k[5:]} {v:.2f} s" for k, v in times.items()),
        True,
    )
    say(
        "tokens trained an iteration; engine gap mean",
        f"{rows[-1].get('tokens/trained')}; {rows[-1].get('gap/engine_mean'):.1e}",
        True,
    )
