"""Answers a judge's questions by an OpenAI-compatible endpoint, with retries.

The retries are written here because those of the `openai` client would change what a configuration says: its backoff is not
rewards.judge.backoff_s, its time-out is of each read and not of the answer, and a call that waits for its next try would hold its
place among rewards.judge.concurrency.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

import httpx

from actors.rewards.judge import Answer, NoScore, shown
from actors.settings import EndpointSettings

RETRIED = (408, 409, 429, 500, 502, 503, 504)
LONGEST_WAIT_S = 60.0  # between two tries, whatever a server asks for


class Endpoint:
    """Asks an endpoint for a judge. Belongs to one event loop."""

    def __init__(self, settings: EndpointSettings, key: str | None = None) -> None:
        if settings.url is None or settings.model is None:
            raise ValueError("an endpoint needs a url and a model")
        self.settings = settings
        self.name, self.source = settings.model, settings.url
        self.counts = {"requests": 0, "retries": 0}
        self._key = key.strip() if key else None  # files and secrets end in a line break
        self._free = asyncio.Semaphore(settings.concurrency)
        self._client: httpx.AsyncClient | None = None

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """Raises NoScore when the tries are used up, or for an answer that another try would not change."""
        s, failure = self.settings, ""
        for attempt in range(s.retries + 1):
            if attempt:
                self.counts["retries"] += 1
            wait = s.backoff_s * 2**attempt * random.uniform(0.5, 1.5)  # not all at once; no result depends on it
            try:
                # httpx limits each read: a server that sends a byte a minute would never end.
                async with self._free:  # not held while waiting for the next try
                    response = await asyncio.wait_for(self._post(body), s.timeout_s)
            except TimeoutError:
                failure = f"no answer within rewards.judge.timeout_s = {s.timeout_s:g} s"
            except httpx.HTTPError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return self._read(response)
                failure = f"HTTP {response.status_code}: {self._shown(response.text)}"
                if response.status_code not in RETRIED:
                    raise NoScore(failure)
                wait = max(wait, _asked_to_wait(response))
            if attempt < s.retries:
                await asyncio.sleep(min(wait, LONGEST_WAIT_S))
        raise NoScore(f"{failure}, after {s.retries + 1} tries")

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        if self._client is None:
            headers = {"Content-Type": "application/json"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            limits = httpx.Limits(max_connections=self.settings.concurrency)
            # Redirects are not followed: the key is meant for this address.
            self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)
        self.counts["requests"] += 1
        # Escaped to ASCII: httpx's own JSON fails at half a surrogate pair, which a policy can write.
        return await self._client.post(f"{self.source}/chat/completions", content=json.dumps(body))

    def _read(self, response: httpx.Response) -> Answer:
        try:
            answer = response.json()
        except ValueError:
            raise NoScore(f"the answer is not JSON: {self._shown(response.text)}") from None
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise NoScore(f"the answer is not a chat completion: {self._shown(json.dumps(answer))}") from None
        finish = choice.get("finish_reason")
        if refusal or finish == "content_filter":
            raise NoScore(f"it refuses: {self._shown(str(refusal or text))}")
        return Answer(text, finish == "length")

    def _shown(self, text: str) -> str:
        return shown(self.clean(text))  # cleaned first: cutting and quoting could hide a key from `clean`

    def clean(self, text: str) -> str:
        """Removes the key: servers like to quote the one they refuse."""
        return text.replace(self._key, "***") if self._key else text

    def defuse(self, text: str) -> str:
        """Returns the text as it is: the model's special tokens are known to the server alone."""
        return text

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _asked_to_wait(response: httpx.Response) -> float:
    """Returns the seconds of a Retry-After header; 0 without one, or where it is a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
