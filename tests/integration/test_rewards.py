"""Whole runs with every term of a reward: a real classifier on its actor, a judge behind HTTP, the real verifiers."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from integration.test_run import finish, isentrope, model, rows, smoke, survivors, untimed, wait_for  # noqa: F401 - a fixture
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from envs.builtin.arithmetic import Arithmetic
from learner.warmstart.tokenizer import build_tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ENVS = ["run.iterations=3", "evaluation.prompts=0", "checkpoint.every=0"]
KEY = "sk-test-0123456789"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    tokenizer = build_tokenizer(Arithmetic().alphabet())
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, num_labels=1, initializer_range=0.5)  # type: ignore[arg-type]
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chatterer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model that answers everything with random characters, about twenty of them."""
    folder = tmp_path_factory.mktemp("models") / "chatterer"
    tokenizer = build_tokenizer(Arithmetic().alphabet())
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=1024)  # type: ignore[arg-type]
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Handler(BaseHTTPRequestHandler):
    """Scores one point per digit of the response; refuses a response with a 1 in it."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = re.search(r"<response-\w+>\n(.*)\n</response-\w+>", body["messages"][1]["content"], re.DOTALL)
        assert match is not None and self.headers["Authorization"] == f"Bearer {KEY}"
        digits = sum(c.isdigit() for c in match.group(1))
        message = {"content": None, "refusal": "no ones"} if "1" in match.group(1) else {"content": f"SCORE: {digits}"}
        data = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_run_with_every_term(model: Path, classifier: Path, endpoint: str, tmp_path: Path) -> None:  # noqa: F811
    terms = (
        "rewards.length={weight: 0.1, shape: cosine, free: 1}",
        "rewards.format={weight: 0.5}",
        "rewards.overlong={weight: 0.2, buffer: 2}",
        f"rewards.model={{weight: 0.3, path: {classifier}, cpus: 0.3, clip: [-1, 1]}}",
        f"rewards.judge={{weight: 0.4, url: {endpoint}, model: stub, api_key_env: STUB_KEY, high: 4}}",
    )
    code, out = finish(
        isentrope(*smoke(model, "terms", *terms, *ENVS, "evaluation.prompts=4"), cwd=tmp_path, STUB_KEY=KEY)
    )
    assert code == 0, out
    assert "rewards.judge failed, and such responses are left out" in out
    assert "no ones" in out
    folder = tmp_path / "runs" / "terms"
    for name in ("config.yaml", "metrics.jsonl", "report.html", "samples.jsonl"):
        assert KEY not in (folder / name).read_text()
    assert KEY not in out
    recorded = rows(folder)[1:]
    weights = {"verdict": 1.0, "length": 0.1, "format": 0.5, "overlong": 0.2, "model": 0.3, "judge": 0.4}
    for row in recorded:
        assert set(weights) == {k.split("/")[1] for k in row if k.startswith("term/") and k.count("/") == 1}
        assert all(row[f"term/{name}/arithmetic"] == row[f"term/{name}"] for name in weights)
        assert row["term/verdict"] == row["correct/mean"]
        assert 0 < row["status/error"] < 1  # the responses with a one
        assert row["reward/std"] > 0
        assert -1 <= row["term/model"] <= 1
        assert 0 <= row["term/judge"] <= 1
        assert 0 < row["term/format"] <= 1
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all((s["status"] == "error") == ("1" in s["response"]) for s in samples)


def test_a_reward_model_that_dies_is_replaced(model: Path, classifier: Path, tmp_path: Path) -> None:  # noqa: F811
    term = f"rewards.model={{weight: 1.0, path: {classifier}, cpus: 0.3}}"
    more = (term, *ENVS, "run.iterations=30")
    process = isentrope(*smoke(model, "dies", *more), cwd=tmp_path)
    folder = tmp_path / "runs" / "dies"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 2, process)
    family = [(p, " ".join(p.cmdline())) for p in psutil.Process(process.pid).children(recursive=True)]
    (actor,) = [p for p, line in family if "ray::RewardModelActor" in line]
    actor.kill()
    code, out = finish(process)
    assert code == 0, out
    assert "reward model 1 replaces one that is gone" in out
    recorded = rows(folder)
    assert [r["iteration"] for r in recorded] == list(range(1, 31))
    assert recorded[-1]["status/error"] == 0
    # Responses it did not come to judge were left out, and are not zeros in the term's mean.
    assert all("term/model" in r for r in recorded if r["status/error"] < 1)


@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_undisturbed(model: Path, classifier: Path, tmp_path: Path) -> None:  # noqa: F811
    """The windows of the reward-hacking monitor span the iteration at which the run is killed."""
    term = f"rewards.model={{weight: 1.0, path: {classifier}, cpus: 0.3, max_batch_tokens: 1}}"
    more = (term, "run.iterations=11", "evaluation.prompts=2", "evaluation.every=0", "checkpoint.every=5")
    recorded = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        process = isentrope(*smoke(model, "same", *more), cwd=tmp_path / name, ISENTROPE_TEST=name)
        folder = tmp_path / name / "runs" / "same"
        if name == "cut":
            wait_for(lambda at=folder: (at / "checkpoints" / "step_000005" / "state.json").exists(), process)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            process.stdout.close()  # type: ignore[union-attr]
            deadline = time.monotonic() + 60
            while survivors("cut") and time.monotonic() < deadline:
                time.sleep(0.2)
            process = isentrope(*smoke(model, "same", "--resume", *more), cwd=tmp_path / name)
        code, out = finish(process, 300)
        assert code == 0, out
        recorded[name] = [untimed(row) for row in rows(folder)]
    assert [r["iteration"] for r in recorded["whole"]] == list(range(12))
    assert "drift/held_out" in recorded["whole"][-1]
    assert [r.keys() for r in recorded["whole"]] == [r.keys() for r in recorded["cut"]]
    for row, resumed in zip(recorded["whole"], recorded["cut"], strict=True):
        for key, value in row.items():
            assert resumed[key] == pytest.approx(value, abs=1e-6), (row["iteration"], key)


def test_generators_that_judge_stay_what_they_are_and_are_replaced(
    model: Path,  # noqa: F811
    chatterer: Path,
    tmp_path: Path,
) -> None:
    """The judge's score of one question is the same at the start and at the end, on another engine, at temperature 1."""
    generator = f"{{path: {chatterer}, max_model_len: 640, max_num_seqs: 64, kv_cache_mb: 32, cpus: 0.3}}"
    asked = "weight: 0.5, rubric: '{response}', score: '([0-9])', high: 9, max_tokens: 64, cache_entries: 0, temperature: 1.0"
    more = (f"rewards.judge={{{asked}, generator: {generator}}}", *ENVS)
    more += ("run.iterations=30", "run.samples_per_iteration=64")
    process = isentrope(*smoke(model, "scored", *more), cwd=tmp_path)
    folder = tmp_path / "runs" / "scored"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 2, process)
    family = [(p, " ".join(p.cmdline())) for p in psutil.Process(process.pid).children(recursive=True)]
    actors = [p for p, line in family if "ray::GeneratorActor" in line]
    judges = [p for p in actors if p.environ().get("ISENTROPE_NAME") == "judge 0"]
    assert (len(actors), len(judges)) == (2, 1)
    judges[0].kill()
    code, out = finish(process)
    assert code == 0, out
    assert "judge 1 replaces one that is gone" in out
    recorded = rows(folder)
    assert [r["iteration"] for r in recorded] == list(range(1, 31))
    assert all(0 <= r["term/judge"] <= 1 for r in recorded if "term/judge" in r)
    assert recorded[-1]["status/error"] < 0.5
    assert recorded[-1]["reward/std"] > 0
    scores: dict[str, list[float]] = {}
    for line in (folder / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if "judge" in sample.get("terms", {}):
            scores.setdefault(sample["response"], []).append(sample["terms"]["judge"])
    assert max(len(v) for v in scores.values()) > 10  # the question has the response alone, and some came again
    assert len({v[0] for v in scores.values()}) > 3
    assert all(len(set(v)) == 1 for v in scores.values()), scores
