"""Runs that train an adapter, through the command line: they learn what full training learns, resume exactly, and are exported.

Every run is a process of its own with a Ray cluster of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.test_run import finish, isentrope, rows, smoke, untimed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SHORT = ("run.iterations=4", "checkpoint.every=2", "evaluation.prompts=0", "learner.lr=1e-2")
LORA = ("learner.lora=4", "objective.kl.coefficient=0.01")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model that has seen a little of the task, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("model")
    code, out = finish(
        isentrope("init-model", "--env", "arithmetic", "--out", str(folder / "m"), "steps=60", cwd=folder)
    )
    assert code == 0, out
    return folder / "m"


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    code, out = finish(isentrope(*smoke(model, "adapter", *SHORT, *LORA), cwd=folder), 300)
    assert code == 0, out
    assert "trainer and engines compute the same, the first transfer included" in out
    return folder / "runs" / "adapter"


def test_the_adapters_bytes_are_all_that_travels_and_the_engine_is_the_trainer(undisturbed: Path) -> None:
    saved = load_file(undisturbed / "checkpoints" / "step_000004" / "hf" / "adapter_model.safetensors")
    for row in rows(undisturbed):
        assert row["sync/bytes"] == sum(t.nbytes for t in saved.values())
        assert row["sync/logprob_gap_max"] < 1e-4
    assert rows(undisturbed)[0]["kl/reference"] == 0 < rows(undisturbed)[-1]["kl/reference"]


def test_a_resumed_run_is_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "adapter"
    shutil.copytree(undisturbed, run)
    for at in ("checkpoints/step_000004", "report.html"):
        path = run / at
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out = finish(isentrope("resume", str(run), "learner.lora=8", cwd=tmp_path))
    assert code == 2 and "a resumed run cannot change it" in out
    code, out = finish(isentrope("resume", str(run), cwd=tmp_path), 300)
    assert code == 0, out
    again, expected = rows(run), rows(undisturbed)
    assert [untimed(row) for row in again] == [untimed(row) for row in expected]
    for name in ("hf/adapter_model.safetensors", "engine/rank_0000_00000.safetensors"):
        ours, theirs = (load_file(folder / "checkpoints" / "step_000004" / name) for folder in (run, undisturbed))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_exported_as_an_adapter_and_merged_it_is_the_same_policy(
    undisturbed: Path, model: Path, tmp_path: Path
) -> None:
    answers = {}
    for name, more in (("adapter", ()), ("merged", ("--merged",))):
        code, out = finish(isentrope("export", str(undisturbed), str(tmp_path / name), *more, cwd=tmp_path))
        assert code == 0, out
        assert (tmp_path / name / "tokenizer.json").is_file()
        exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        answers[name] = exported(torch.arange(2, 12)[None]).logits
    assert float((answers["adapter"] - answers["merged"]).abs().max()) < 1e-5
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert float((answers["merged"] - base(torch.arange(2, 12)[None]).logits).abs().max()) > 1e-3
    assert "peft_type" in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_export_refuses_in_a_sentence_and_writes_nothing(undisturbed: Path, model: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    torn = tmp_path / "torn"
    shutil.copytree(undisturbed, torn)
    (torn / "checkpoints" / "step_000004" / "hf" / "adapter_model.safetensors").write_bytes(b"torn")
    cases = {
        (str(undisturbed), "there"): "exists: give a folder that does not",
        (str(model), "new"): "is not a run or a checkpoint of one",
        (str(torn), "new"): "adapter_model.safetensors should have",
    }
    for (source, out), sentence in cases.items():
        code, said = finish(isentrope("export", source, str(tmp_path / out), cwd=tmp_path))
        assert code == 2 and sentence in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "new").exists() and not list(there.iterdir())
    code, said = finish(isentrope("eval", str(undisturbed), cwd=tmp_path))
    assert code == 2 and "is an adapter: `isentrope export" in said and len(said.splitlines()) == 1, said
