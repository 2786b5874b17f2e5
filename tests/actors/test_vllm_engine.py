"""The engine's thread over a core that is not vLLM's: every waiting request is answered. With vLLM in tests/integration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from actors import vllm_engine
from actors.inference import EngineDead, EngineStats
from actors.settings import GeneratorSettings, VLLMSettings
from actors.vllm_engine import VLLMEngine


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


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[VLLMEngine] = []
    monkeypatch.setattr(vllm_engine, "core_request", lambda key, prompt, params: (key, prompt))
    monkeypatch.setattr(vllm_engine, "scoring_params", lambda last: None)

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
