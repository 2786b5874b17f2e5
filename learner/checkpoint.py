"""Writes checkpoint folders aside and renames them when they are complete. Files only, no torch.

checkpoints/step_000100/hf/          from_pretrained and vLLM load it
                        engine/      DeepSpeed's own state, every rank's part
                        state.json   everything else a resumed run needs, and the size of every file
checkpoints/latest                   the name of the newest
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMAT = 1


class CheckpointError(Exception):
    """Reports a checkpoint that cannot be used: the message names it and the reason."""


class Checkpoints:
    """Manages the checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    @contextmanager
    def writing(self, iteration: int) -> Generator[Path, None, None]:
        """Yields a folder to fill; on leaving without an error, and once `commit` put state.json there, it is the latest."""
        final = self.folder / f"step_{iteration:06d}"
        draft = self.folder / f"{final.name}.writing"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        if not (draft / "state.json").is_file():
            raise CheckpointError(f"{draft} was left without its state.json: call commit before the end")
        aside = self.folder / f"{final.name}.old.writing"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():  # the same iteration, reached again: never a moment without it under one name or the other
            final.rename(aside)
        draft.rename(final)
        write_whole(self.folder / "latest", final.name)
        for leftover in self.folder.glob("step_*.writing"):
            shutil.rmtree(leftover)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(old)

    def commit(self, draft: Path, state: Mapping[str, Any]) -> None:
        """Writes state.json, with the sizes of all files, and flushes everything to disk."""
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sizes = {str(p.relative_to(draft)): p.stat().st_size for p in files}
        write_whole(draft / "state.json", json.dumps({"format": FORMAT, **state, "files": sizes}, indent=1))

    def steps(self) -> list[Path]:
        """Returns the complete checkpoints, oldest first."""
        complete = (p for p in self.folder.glob("step_*") if p.suffix != ".writing" and (p / "state.json").is_file())
        return sorted(complete)

    def latest(self) -> Path | None:
        """Returns the newest complete checkpoint; a `latest` that names a missing one is ignored."""
        pointer = self.folder / "latest"
        if pointer.is_file():
            named = self.folder / pointer.read_text("utf-8").strip()
            if (named / "state.json").is_file():
                return named
        steps = self.steps()
        return steps[-1] if steps else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads state.json after checking that every file it lists is there in full. Raises CheckpointError."""
    try:
        state = json.loads((checkpoint / "state.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{checkpoint}/state.json cannot be read: {error}") from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint} has format {state.get('format')} and this version reads {FORMAT}")
    for name, size in state["files"].items():
        path = checkpoint / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            raise CheckpointError(
                f"{path} should have {size} bytes and "
                f"{'is missing' if actual is None else f'has {actual}'}: use an older checkpoint"
            )
    return state


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there in full or not at all."""
    draft = path.with_name(path.name + ".writing")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
