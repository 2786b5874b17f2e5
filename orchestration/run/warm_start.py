"""Makes the tiny, warm-started models that the CPU recipes begin with, and shows the progress on the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestration.config.loader import sentence
from orchestration.errors import ConfigError


def make_model(settings: dict[str, Any], out: Path | None, cache: Path) -> Path:
    """Makes and warm-starts a model, unless it exists; returns the folder `out`, or the model's folder in the cache."""
    from rich.console import Console

    # The matrices are tiny: a second thread gains little and, on a busy machine, mostly waits in a spin loop. Set before
    # importing torch, which reads it once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from learner.warmstart.model_cache import WarmStartProgress, init_model
    from learner.warmstart.settings import InitModelSettings

    console = Console()

    def show(progress: WarmStartProgress) -> None:
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
        accuracy = "" if progress.accuracy is None else f"pass@1 {progress.accuracy:.3f}"
        at_k = "" if progress.pass_at_k is None else f"pass@k {progress.pass_at_k:.3f}"
        parts = [
            x
            for x in (f"step {progress.step}/{progress.steps}", loss, accuracy, at_k, f"{progress.seconds:.0f} s")
            if x
        ]
        console.print("warm start  " + "  ".join(parts), highlight=False)

    try:
        parsed = InitModelSettings.model_validate(settings)
        folder = init_model(parsed, out, cache, show)
    except ValidationError as error:
        raise ConfigError(sentence(error, settings, InitModelSettings)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    console.print(f"model: {folder}", highlight=False)
    return folder
