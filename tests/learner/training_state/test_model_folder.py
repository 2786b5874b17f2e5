"""The folder of a model's weights: what is written, and that its progress can be seen from another thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.training_state.model_folder import ModelFolder


class Model:
    """Writes two files, and notes how much was seen of each."""

    def __init__(self, folder: ModelFolder, fails: bool = False) -> None:
        self.folder, self.fails, self.seen = folder, fails, list[int]()

    def save_pretrained(self, path: Path, state_dict: dict[str, Any]) -> None:
        path.mkdir()
        for number in range(2):
            save_file(state_dict, path / f"{number}.safetensors")
            self.seen.append(self.folder.done)
        if self.fails:
            raise OSError("no space left")


def test_what_is_written_counts_as_progress_and_the_count_stays(tmp_path: Path) -> None:
    folder = ModelFolder()
    model = Model(folder)
    weights = {"a": torch.ones(1 << 20)[::2].reshape(-1, 2)}
    folder.write(model, weights, tmp_path / "one")
    assert model.seen == [2, 4] and folder.done == 4
    assert torch.equal(load_file(tmp_path / "one" / "1.safetensors")["a"], weights["a"])
    folder.write(model, weights, tmp_path / "two")
    assert folder.done == 8


def test_a_full_disk_is_its_own_error(tmp_path: Path) -> None:
    folder = ModelFolder()
    with pytest.raises(OSError, match="no space left"):
        folder.write(Model(folder, fails=True), {"a": torch.ones(4)}, tmp_path / "one")
