"""What a generator needs from an inference engine. vLLM is one implementation (actors/vllm_engine.py), tests have a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from learner.weights.protocol import Rendezvous, WeightManifest


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """temperature 0 is greedy. Log-probs are always of the distribution actually sampled from."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One response to sample. `seed` fixes the sample whatever else is in the batch."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished response: ids and log-probs of the same length, the end token included when finish == "stop"."""

    id: str
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    version_min: int
    version_max: int


class InferenceEngine(Protocol):
    """Thread-safe. `submit` returns at once; `on_done` is called from the engine's own thread, once per request."""

    def submit(self, requests: Sequence[Request], on_done: Callable[[Completion | BaseException], None]) -> None:
        """Queue all requests before the next engine step, so that a batch submitted whole is scheduled the same way every time."""
        ...

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs at temperature 1 of tokens 1.. of each sequence given those before (length len(sequence) - 1)."""
        ...

    def connect_weights(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Join the weight group; blocks until all members have, WeightSyncError after timeout_s."""
        ...

    def receive_weights(self, manifest: WeightManifest, timeout_s: float) -> int:
        """Receive one version, load it, drop cached prefixes; returns the checksum. Nothing is served meanwhile."""
        ...

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
