"""The check before the first update with the real parts: DeepSpeed's hooks under every ZeRO stage, and whole runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from integration import learner_cases, start_check_cases
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = [
    {"name": f"{precision}-zero{stage}", "stage": stage, "precision": precision}
    for precision, stage in (("fp32", 0), ("fp32", 3), ("bf16", 0), ("bf16", 1), ("bf16", 3), ("bf16-fp32head", 3))
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns the case's name -> what its learner measured, and the path of the model under "model"."""
    model, out = learner_cases.make_model(str(tmp_path_factory.mktemp("model"))), tmp_path_factory.mktemp("out")
    learner_cases.run_ranks(start_check_cases.rank_main, 2, model, CASES, out)
    return {"model": model, **{c["name"]: json.loads((out / f"{c['name']}.json").read_text()) for c in CASES}}


def gap(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(p - q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True))


def plain(model: str, scale: float) -> list[list[float]]:
    """Computes the log-probs with transformers alone, every weight multiplied."""
    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
        tables = [net(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in start_check_cases.SEQUENCES]
    pairs = zip(tables, start_check_cases.SEQUENCES, strict=True)
    return [[float(table[i, t]) for i, t in enumerate(ids[1:])] for table, ids in pairs]


@pytest.mark.parametrize("case", [c["name"] for c in CASES])
def test_every_stage_and_precision_is_measured_and_left_bit_for_bit_as_it_was(
    measured: dict[str, Any], case: str
) -> None:
    one = measured[case]
    assert one["same"] == {"sent": True, "restored": True, "trained": True}
    assert gap(one["check"]["head"], one["check"]["plain"]) < 1e-4
    exact = case.startswith("fp32")
    for how in ("padded", "packed"):  # packed too: nobody said whether batches are to be
        assert gap(one["check"]["alone"], one["check"][how]) < (2e-5 if exact else 0.2), how
    tolerance = 2e-5 if exact else 0.3
    assert gap(one["logprobs"], plain(measured["model"], 1.0)) < tolerance
    assert gap(one["halved"], plain(measured["model"], 0.5)) < tolerance
    assert gap(one["halved"], one["logprobs"]) > 0.5


def test_each_fault_of_a_real_engine_has_its_own_sentence(tmp_path: Path) -> None:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as child:
        ended = child.submit(start_check_cases.refusals, str(tmp_path)).result(300)
    assert ended["right"] == ""
    assert ended["right again"].endswith("and agrees since the first transfer")
    for name in ("a copy is kept", "nothing arrives"):
        assert ended[name].startswith("weight transfer: log-probs of generator 0 for qwen3 were "), ended[name]
        assert "all of them halved" in ended[name]
    assert ended["loaded other weights"].endswith("and agrees since the first transfer")
    assert ended["another model"].startswith("implementation: "), ended["another model"]
    assert ended["a name is missing"].startswith("weight names: generator 0 cannot load "), ended["a name is missing"]
    assert "down_proj" in ended["a name is missing"]


# --- whole runs -----------------------------------------------------------------------------------------------------------


def isentrope(*arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "arithmetic"
    code, out = isentrope("init-model", "--env", "arithmetic", "--out", str(folder), "steps=2", cwd=folder.parent)
    assert code == 0, out
    return folder


def start(model: Path, folder: Path, *more: str) -> tuple[int, str]:
    small = ("run.iterations=1", "evaluation.prompts=0", "learner.packing=true", "checkpoint.every=0")
    return isentrope("train", "smoke", f"model.path={model}", "run.name=start", *small, *more, cwd=folder)


def test_a_model_that_all_compute_alike_is_trained(model: Path, tmp_path: Path) -> None:
    code, out = start(model, tmp_path, "precision=bf16", "generators.count=2", "generators.cpus=0.3")
    assert code == 0, out
    (row,) = [json.loads(line) for line in (tmp_path / "runs" / "start" / "metrics.jsonl").read_text().splitlines()]
    assert row["policy_version"] == 1
    assert row["sync/logprob_gap_mean"] < 0.1


def test_a_model_whose_logits_the_trainer_changes_is_refused_with_nothing_written(model: Path, tmp_path: Path) -> None:
    """The configuration claims a cap, which the trainer applies, and transformers' own model of this family does not."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 0.5}))
    code, out = start(broken, tmp_path)
    assert code == 4, out
    assert "logit scale or head: the trainer's log-probs of" in out
    assert "precision" not in out.strip().splitlines()[-1]
    folder = tmp_path / "runs" / "start"
    assert not (folder / "metrics.jsonl").exists()
    assert not (folder / "checkpoints" / "latest").exists()
