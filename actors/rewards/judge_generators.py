"""Answers a judge's questions by generators of the run: a model that is never trained, on engines outside the weight group.

The judge is frozen: a policy that judged itself would move its own standard with every update.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.inference import GenerateFn, PoolEmpty, Request, SamplingParams, response_seed
from actors.rewards.judge import Answer, NoScore
from envs.types import Message


class JudgeCodec(Protocol):
    """Maps text to token ids and back, for the judge's model."""

    stop_token_ids: tuple[int, ...]

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def defuse(self, text: str) -> str:
        """Returns the text without anything that would become a special token."""
        ...


class Generators:
    """Answers a judge over `generate`. The same question is the same request, at any temperature and in any order.

    max_model_len: tokens, question and answer together.
    """

    def __init__(self, path: str, generate: GenerateFn, codec: JudgeCodec, max_model_len: int) -> None:
        self.name, self.source = Path(path).name or path, fingerprint(path)
        self._generate, self._codec, self._max_model_len = generate, codec, max_model_len
        self._numbers = itertools.count()
        self._has_system = _takes_system(codec)

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """Raises NoScore for a question that is too long or cannot be asked, and PoolEmpty when no generator is left."""
        messages = [Message(m["role"], m["content"]) for m in body["messages"]]
        if not self._has_system:
            messages = [Message("user", "\n\n".join(m.content for m in messages))]
        try:
            ids = self._codec.render(messages)
        except Exception as error:  # templates raise what they like
            raise NoScore(f"its question cannot be rendered: {error}") from error
        max_tokens = int(body["max_tokens"])
        if len(ids) + max_tokens > self._max_model_len:
            raise NoScore(
                f"its question has {len(ids)} tokens and its answer may have rewards.judge.max_tokens = {max_tokens}, more than "
                f"rewards.judge.generator.max_model_len = {self._max_model_len}"
            )
        sampling = SamplingParams(max_tokens, float(body["temperature"]), stop_token_ids=self._codec.stop_token_ids)
        seed = response_seed(0, json.dumps(body, sort_keys=True))
        try:
            (done,) = await self._generate([Request(f"judge/{next(self._numbers)}", ids, sampling, seed)])
        except PoolEmpty:
            raise  # nobody is left who could judge anything: not the question's fault
        except (ValueError, RuntimeError) as error:  # the engine refuses
            raise NoScore(str(error)) from error
        return Answer(self._codec.decode(done.response_ids), done.finish == "length")

    def clean(self, text: str) -> str:
        return text

    def defuse(self, text: str) -> str:
        """Removes special tokens: what is scored may claim that its turn is over and the judge's has begun."""
        return self._codec.defuse(text)

    async def close(self) -> None: ...


def fingerprint(path: str) -> str:
    """Returns what distinguishes a model from another in the same folder: its path and its files' names, sizes and times."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted((f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in folder.iterdir() if f.is_file())
    return f"{folder.resolve()} {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"


def _takes_system(codec: JudgeCodec) -> bool:
    """Some templates raise at a system message, or leave it out; its text then goes before the user's."""
    try:
        return "quince" in codec.decode(codec.render([Message("system", "quince"), Message("user", "b")]))
    except Exception:  # noqa: BLE001 - templates raise what they like
        return False
