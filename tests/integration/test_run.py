"""Whole runs through the command line, as a user starts them: real Ray, vLLM, DeepSpeed and the weight broadcast.

Every run is a process of its own with a Ray cluster of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
LIMIT_S = 180
TIMED = ("time/", "tokens/per_second", "cluster/")


def isentrope(*arguments: str, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environ},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        pytest.fail(f"not done within {limit_s} s:\n{out}")
    return process.returncode, out


def smoke(model: Path, name: str, *more: str) -> tuple[str, ...]:
    return ("train", "smoke", f"model.path={model}", f"run.name={name}", *more)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if not k.startswith(TIMED)}


def wait_for(condition: Any, process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> None:
    """Polls twenty times a second until another process has written a file."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"it never came; the run says:\n{finish(process, 1)[1]}")
        time.sleep(0.05)


def survivors(marker: str) -> list[str]:
    """Returns the command lines of processes whose environment has the marker of the run."""
    commands = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ISENTROPE_TEST") == marker and process.status() != psutil.STATUS_ZOMBIE:
                commands.append(" ".join(process.cmdline())[:200])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model that knows a little arithmetic, so that rewards differ."""
    folder = tmp_path_factory.mktemp("models") / "arithmetic"
    code, out = finish(
        isentrope("init-model", "--env", "arithmetic", "--out", str(folder), "steps=150", cwd=folder.parent)
    )
    assert code == 0, out
    return folder


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run that nothing disturbs; the others are compared with it."""
    folder = tmp_path_factory.mktemp("whole")
    code, out = finish(isentrope(*smoke(model, "whole", "run.trace=true"), cwd=folder))
    assert code == 0, out
    return folder / "runs" / "whole"


def test_a_run_leaves_what_it_promises(undisturbed: Path) -> None:
    recorded = rows(undisturbed)
    assert [r["iteration"] for r in recorded] == list(range(7))
    assert [r["policy_version"] for r in recorded] == list(range(7))
    documented = (
        "reward/mean entropy/exact entropy/sampled entropy/target entropy/coefficient sync/logprob_gap_max time/iteration "
        "time/generate time/verify time/train time/sync tokens/generated entropy/predicted_dh entropy/affected"
    )
    for key in documented.split():
        assert all(isinstance(r[key], float) for r in recorded[1:]), key
    assert "eval/arithmetic/pass@1" in recorded[0]
    assert "eval/arithmetic/pass@4/T=1" in recorded[-1]
    assert all(r["sync/logprob_gap_max"] < 1e-5 for r in recorded[1:])
    assert all(r["gap/engine_max"] < 1e-4 for r in recorded[1:])
    for name in (
        "config.yaml",
        "samples.jsonl",
        "report.html",
        "checkpoints/latest",
        "checkpoints/step_000006/state.json",
    ):
        assert (undisturbed / name).stat().st_size > 0, name
    assert sorted(p.name for p in (undisturbed / "checkpoints").glob("step_*")) == ["step_000004", "step_000006"]
    assert "<html" in (undisturbed / "report.html").read_text()


def test_the_trace_has_every_stage_of_driver_and_actors(undisturbed: Path) -> None:
    trace = json.loads((undisturbed / "trace.json").read_text())
    names = {event["pid"]: event["args"]["name"] for event in trace if event["name"] == "process_name"}
    spans = [event for event in trace if event["ph"] == "X"]
    stages: dict[str, set[str]] = {}
    for span in spans:
        stages.setdefault(names[span["pid"]], set()).add(span["name"])
    driver = {"check", "sample", "batch", "update", "transfer", "probe", "evaluation", "checkpoint"}
    learner = {"load", "train", "measure", "update", "forward", "backward", "step", "publish", "log-probs", "save"}
    assert stages == {
        "driver": driver,
        "learner rank 0": learner,
        "generator 0": {"load", "generate", "receive weights"},
        "verifier 0": {"load", "score"},
    }
    # One clock: what the learner does is within the driver's wait for it.
    outer = [(s["ts"], s["ts"] + s["dur"]) for s in spans if names[s["pid"]] == "driver" and s["name"] == "update"]
    inner = [(s["ts"], s["ts"] + s["dur"]) for s in spans if s["name"] == "train"]
    assert len(outer) == len(inner) == 6
    assert all(a <= c and d <= b for (a, b), (c, d) in zip(sorted(outer), sorted(inner), strict=True))


def test_the_coefficient_moves_towards_the_target(undisturbed: Path) -> None:
    recorded = rows(undisturbed)[1:]
    for before, after in itertools.pairwise(recorded):
        below = after["entropy/exact"] < after["entropy/target"]  # seen before the updates that the coefficient shapes
        assert (after["entropy/coefficient"] > before["entropy/coefficient"]) == below or abs(
            after["entropy/coefficient"]
        ) >= 1.0


def test_every_logged_key_is_documented(undisturbed: Path) -> None:
    from orchestration.telemetry.keys import lookup

    for key in {key for row in rows(undisturbed) for key in row}:
        entry = lookup(key)
        assert entry is not None and entry[1].get("env", "arithmetic") == "arithmetic", key


def test_the_number_of_generators_changes_nothing(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Seeds belong to responses, not to engines: three give the same batch as one, hence the same weights."""
    more = ("generators.count=3", "generators.cpus=0.3", "run.iterations=2", "evaluation.prompts=0")
    code, out = finish(isentrope(*smoke(model, "many", *more), cwd=tmp_path))
    assert code == 0, out
    expected = {r["iteration"]: r for r in rows(undisturbed)}
    for row in rows(tmp_path / "runs" / "many"):
        for key, value in untimed(row).items():
            assert value == pytest.approx(expected[row["iteration"]][key], abs=1e-5), key


def test_killed_and_resumed_equals_undisturbed(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = isentrope(*smoke(model, "whole"), cwd=tmp_path, ISENTROPE_TEST="killed")
    folder = tmp_path / "runs" / "whole"
    wait_for(lambda: (folder / "checkpoints" / "step_000002" / "state.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while survivors("killed") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not survivors("killed")
    assert max(r["iteration"] for r in rows(folder)) < 6

    code, out = finish(isentrope(*smoke(model, "whole", "--resume"), cwd=tmp_path))
    assert code == 0, out
    expected = rows(undisturbed)
    recorded = rows(folder)
    assert [r["iteration"] for r in recorded] == [r["iteration"] for r in expected]
    for row, resumed in zip(expected, recorded, strict=True):
        assert untimed(row).keys() == untimed(resumed).keys()
        for key, value in untimed(row).items():
            assert resumed[key] == pytest.approx(value, abs=1e-6), (row["iteration"], key)

    code, out = finish(isentrope(*smoke(model, "whole", "--resume"), cwd=tmp_path))
    assert code == 2
    assert "nothing to do" in out


def test_ctrl_c_ends_with_a_checkpoint_and_no_process(model: Path, tmp_path: Path) -> None:
    marker = "interrupted"
    process = isentrope(*smoke(model, "stopped", "run.iterations=100000"), cwd=tmp_path, ISENTROPE_TEST=marker)
    folder = tmp_path / "runs" / "stopped"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 4, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
    code, out = finish(process)
    assert code == 130, out
    latest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    assert json.loads((latest / "state.json").read_text())["iteration"] >= 3
    deadline = time.monotonic() + 20
    while survivors(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not survivors(marker)


def test_generators_and_verifiers_that_die_are_replaced(model: Path, tmp_path: Path) -> None:
    more = (
        "generators.count=2",
        "generators.cpus=0.3",
        "run.iterations=100000",  # it is stopped: how many fit beside an engine's start depends on the machine
        "evaluation.prompts=0",
        "checkpoint.every=0",
    )
    process = isentrope(*smoke(model, "replaced", *more), cwd=tmp_path, ISENTROPE_TEST="replaced")
    folder = tmp_path / "runs" / "replaced"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 3, process)
    family = [(p, " ".join(p.cmdline())) for p in psutil.Process(process.pid).children(recursive=True)]
    generators = [p for p, line in family if "ray::GeneratorActor" in line]
    (verifier,) = [p for p, line in family if "ray::VerifierActor" in line]
    assert len(generators) == 2
    generators[0].kill()
    verifier.kill()
    served = lambda row: row["cluster/replaced"] == 2 and row["cluster/generators"] == 2  # noqa: E731
    wait_for(lambda: sum(map(served, rows(folder))) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)
    code, out = finish(process)
    assert code == 130, out
    assert "generator 2 replaces one that is gone" in out and "generator 2 serves from version" in out
    assert "verifier 1 replaces one that is gone" in out
    recorded = rows(folder)
    assert [r["iteration"] for r in recorded] == list(range(1, len(recorded) + 1))
    # Base weights would be off by whole nats; hundreds of updates on, rounding may reach 1e-4 on unlikely tokens.
    assert all(r["sync/logprob_gap_max"] < 1e-3 for r in recorded)
    assert recorded[-1]["status/error"] == 0


@pytest.mark.parametrize(
    "recipe", ["countdown-grpo", "countdown-repo-r", "lab-countdown", "reasoning-gym", "sequential-cpu", "toolbox-cpu"]
)
def test_shipped_cpu_recipes_run(model: Path, tmp_path: Path, recipe: str) -> None:
    """Two generators and everything else of the recipe, but for a small batch and a model that learned something else."""
    small = (
        "run.iterations=1",
        "batch.prompts=8",
        "learner.updates=2",
        "evaluation.prompts=2",
        "evaluation.samples=32",
    )
    code, out = finish(isentrope("train", recipe, f"model.path={model}", *small, cwd=tmp_path))
    assert code == 0, out
    (folder,) = (tmp_path / "runs").iterdir()
    assert [r["iteration"] for r in rows(folder)] == [0, 1]
    families = {k.split("/", 1)[1] for k in rows(folder)[1] if k.startswith("reward/")} - {"mean", "std"}
    expected = {
        "toolbox-cpu": {"toolbox"},
        "reasoning-gym": {"reasoning_gym/basic_arithmetic", "reasoning_gym/spell_backward"},
        "sequential-cpu": {"reasoning_gym/spell_backward"},  # its first stage
    }
    assert families == expected.get(recipe, {"countdown"})
    page = (folder / "report.html").read_text()
    assert all(family in page for family in families)


LOADS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from actors.inference import Request, SamplingParams
from actors.settings import GeneratorSettings, VLLMSettings
from actors.vllm_engine import VLLMEngine
import threading, torch
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "1+2="}], add_generation_prompt=True)["input_ids"]
generator = GeneratorSettings(max_model_len=32, kv_cache_mb=16)
engine = VLLMEngine(VLLMSettings(model=folder, generator=generator, dtype="float32"))
with torch.no_grad():
    expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
expected = [float(expected[i, t]) for i, t in enumerate(ids[1:])]
actual = engine.sequence_logprobs([ids])[0]
assert max(abs(a - b) for a, b in zip(expected, actual)) < 1e-5, (expected, actual)
engine.close()
print("loads")
"""


def test_the_checkpoint_loads_in_transformers_and_in_vllm(undisturbed: Path) -> None:
    folder = undisturbed / "checkpoints" / "step_000006" / "hf"
    result = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert "loads" in result.stdout, result.stderr[-3000:]


BAD = {
    "unknown key": (["learner.lrr=1"], 2, "did you mean 'lr'"),
    "wrong type": (["learner.updates=many"], 2, "learner.updates is 'many'"),
    "indivisible": (["learner.updates=7"], 2, "8 prompts x 8 responses = 64"),
    "missing model": (["model.path=models/nowhere"], 2, "does not exist"),
    "unknown environment": (["environments.0.name=arithmetics"], 2, "did you mean 'arithmetic'"),
    "broken line": (["environments.0.name=questions", "environments.0.params={path: broken.jsonl}"], 2, "broken.jsonl"),
    "too many generators": (["generators.count=500"], 3, "500"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_one_sentence_and_writes_nothing(model: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1+1=", "answer": 2}\n{"prompt": "1+\n')
    overrides, code, part = BAD[what]
    before = sorted(tmp_path.rglob("*"))
    exit_code, out = finish(isentrope(*smoke(model, "bad", *overrides), cwd=tmp_path))
    assert exit_code == code, out
    assert part in out
    if what == "broken line":
        assert "line 2" in out
    out = out.removeprefix("starting Ray\n")  # what only the cluster can say is found when it is there
    assert out.startswith("isentrope: ")
    assert out.strip().count("\n") == 0, out
    assert sorted(tmp_path.rglob("*")) == before


def test_another_run_is_not_overwritten(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "runs" / "whole")
    code, out = finish(isentrope(*smoke(model, "whole"), cwd=tmp_path))
    assert code == 2
    assert "--resume" in out
    assert rows(tmp_path / "runs" / "whole") == rows(undisturbed)
