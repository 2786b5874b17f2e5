"""Keeps tensors in host memory while another process has the GPU, and puts them back where they were.

What moves are storages: a tensor's storage is emptied and later filled again, so that every tensor and view of it stays valid.
DeepSpeed's own `offload_states` replaces tensors instead; it exists for ZeRO alone, and at stage 3 for its fused Adam alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# Host memory is page-locked in pieces of this size: torch rounds each up to a power of two, and progress is counted by the piece.
PIECE_BYTES = 256 << 20


class HostCopy:
    """Holds the bytes of tensors that are away. The host memory is kept for the next time: page-locking it anew takes long."""

    def __init__(self, on_piece: Callable[[], None] = lambda: None) -> None:
        """on_piece: called after each piece that was copied."""
        self._on_piece = on_piece
        self._pieces: list[Tensor] = []
        self._away: list[tuple[torch.UntypedStorage, int]] = []  # with the bytes that each had

    @property
    def away(self) -> bool:
        """Returns whether tensors are away; none of them may be read before `give_back`."""
        return bool(self._away)

    def take(self, tensors: Iterable[Tensor]) -> int:
        """Moves the storages of `tensors`, and with them whatever else lies in them, to the host. Returns the bytes."""
        found = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        storages = [storage for address, storage in found.items() if address]
        offset = 0
        for storage in storages:
            nbytes = storage.nbytes()
            for part, piece in self._parts(storage, offset, nbytes):
                piece.copy_(part)
                self._on_piece()
            self._away.append((storage, nbytes))
            storage.resize_(0)
            offset += nbytes
        return offset

    def give_back(self) -> None:
        """Fills the storages again. Does nothing where none is away."""
        offset = 0
        for storage, nbytes in self._away:
            storage.resize_(nbytes)
            for part, piece in self._parts(storage, offset, nbytes):
                part.copy_(piece)
                self._on_piece()
            offset += nbytes
        self._away.clear()

    def _parts(self, storage: torch.UntypedStorage, offset: int, nbytes: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the bytes of a storage in parts, each with its place on the host. offset: of the first byte there."""
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        done = 0
        while done < nbytes:
            index, at = divmod(offset + done, PIECE_BYTES)
            if index == len(self._pieces):
                pinned = storage.device.type == "cuda"
                self._pieces.append(torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=pinned))
            length = min(nbytes - done, PIECE_BYTES - at)
            yield whole[done : done + length], self._pieces[index][at : at + length]
            done += length
