"""Tests the checks of the storm, the soak and the elastic row, on runs made up for it: right ones pass, wrong ones are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos import asynchronous, elastic, soak, storm
from chaos.harness import Failed, Run
from chaos.soak import Memory


def run_with(folder: Path, samples: list[dict[str, Any]], **files: list[dict[str, Any]]) -> Run:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = Run(folder, process, "marker", "chaos")
    run.run.mkdir(parents=True)
    for name, rows in {"samples": samples, **files}.items():
        (run.run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def sample(iteration: int, index: int, **more: Any) -> dict[str, Any]:
    return {"iteration": iteration, "env": "sums", "index": index, **more}


def test_a_prompt_lost_or_trained_twice_is_refused(tmp_path: Path) -> None:
    samples = [sample(i, 2 * i + j) for i in (1, 2) for j in (0, 1) for _ in range(4)]
    reference = run_with(tmp_path / "a", samples)
    assert storm.same_prompts(run_with(tmp_path / "b", samples[::-1]), reference) == 16
    twice = [
        *samples[:-4],
        *(sample(2, 2) for _ in range(4)),
    ]  # a prompt of iteration 1 again, one of iteration 2 never
    for name, wrong in (("c", samples[:-1]), ("d", twice), ("e", [*samples, sample(3, 9)])):
        with pytest.raises(Failed, match="iteration"):
            storm.same_prompts(run_with(tmp_path / name, wrong), reference)


def tiny_model(folder: Path, seed: int) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_version_that_was_not_held_is_refused(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base, trained = tiny_model(tmp_path / "base", 0), tmp_path / "a" / "runs" / "chaos" / "checkpoints" / "step_000001"
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = [3, 5, 7, 11, 2, 13, 4]
    with torch.no_grad():
        table = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    held = [float(table[i - 1, ids[i]]) for i in range(len(ids))]
    turns = [
        {"context": ids[:2], "response": ids[2:4], "logprobs": held[2:4]},
        {"context": ids[4:5], "response": ids[5:], "logprobs": held[5:]},
    ]
    run = run_with(tmp_path / "a", [sample(1, 0, versions=[0, 0], turns=turns)])
    assert storm.recomputed(run, base) < 1e-5
    tiny_model(trained / "hf", 1)
    (trained / "state.json").write_text('{"policy_version": 1}')
    for versions, words in (([1, 1], "it was not held"), ([0, 1], "versions 0 to 1"), ([2, 2], "exist")):
        lines = json.dumps(sample(2, 0, versions=versions, turns=turns))
        (run.run / "samples.jsonl").write_text(lines + "\n")
        with pytest.raises(Failed, match=words):
            storm.recomputed(run, base)


def test_rewards_outside_the_spread_are_refused() -> None:
    assert storm.outside([[0.5, 0.6], [0.4, 0.5], [0.6, 0.7]]) == 0.0
    assert storm.outside([[0.39, 0.6], [0.4, 0.5], [0.6, 0.7]]) == pytest.approx(0.01)
    with pytest.raises(Failed, match="outside"):
        storm.outside([[0.3, 0.6], [0.4, 0.5], [0.6, 0.7]])
    assert storm.rewards([{"reward/mean": float(i)} for i in range(20)]) == [4.5, 14.5]


def test_a_pause_is_found_and_slower_work_is_none() -> None:
    def rows(gaps: list[float]) -> list[dict[str, float]]:
        times = [0.0]
        for gap in gaps:
            times.append(times[-1] + gap)
        return [{"time/unix": at} for at in times]

    assert elastic.longest_pause(rows([1.0] * 20)) == pytest.approx(0.0)
    assert elastic.longest_pause(rows([1.0] * 10 + [4.0] + [1.0] * 10)) == pytest.approx(3.0)
    assert elastic.longest_pause(rows([1.0] * 12 + [2.5] * 12)) < elastic.MAX_PAUSE


def test_a_response_of_an_old_version_is_refused(tmp_path: Path) -> None:
    rows = [{"iteration": 3.0, "policy_version": 3.0, "sync/logprob_gap_max": 1e-6}]
    elastic.current(run_with(tmp_path / "a", [sample(3, 0, versions=[2, 2])]), rows)
    with pytest.raises(Failed, match="versions"):
        elastic.current(run_with(tmp_path / "b", [sample(3, 0, versions=[1, 2])]), rows)
    with pytest.raises(Failed, match="disagree"):
        elastic.current(run_with(tmp_path / "c", []), [{**rows[0], "sync/logprob_gap_max": 0.5}])


def test_memory_that_grows_is_refused_and_a_warm_up_is_not() -> None:
    shares = [i / 100 for i in range(101)]
    flat = Memory("raylet", [(at, 100.0 if at > 0.15 else 50.0) for at in shares])
    grows = Memory("generator 0", [(at, 1000.0 + 200.0 * at) for at in shares])
    small = Memory("gcs_server", [(at, 10.0 + 1.5 * at) for at in shares])
    late = Memory("generator 1", [(at, 10.0) for at in shares if at > 0.5])
    lines, grown = soak.table({1: flat, 2: grows, 3: small, 4: late})
    assert grown == ["generator 0"]
    assert len(lines) == 2 + 3 and "| raylet | 100 | 100 | +0.0% | 100 |" in lines


def ahead(folder: Path, *, iterations: int = 2, row: dict[str, Any] | None = None, **changed: Any) -> Run:
    """Returns an asynchronous run in which the first prompt of the last iteration has other responses than it should."""
    rows = [
        {
            "iteration": float(i),
            "staleness/max": 1.0,
            "sync/logprob_gap_max": 1e-6,
            "gap/engine_max": 0.1,
            **(row or {}),
        }
        for i in range(1, iterations + 1)
    ]
    samples = [
        sample(i, asynchronous.PROMPTS * (i - 1) + j, versions=[max(0, i - 2), i - 1])
        for i in range(1, iterations + 1)
        for j in range(asynchronous.PROMPTS)
        for _ in range(asynchronous.RESPONSES)
    ]
    samples[-1] |= changed
    return run_with(folder, samples, metrics=rows)


def test_an_asynchronous_run_that_trained_on_every_prompt_once_passes(tmp_path: Path) -> None:
    assert asynchronous.each_once(ahead(tmp_path), 2) == "2 iterations, every prompt once, at most 1 version old"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"index": 3}, "2 prompts were not trained on once with 8 responses (prompt: responses): 3: 9, 15: 7"),
        ({"index": 99}, "15: 7, 99: 1"),
        ({"index": 15, "versions": [-1, 1]}, "a response of prompt 15 is 2 versions old"),
        ({"row": {"staleness/max": 2.0}}, "iteration 1: staleness/max is 2"),
        ({"row": {"sync/logprob_gap_max": 0.1}}, "an engine is 0.1 nats off"),
        ({"row": {"gap/engine_max": float("inf")}}, "gap/engine_max"),
        ({"iterations": 3}, "the iterations are [1, 2, 3], each of 1 to 2 was expected once"),
        ({"row": {"status/error": 0.5, "status/timeout": 0.0}}, "50% of the verdicts are errors"),
    ],
)
def test_an_asynchronous_run_with_a_breach_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Failed) as error:
        asynchronous.each_once(ahead(tmp_path, **changed), 2)
    assert said in str(error.value)
