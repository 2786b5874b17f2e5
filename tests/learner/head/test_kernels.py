"""The Triton kernels against float64, in Triton's interpreter; and their compilation for GPUs that are not here."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.interpreted_kernels import NAMES, Case, as_json

from learner import logprobs

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests" / "support" / "interpreted_kernels.py"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

CASES = {
    "plain": Case(),
    "one row, one column too many for a tile": Case(rows=17, vocab=33, width=17),
    "one row": Case(rows=1, vocab=5, width=3),
    "vocabulary split among programs": Case(rows=5, vocab=200, programs=7),
    "more programs than blocks": Case(vocab=40, programs=500),
    "bias": Case(with_bias=True, vocab=100),
    "soft cap": Case(softcap=3.0, with_bias=True, spread=4.0),
    "scale and temperature": Case(scale=0.25, temperature=0.6, spread=8.0),
    "soft cap, scale and temperature": Case(softcap=5.0, scale=3.0, temperature=1.7, programs=4),
    "backward in blocks": Case(rows=10, vocab=100, block=320, with_bias=True),
    "no entropy in the loss": Case(of_entropy=0.0),
    "no log-prob in the loss": Case(of_logp=0.0, softcap=4.0),
    "without statistics": Case(statistics=False, programs=3),
    "peaked": Case(spread=25.0, vocab=150, programs=3),
    "flat": Case(spread=1e-2, vocab=150, programs=3),
    "fp16": Case(dtype="float16", with_bias=True),
    "fp16, fp32 head": Case(dtype="float16", fp32_head=True, temperature=0.7),
    "bf16": Case(dtype="bfloat16"),
    "bf16, fp32 head": Case(dtype="bfloat16", fp32_head=True, with_bias=True, softcap=6.0),
}


def random_cases(count: int) -> dict[str, Case]:
    rng, cases = random.Random(5), {}
    for i in range(count):
        cases[f"random {i}"] = Case(
            rows=rng.randint(1, 40), vocab=rng.randint(2, 260), width=rng.randint(1, 50), with_bias=rng.random() < 0.4,
            temperature=rng.choice([1.0, 0.5, 1.3]), softcap=rng.choice([None, None, 2.0, 20.0]),
            scale=rng.choice([1.0, 0.3, 2.0]), spread=rng.choice([0.1, 1.0, 6.0]), programs=rng.choice([1, 5, 40]),
            block=rng.choice([300, 2**20]), tile=(16, rng.choice([16, 32]), rng.choice([16, 32])), seed=i,
        )  # fmt: skip
    return cases


ALL = CASES | random_cases(12)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    """Runs all cases in one process, since the interpreter has to be asked for before triton is imported."""
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=as_json(list(ALL.values())), env=env, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(ALL, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_kernels_compute_what_float64_does(name: str, found: dict[str, dict[str, float]]) -> None:
    case, apart = ALL[name], found[name]
    missing = ({"kappa", "entropy_grad_sq"} if not case.statistics else set()) | (
        {"bias"} if not case.with_bias else set()
    )
    assert set(apart) == set(NAMES) - missing
    rounding = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}[case.dtype]
    for value, error in apart.items():
        if value in ("hidden", "weight", "bias"):  # gradients are in the weights' type
            limit = 1e-5 + rounding * (
                1.0 if case.fp32_head else 4.0
            )  # and logits may be rounded another way in backward
        else:
            limit = 1e-5 if case.fp32_head else 1e-5 + rounding  # float64's product may be rounded another way
        assert error <= limit, f"{value}: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "instruction"),
    [(80, "bf16", "mma.sync"), (90, "bf16", "wgmma"), (90, "fp32", "fma")],
)
def test_the_kernels_compile_for_a_gpu_that_is_not_here(
    capability: int, dtype: str, instruction: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from support.compiled_kernels import compile_all\n"
        "for name, shared, ptx in compile_all(int(sys.argv[1]), sys.argv[2]):\n"
        "    print(name, shared, int(sys.argv[3] in ptx))\n"
    )
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(capability), dtype, instruction], env=env, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {name: (int(shared), used) for name, shared, used in (line.split() for line in done.stdout.splitlines())}
    assert set(rows) == {"partial_moments", "joined_statistics", "logit_gradient"}
    assert rows["partial_moments"][1] == "1", f"the product does not use {instruction}"
    assert max(shared for shared, _ in rows.values()) <= 163 * 1024


def test_the_cpu_and_cards_without_these_tensor_cores_take_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs.has_kernels.cache_clear()
    assert not logprobs.has_kernels(torch.device("cpu"))
    card = torch.device("cuda:0")
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        logprobs.has_kernels.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert logprobs.has_kernels(card) is expected
    logprobs.has_kernels.cache_clear()
    monkeypatch.setattr(logprobs, "find_spec", lambda name: None)
    assert not logprobs.has_kernels(card)
    logprobs.has_kernels.cache_clear()
