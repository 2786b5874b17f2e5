"""Runs the engine in a process of its own, as in a run: vLLM changes some of transformers' classes where it is imported."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from actors.inference import EngineDead
from learner.weights.protocol import WeightSyncError


def serve(folder: str, dtype: Any, log: str, pipe: Any) -> None:
    """Builds an engine and answers calls, (method, arguments), until the other end goes away."""
    from actors.settings import GeneratorSettings, VLLMSettings
    from actors.vllm_engine import VLLMEngine

    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _look_up(folder)
    sections = GeneratorSettings(max_model_len=64, kv_cache_mb=16, max_num_seqs=4)
    engine: Any = None
    try:
        engine = VLLMEngine(VLLMSettings(model=folder, dtype=dtype, generator=sections), 120)
        pipe.send(None)
        while True:
            method, arguments = pipe.recv()
            try:
                pipe.send(getattr(engine, method)(*arguments))
            except WeightSyncError as error:
                pipe.send(error)
    except EngineDead as error:
        pipe.send(error)
    except EOFError:
        pass
    os._exit(0)  # the engine's threads would be waited for


def _look_up(folder: str) -> None:
    """Imports vLLM's model here: it would otherwise look at it in a process of its own, half a minute of a core the first time."""
    from vllm.model_executor.models.registry import ModelRegistry

    for name in json.loads(Path(folder, "config.json").read_text())["architectures"]:
        known: Any = ModelRegistry.models.get(name)
        if known is not None and known.module_name.startswith("vllm."):
            with contextlib.suppress(ImportError):  # the engine's own attempt says why
                ModelRegistry.register_model(name, known.load_model_cls())


class Served:
    """Calls the engine. The constructor raises EngineDead where none can be built, and so does a call that ends it."""

    def __init__(self, folder: str, dtype: str, log: str) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, dtype, log, theirs))
        self._process.start()
        theirs.close()
        self._answer(180)

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns the method's result or raises what it raised."""
        self._pipe.send((method, arguments))
        return self._answer(90)

    def _answer(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise EngineDead(f"no answer within {seconds:g} s")
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.join()
