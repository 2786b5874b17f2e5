"""Makes a tiny model, teaches it, and keeps it: what `init-model` runs and what the demo starts from.

The model is created from scratch and taught on the environments' own demonstrations until it solves a part of the tasks while its
entropy is still high: reinforcement learning then has something to sharpen. Everything is fp32 on the CPU with as many threads as
torch was given. torch, transformers and the teacher are imported where they are used, so that settings load without them.
"""

# pyright: reportUnknownMemberType=false
# transformers and torch leave parameters of save_pretrained, manual_seed and fork_rng untyped.

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import catalog
from envs.base import demonstrates
from learner.settings import EnvironmentSettings
from learner.warmstart.settings import FORMAT, InitModelSettings
from learner.warmstart.tokenizer import build_tokenizer
from learner.warmstart.whole_folder import no_progress_bars, written_whole

MARKER = "isentrope_init.json"


@dataclass(frozen=True, slots=True)
class WarmStartProgress:
    """Reports how far the warm start is.

    loss: nats per response token, mean since the last report (None before the first step);
    accuracy, pass_at_k: shares of held-out responses and prompts solved at temperature 1, None unless just measured."""

    step: int
    steps: int
    loss: float | None
    accuracy: float | None
    pass_at_k: float | None
    seconds: float


def init_model(
    settings: InitModelSettings, out: Path | None, cache_dir: Path, progress: Callable[[WarmStartProgress], None]
) -> Path:
    """Returns a Hugging Face folder (safetensors, tokenizer, generation config) of the model that `settings` describe.

    It is kept in `cache_dir` under a name with the settings' key: a second call returns at once, without progress. With
    `out`, the folder is copied there and `out` is returned. Folders appear complete or not at all (written beside, then
    renamed). `isentrope_init.json` in it holds the settings, loss, accuracy, pass_at_k, steps and seconds.
    Raises ValueError when `out` exists and is not this model, or an environment has no demonstrations.
    """
    key = settings.key()
    if out is not None and out.exists():
        if _holds(out, key):
            return out
        raise ValueError(f"{out} exists and is not the model these settings describe (key {key}): remove it")
    cached = cache_dir / f"{settings.architecture}-{key}"
    if not _holds(cached, key):
        with written_whole(cached, lambda: _is_model(cached)) as folder:
            _make(settings, folder, progress)
    if out is None:
        return cached
    with written_whole(out, lambda: _is_model(out)) as folder:
        shutil.copytree(cached, folder, dirs_exist_ok=True)
    return out


def _is_model(folder: Path) -> bool:
    """Says whether another process was faster: the same key, in the folder's name or checked before, is the same model."""
    return (folder / MARKER).is_file()


def _holds(folder: Path, key: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["key"] == key


def _make(settings: InitModelSettings, folder: Path, progress: Callable[[WarmStartProgress], None]) -> None:
    import torch

    from learner.warmstart.teacher import Teacher, create_model

    begin = time.monotonic()

    def report(step: int, steps: int, loss: float | None, accuracy: float | None, pass_at_k: float | None) -> None:
        progress(WarmStartProgress(step, steps, loss, accuracy, pass_at_k, time.monotonic() - begin))

    environments = [_load(spec, settings.seed) for spec in settings.environments]
    tokenizer = build_tokenizer(character for environment in environments for character in environment.alphabet())
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(settings.seed)
        model = create_model(settings, tokenizer)
        teacher = Teacher(settings, environments, tokenizer, model)
        result = teacher.run(report)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"format": FORMAT, "key": settings.key(), "settings": settings.model_dump(mode="json"), **result}
    record["seconds"] = round(time.monotonic() - begin, 2)
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _load(spec: EnvironmentSettings, seed: int) -> Any:
    """An Environment that demonstrates: one response, or whole conversations."""
    environment = catalog.load(spec.name, spec.params, seed)
    if not demonstrates(environment):
        raise ValueError(f"environment {spec.name!r} has no demonstrations and no alphabet to teach a model with")
    return environment
