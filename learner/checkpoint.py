"""Writes checkpoint folders aside and renames them when they are complete. Files only, no torch.

checkpoints/step_000100/hf/          from_pretrained and vLLM load it
                        engine/      the optimiser's state in safetensors, every rank's part (learner/training_state)
                        state.json   everything else a resumed run needs, of every file its size and hash, and its own hash
checkpoints/step_000100.1/           the same iteration, saved again in another state: the later one counts
checkpoints/latest                   the name of the one to go on from

At any moment at least one whole checkpoint stands under a name that `Checkpoints.steps` looks for, from the first one on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

FORMAT = 2  # 1 had sizes without hashes
NAME = re.compile(r"step_(\d{6,12})(?:\.(\d{1,6}))?")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle")
HASHING_THREADS = 4
OWN_HASH = "blake2b"  # the key of state.json that has the hash of all its others


class CheckpointError(Exception):
    """Reports a checkpoint that cannot be used: the message names it and the reason."""


class Checkpoints:
    """Manages the checkpoints of one run. Its methods read and write much: call them off an event loop."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def begin(self, iteration: int) -> Path:
        """Returns an empty folder to fill, which `finish` makes a checkpoint and `discard` removes."""
        self._sweep()
        final = self.folder / f"step_{iteration:06d}"
        earlier = [_order(p)[1] for p in self._named() if _order(p)[0] == iteration]
        name = f"{final.name}.{max(earlier) + 1}" if earlier else final.name
        draft = self.folder / f"{name}.writing"
        draft.mkdir(parents=True)
        return draft

    def finish(self, draft: Path, state: Mapping[str, Any]) -> Path:
        """Writes state.json with sizes and hashes, flushes everything, makes the draft the latest, and removes old ones.

        Those of later iterations go as well: the run went back behind them, so that they are of another course of it.
        """
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            hashes = list(pool.map(_flushed_hash, files))
        listed = {
            str(p.relative_to(draft)): {"bytes": p.stat().st_size, "blake2b": h}
            for p, h in zip(files, hashes, strict=True)
        }
        whole = {"format": FORMAT, **state, "files": listed}
        write_whole(draft / "state.json", json.dumps({**whole, OWN_HASH: state_hash(whole)}, indent=1))
        for folder in {draft, *(p.parent for p in files)}:
            flush_folder(folder)
        final = draft.with_suffix("")
        draft.rename(final)
        flush_folder(self.folder)
        self.point_at(final)
        before = [p for p in self.steps() if _order(p) < _order(final)]
        same = [p for p in before if _order(p)[0] == _order(final)[0]]
        kept = [p for p in before if p not in same][-(self.keep - 1) :] if self.keep > 1 else []
        for path in self._named():
            if path != final and path not in kept:
                (path / "state.json").unlink(missing_ok=True)  # first: without it the rest counts for nothing
                shutil.rmtree(path, ignore_errors=True)
        return final

    def discard(self, draft: Path) -> None:
        """Removes a draft that could not be finished."""
        shutil.rmtree(draft, ignore_errors=True)

    def point_at(self, checkpoint: Path) -> None:
        """Makes a checkpoint the one that a run goes on from, also after it was killed before its next one."""
        write_whole(self.folder / "latest", checkpoint.name)

    def steps(self) -> list[Path]:
        """Returns the complete checkpoints, oldest first."""
        return [p for p in self._named() if (p / "state.json").is_file()]

    def latest(self) -> Path | None:
        """Returns the checkpoint to go on from; a `latest` that names none of the folder's own is ignored."""
        candidates = self.candidates()
        return candidates[0] if candidates else None

    def candidates(self) -> list[Path]:
        """Returns the complete checkpoints in the order in which to try them: the latest, then those before it.

        Later ones than `latest` are of a course that the run went back behind; they come last.
        """
        steps = self.steps()[::-1]
        try:
            with (self.folder / "latest").open("rb") as file:
                named = file.read(64).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return steps
        newest = next((i for i, p in enumerate(steps) if p.name == named), 0)
        return [*steps[newest:], *steps[:newest]]

    def at(self, iteration: int) -> Path | None:
        """Returns the checkpoint of an iteration, None if there is none."""
        return next((p for p in reversed(self.steps()) if _order(p)[0] == iteration), None)

    def holds(self, state: Mapping[str, Any]) -> bool:
        """Decides whether the latest checkpoint is of this very state, so that nothing is left to save."""
        latest = self.latest()
        try:
            saved = None if latest is None else read_state(latest)
        except CheckpointError:
            return False
        now = json.loads(json.dumps({"format": FORMAT, **state}))
        return saved is not None and {k: v for k, v in saved.items() if k not in ("files", OWN_HASH)} == now

    def space(self, draft: Path | None = None) -> tuple[int, int]:
        """Returns the bytes that a checkpoint needs at least, by the latest and the draft, and those that are free."""
        folders = [f for f in (self.latest(), draft) if f is not None and f.is_dir()]
        sizes = [sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders]
        present = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        return max(sizes, default=0), shutil.disk_usage(present).free

    def _named(self) -> list[Path]:
        """Returns the folders with a checkpoint's name, in order. A link is none: it may lead into another run."""
        found = [p for p in self.folder.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
        return sorted(found, key=_order)

    def _sweep(self) -> None:
        """Removes drafts, this process's earlier ones and those of killed ones."""
        for leftover in self.folder.glob("step_*.writing"):
            shutil.rmtree(leftover, ignore_errors=True)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads state.json and checks its shape. Raises CheckpointError, one sentence."""
    path = checkpoint / "state.json"
    try:
        state: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__} and should hold an object")
    found = cast("dict[str, Any]", state)
    if found.get("format") not in (1, FORMAT):
        raise CheckpointError(
            f"{checkpoint} has format {str(found.get('format'))[:40]} and this version reads 1 and {FORMAT}"
        )
    files: Any = found.get("files")
    entries = cast("dict[str, Any]", files if isinstance(files, dict) else {"..": None})
    if not all(_is_entry(name, entry) for name, entry in entries.items()):
        raise CheckpointError(f"{path} has no list of the checkpoint's files with their sizes")
    if not isinstance(found.get("iteration"), int):
        raise CheckpointError(f"{path} does not say which iteration it is of")
    return found


def verify(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Reads every file of a checkpoint and compares it with what `state` says of it. Raises CheckpointError, naming the first."""
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix in PICKLES:
            raise CheckpointError(
                f"{path} is a pickle, as older versions wrote them, and loading one may run any command: go on with model.path="
                f"{checkpoint / 'hf'} in a new run"
            )
    if OWN_HASH in state and state[OWN_HASH] != state_hash(state):
        raise CheckpointError(f"{checkpoint / 'state.json'} has other contents than were written")
    files: dict[str, Any] = state["files"]
    sizes = {name: entry if isinstance(entry, int) else entry["bytes"] for name, entry in files.items()}
    for name, size in sizes.items():
        path = checkpoint / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            raise CheckpointError(
                f"{path} should have {size} bytes and {'is missing' if actual is None else f'has {actual}'}"
            )
    hashed = [name for name, entry in files.items() if not isinstance(entry, int)]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for name, found in zip(hashed, pool.map(_hash, [checkpoint / name for name in hashed]), strict=True):
            if found != files[name]["blake2b"]:
                raise CheckpointError(f"{checkpoint / name} has other bytes than were written")
    for name in files:
        if name.endswith(".safetensors"):
            _check_header(checkpoint / name)


def state_hash(state: Mapping[str, Any]) -> str:
    """Hashes what state.json says, whatever its layout, without the hash that it has itself."""
    values = json.loads(json.dumps({key: value for key, value in state.items() if key != OWN_HASH}))
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=32).hexdigest()


def _order(checkpoint: Path) -> tuple[int, int]:
    match = NAME.match(checkpoint.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _is_entry(name: str, entry: Any) -> bool:
    """Decides whether an entry of "files" is one; a name that leads out of the folder is none."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    if isinstance(entry, int):
        return True
    return isinstance(entry, dict) and {key: type(value) for key, value in cast("dict[str, Any]", entry).items()} == {
        "bytes": int,
        "blake2b": str,
    }


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {str(error)[:200]}") from None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _flushed_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def flush_folder(folder: Path) -> None:
    """Makes a folder's entries survive a power failure, where the file system has that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there in full or not at all. Leaves no draft behind where it cannot."""
    draft = path.with_name(path.name + ".writing")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.strerror:
            error.filename = error.filename or str(path)
        raise
    flush_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Generator[None, None, None]:
    """Raises what safetensors reports of the disk as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
