"""Stands in for an endpoint of the OpenAI kind, on a real socket, and asks a judge behind it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from actors.rewards.endpoint import Endpoint
from actors.rewards.judge import Judge
from actors.settings import RUBRIC, SCORE, EndpointSettings, JudgeSettings
from actors.verifier import ScoreRequest
from envs.types import Message, Prompt, Status, Verdict

T = TypeVar("T")
KEY = "sk-test-0123456789"
Answer = tuple[int, dict[str, str], bytes]


def completion(text: str | None, finish: str = "stop", **message: Any) -> Answer:
    body = {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}]}
    return 200, {}, json.dumps(body).encode()


class FakeEndpoint:
    """Answers each request with the next of `answers`, and repeats the last one. A float is a pause before the next answer."""

    def __init__(self) -> None:
        self.answers: list[Answer | float] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at: list[float] = []
        self.most = self.under_way = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.serve(self)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.at.append(time.monotonic())
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            pause = self.answers.pop(0) if isinstance(self.answers[0], float) else 0.0
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        assert isinstance(pause, float) and isinstance(answer, tuple)
        time.sleep(pause)
        with self.lock:
            self.under_way -= 1
        status, headers, data = answer
        try:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            handler.close_connection = True  # the judge has given up on it

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def judge_at(url: str, key: str | None = None, **changes: Any) -> Judge:
    endpoint: dict[str, Any] = {"model": "judge-1", "timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, "concurrency": 4}
    asked: dict[str, Any] = {
        "rubric": RUBRIC,
        "reference": "answer",
        "score": SCORE,
        "low": 0.0,
        "high": 10.0,
        "temperature": 0.0,
        "max_tokens": 64,
        "cache_entries": 100,
    }
    endpoint |= {k: v for k, v in changes.items() if k in endpoint}
    asked |= {k: v for k, v in changes.items() if k not in endpoint}
    return Judge(JudgeSettings(**asked), Endpoint(EndpointSettings(url=url, **endpoint), key))


def counts(judge: Judge) -> dict[str, int]:
    assert isinstance(judge.backend, Endpoint)
    return {**judge.backend.counts, "cached": judge.cached}


def ask(response: str = "7", task: dict[str, Any] | None = None, *messages: Message) -> ScoreRequest:
    prompt = Prompt(
        "toy", "train", 3, messages or (Message("user", "3+4="),), {"answer": "7"} if task is None else task
    )
    return ScoreRequest("it 1/0:toy/train/3/0", prompt, (response,))


def run(made: Judge, work: Callable[[Judge], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        try:
            return await asyncio.wait_for(work(made), 30)
        finally:
            await made.close()

    return asyncio.run(main())


def scored(made: Judge, *requests: ScoreRequest) -> list[Verdict]:
    async def all_of_them(judge: Judge) -> list[Verdict]:
        return [await judge.score(r) for r in requests]

    return run(made, all_of_them)


def failure(endpoint: FakeEndpoint, *answers: Answer | float, **changes: Any) -> str:
    endpoint.answers = list(answers)
    (verdict,) = scored(judge_at(endpoint.url, KEY, **changes), ask())
    assert (verdict.status, verdict.reward, verdict.correct) == (Status.ERROR, 0.0, False)
    assert KEY not in verdict.detail
    return verdict.detail
