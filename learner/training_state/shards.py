"""Writes and reads the files of a saved optimiser: rank_0003_00012.safetensors, ..., and scaler.json.

Every file holds, for some parameters, the ranges that one rank had: tensors "NAME/master", "NAME/exp_avg" and "NAME/exp_avg_sq"
[n], and in its metadata where each range begins, how large the whole parameter is, and AdamW's step count.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Safetensors leaves its files and functions partly untyped.

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from learner.checkpoint import CheckpointError, disk_errors
from learner.optimiser.adamw import StepCount
from learner.training_state.fragments import Fragment

FILE_BYTES = 256 << 20  # of host memory that a rank needs to write, beside a larger parameter's own
FLOAT = 4  # bytes of an element in the files
SCALER_FILE = "scaler.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """Locates a saved range of one parameter in an open file."""

    file: Any  # of safetensors, which has no types
    start: int
    length: int
    size: int  # elements of the whole parameter
    steps: float


def write(
    folder: Path, fragments: Iterable[Fragment], rank: int, replicas: int, on_file: Callable[[], None] = lambda: None
) -> None:
    """Writes this rank's ranges, and calls `on_file` after each file. Raises OSError.

    replicas: over how many ranks that all hold the same ranges the writing is divided; 1 where each holds its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(_batches((_share(f, rank, replicas) for f in fragments), FILE_BYTES)):
        tensors = {f"{f.name}/{key}": values.read() for f in batch for key, values in f.values.items()}
        ranges = {f.name: [f.start, f.length, f.size, f.steps.value] for f in batch}
        path = folder / f"rank_{rank:04d}_{number:05d}.safetensors"
        with disk_errors(path):
            save_file(tensors, path, metadata={"ranges": json.dumps(ranges)})
        on_file()


def read(
    folder: Path, fragments: Sequence[Fragment], names: Iterable[str], on_range: Callable[[], None] = lambda: None
) -> None:
    """Fills this rank's ranges from what any number of ranks have written, and calls `on_range` after each. Raises
    CheckpointError.

    names: of all trained parameters, whether this rank has a part of them or not.
    """
    with ExitStack() as stack:
        saved = _open(folder, stack)
        here = set(names)
        if here != saved.keys():
            only = sorted(here ^ saved.keys())
            raise CheckpointError(
                f"{folder} was saved of another model: {len(only)} of {len(here | saved.keys())} parameters are in one of the two "
                f"alone, such as {only[0]}"
            )
        steps: dict[int, tuple[StepCount, float]] = {}
        with torch.no_grad():
            for fragment in fragments:
                _fill(fragment, saved[fragment.name], folder)
                on_range()
                shared = id(fragment.steps.state)  # with every fragment of the same tensor
                known = steps.get(shared, (fragment.steps, 0.0))[1]
                steps[shared] = fragment.steps, max(known, *(p.steps for p in saved[fragment.name]))
            for counted, count in steps.values():
                counted.set(count)


def write_scaler(folder: Path, state: dict[str, float]) -> None:
    """Writes the loss scaler's state, which is the same on every rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCALER_FILE).write_text(json.dumps(state), "utf-8")


def read_scaler(folder: Path) -> dict[str, float]:
    """Reads the loss scaler's state. Raises CheckpointError."""
    try:
        state = json.loads((folder / SCALER_FILE).read_text("utf-8"))
        return {str(key): value for key, value in state.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / SCALER_FILE} cannot be read: {error}") from None


def _share(fragment: Fragment, rank: int, replicas: int) -> Fragment:
    """Returns the part of a range that this one of several ranks writes that all have it."""
    if replicas == 1:
        return fragment
    bounds = [fragment.length * k // replicas for k in (rank, rank + 1)]
    values = {key: whole.part(*bounds) for key, whole in fragment.values.items()}
    return Fragment(fragment.name, fragment.size, fragment.start + bounds[0], values, fragment.steps)


def _batches(fragments: Iterable[Fragment], file_bytes: int) -> Iterator[list[Fragment]]:
    """Yields as many as a file takes, one at least; ranges of no element are left out."""
    batch: list[Fragment] = []
    held = 0
    for fragment in fragments:
        size = FLOAT * sum(values.length for values in fragment.values.values())
        if batch and held + size > file_bytes:
            yield batch
            batch, held = [], 0
        if size:
            batch.append(fragment)
            held += size
    if batch:
        yield batch


def _open(folder: Path, stack: ExitStack) -> dict[str, list[Piece]]:
    """Opens all files and returns the saved ranges of every parameter, in order."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for path in sorted(folder.glob("rank_*.safetensors")):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            ranges = json.loads(file.metadata()["ranges"])
            for name, (start, length, size, steps) in ranges.items():
                pieces[name].append(Piece(file, int(start), int(length), int(size), float(steps)))
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from None
    if not pieces:
        raise CheckpointError(f"{folder} holds no state of an optimiser: rank_*.safetensors are missing")
    return pieces


def _fill(fragment: Fragment, pieces: Sequence[Piece], folder: Path) -> None:
    """Copies the elements of `fragment` out of the pieces that have them."""
    end, filled = fragment.start + fragment.length, 0
    for piece in pieces:
        if piece.size != fragment.size:
            raise CheckpointError(
                f"{folder} has {fragment.name} with {piece.size} elements and the model has {fragment.size}: it is of another model"
            )
        first, last = max(fragment.start, piece.start), min(end, piece.start + piece.length)
        if first >= last:
            continue
        for key, target in fragment.values.items():
            source = piece.file.get_slice(f"{fragment.name}/{key}")[first - piece.start : last - piece.start]
            target.write(first - fragment.start, source)
        filled += last - first
    if filled != fragment.length:
        raise CheckpointError(
            f"{folder} has {filled} of the {fragment.length} elements of {fragment.name} from {fragment.start} on: a rank's part "
            "is missing"
        )
