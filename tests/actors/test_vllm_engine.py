"""The engine's thread over a core that is not vLLM's: every waiting request is answered. With vLLM in tests/integration."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from actors import vllm_engine
from actors.inference import Aborted, EngineDead, EngineStats, Request, SamplingParams
from actors.settings import GeneratorSettings, VLLMSettings
from actors.vllm_engine import VLLMEngine
from learner.weights.protocol import WeightManifest


class Core:
    """Scores every sequence in the next step; the request named by `fail_at` breaks it when it arrives."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at, self.added = fail_at, 0
        self.waiting: list[tuple[str, list[int]]] = []

    def add_request(self, request: tuple[str, list[int]]) -> None:
        if self.added == self.fail_at:
            raise RuntimeError("the core is broken")
        self.added += 1
        self.waiting.append(request)

    def get_output(self) -> Any:
        waiting, self.waiting = self.waiting, []
        return SimpleNamespace(outputs=[self._output(key, prompt) for key, prompt in waiting])

    def _output(self, key: str, prompt: list[int]) -> Any:
        import torch

        scores = torch.tensor([[-float(t)] for t in prompt[1:]]).reshape(-1, 1)
        last = SimpleNamespace(logprobs=torch.tensor([[0.0, -9.0]]))
        prompts = SimpleNamespace(logprobs=scores)
        return SimpleNamespace(
            request_id=key, finish_reason="length", new_prompt_logprobs_tensors=prompts, new_logprobs=last
        )

    def collective_rpc(self, name: str) -> None: ...

    def shutdown(self) -> None: ...


class OnePlace(Core):
    """Samples one response at a time, three tokens of a second each; the others wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.tokens = 0.0, 0

    def get_output(self) -> Any:
        self.now += 1.0
        self.tokens += 1
        key, _ = self.waiting[0]
        done = self.tokens == 3
        if done:
            self.tokens = 0
            self.waiting.pop(0)
        output = SimpleNamespace(
            request_id=key,
            finish_reason="length" if done else None,
            new_token_ids=[self.tokens],
            new_logprobs=None,
            prefill_stats=None,
        )
        return SimpleNamespace(outputs=[output])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[VLLMEngine] = []
    monkeypatch.setattr(vllm_engine, "core_request", lambda key, prompt, params: (key, prompt))
    monkeypatch.setattr(vllm_engine, "scoring_params", lambda last: None)
    monkeypatch.setattr(vllm_engine, "sampling_params", lambda request: None)

    def build(core: Core) -> VLLMEngine:
        monkeypatch.setattr(vllm_engine, "build_core", lambda settings: (core, 32))
        made.append(
            VLLMEngine(
                VLLMSettings(model="model", generator=GeneratorSettings(max_model_len=64), dtype="float32", version=4),
                start_timeout_s=20,
            )
        )
        return made[-1]

    yield build
    for engine in made:
        engine.close()


def test_sequences_are_scored_in_their_order(engines: Any) -> None:
    engine = engines(Core())
    assert engine.sequence_logprobs([[1, 2, 3], [7], [5, 6]]) == [[-2.0, -9.0], [], [-9.0]]
    stats = engine.stats()
    assert stats == EngineStats(4, alive=True, in_flight=0, step_s=stats.step_s, steps=1)


class Speller(OnePlace):
    """Samples the numbers 1, 2, 3 ... for one response after the other, up to ten, and takes note of what was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted: list[str] = []

    def get_output(self) -> Any:
        output = super().get_output()
        output.outputs[0].finish_reason = None
        if not self.tokens:
            self.tokens = 3
            self.waiting.insert(0, (output.outputs[0].request_id, []))
        output.outputs[0].new_token_ids = [self.tokens]
        return output

    def abort_requests(self, keys: list[str]) -> None:
        self.aborted += keys
        self.waiting = [entry for entry in self.waiting if entry[0] not in keys]
        self.tokens = 0


@pytest.mark.parametrize(("stop", "ids"), [(("c",), (1, 2, 3)), (("zz", "ab"), (1, 2)), (("b",), (1, 2))])
def test_a_text_ends_a_response(
    engines: Any, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(vllm_engine, "load_tokenizer", lambda model: loaded.append(model) or "tokenizer")
    monkeypatch.setattr(vllm_engine, "decode", lambda tokenizer, tokens: "".join(chr(96 + token) for token in tokens))
    core = Speller()
    engine: VLLMEngine = engines(core)
    done: queue.Queue[Any] = queue.Queue()
    engine.submit([Request(f"r{i}", (1, 2), SamplingParams(10, stop=stop), i) for i in range(2)], done.put)
    answers = [done.get(timeout=10) for _ in range(2)]
    assert [(a.id, a.response_ids, a.finish) for a in answers] == [("r0", ids, "stop"), ("r1", ids, "stop")]
    assert len(set(core.aborted)) == 2 and engine.stats().in_flight == 0
    assert loaded == ["model"]


def test_the_seconds_of_a_response_are_without_its_time_in_the_queue(
    engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = OnePlace()
    monkeypatch.setattr(vllm_engine, "time", SimpleNamespace(perf_counter=lambda: core.now))
    engine: VLLMEngine = engines(core)
    done: queue.Queue[Any] = queue.Queue()
    engine.submit([Request(f"r{i}", (1, 2), SamplingParams(3), i) for i in range(4)], done.put)
    answers = [done.get(timeout=10) for _ in range(4)]
    assert [a.id for a in answers] == ["r0", "r1", "r2", "r3"]
    assert [a.seconds for a in answers] == [3.0] * 4
    assert core.now == 12.0  # the last one waited for nine seconds


def test_a_core_that_breaks_ends_every_score(engines: Any) -> None:
    engine = engines(Core(fail_at=1))
    with pytest.raises(EngineDead, match="the core is broken"):
        engine.sequence_logprobs([[1, 2], [3, 4], [5, 6]])
    with pytest.raises(EngineDead, match="the core is broken"):
        engine.sequence_logprobs([[1, 2]])
    assert not engine.stats().alive


@pytest.mark.timeout(20)
def test_a_score_that_an_engine_had_no_time_for_ends_in_an_error(engines: Any) -> None:
    """The request was in the inbox when the engine died; its caller used to wait for ever."""
    engine: VLLMEngine = engines(Core())
    gate = threading.Event()

    def work() -> None:
        gate.wait(10)
        raise RuntimeError("the core is broken")

    engine._post(work)
    with ThreadPoolExecutor(1) as caller:
        asked = caller.submit(engine.sequence_logprobs, [[1, 2]])
        while not (engine._inbox or asked.done()):  # the thread is busy with the first: the second waits behind it
            time.sleep(0.01)
        gate.set()
        with pytest.raises(EngineDead, match="the core is broken"):
            asked.result(5)


# --- sleep --------------------------------------------------------------------------------------------------------------


class Sleepy(Core):
    """Notes in order what frees and takes memory, what is sent and what is dropped. Requests wait for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.engine_core = SimpleNamespace(batch_queue=None)
        self.stepped = threading.Event()

    def get_output(self) -> Any:
        self.stepped.set()
        time.sleep(0.01)
        return SimpleNamespace(outputs=[])

    def sleep(self, level: int, mode: str) -> None:
        self.events.append(("sleep", level, mode))

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(("wake", *tags))

    def reset_prefix_cache(self, reset_running_requests: bool) -> None:
        self.events.append("reset")

    def collective_rpc(self, name: str, args: Any = ()) -> Any:
        self.events.append(name)
        return [7]


def test_an_engine_wakes_its_weights_before_a_transfer_whoever_forgot_to(engines: Any) -> None:
    core = Sleepy()
    engine: VLLMEngine = engines(core)
    engine.sleep()
    engine.sleep()  # it sleeps already
    assert engine.receive_weights(WeightManifest(5, ()), 1.0) == 7
    engine.wake("weights")
    engine.wake("kv_cache")
    engine.wake("kv_cache")
    engine.receive_weights(WeightManifest(6, ()), 1.0)
    assert core.events == [
        ("sleep", 1, "abort"),
        ("wake", "weights"),
        "isentrope_receive",
        "reset",
        ("wake", "kv_cache"),
        "isentrope_receive",
        "reset",
    ]


@pytest.mark.parametrize(("awake", "first"), [("weights", []), ("kv_cache", [("wake", "weights")])])
def test_an_engine_that_is_half_asleep_goes_to_sleep_whole(engines: Any, awake: Any, first: list[Any]) -> None:
    core = Sleepy()
    engine: VLLMEngine = engines(core)
    engine.sleep()
    engine.wake(awake)
    engine.sleep()
    assert core.events == [("sleep", 1, "abort"), ("wake", awake), *first, ("sleep", 1, "abort")]
    engine.wake("weights")
    engine.wake("kv_cache")
    assert core.events[-2:] == [("wake", "weights"), ("wake", "kv_cache")]


@pytest.mark.timeout(20)
def test_what_is_under_way_when_an_engine_goes_to_sleep_is_answered(
    engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "sampling_params", lambda request: None)
    core = Sleepy()
    engine: VLLMEngine = engines(core)
    answers: list[Any] = []
    engine.submit([Request("a", (1, 2), SamplingParams(4), 0)], answers.append)
    with ThreadPoolExecutor(1) as caller:
        score = caller.submit(engine.sequence_logprobs, [[1, 2]])
        while engine.stats().in_flight < 2:
            core.stepped.wait(10)
        engine.sleep()
        with pytest.raises(Aborted, match="goes to sleep"):
            score.result(10)
    assert [type(a) for a in answers] == [Aborted]
    assert engine.stats().in_flight == 0 and engine.stats().alive
