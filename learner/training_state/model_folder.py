"""Writes a model's weights as a folder that from_pretrained and vLLM load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.checkpoint import disk_errors


class ModelFolder:
    """Writes one folder at a time. `done` may be read by another thread meanwhile."""

    def __init__(self) -> None:
        self._before = 0
        self._folder: Path | None = None

    @property
    def done(self) -> int:
        """Returns the megabytes written so far, a count that grows while transformers, which tells nothing, writes."""
        return self._before + (0 if self._folder is None else _megabytes(self._folder))

    def write(self, model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what `model.save_pretrained` does, with these weights. Raises OSError where the disk does not take them."""
        self._folder = folder
        with disk_errors(folder):
            model.save_pretrained(folder, state_dict={k: v.cpu().contiguous() for k, v in weights.items()})
        self._before, self._folder = self.done, None


def _megabytes(folder: Path) -> int:
    """Returns the size of a folder's files, which may be written meanwhile."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder)) >> 20
    except OSError:  # it is not there yet, or a draft of a file has just got its name
        return 0
