"""Keeps the inputs of checkpointed layers in host memory between the forward pass and the backward pass.

With gradient checkpointing a layer keeps its input alone, and computes the rest again. On a GPU that input goes to page-locked
host memory while the next layers are computed, and comes back while the layer behind it is computed again: copies have streams of
their own, one each way. What is left on the GPU are the inputs of a layer or two.

The hooks are torch's (`torch.autograd.graph.saved_tensors_hooks`), around the call that saves the input and nothing else: what is
saved inside of a layer is the checkpoint's own, and weights never come here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class HostInput:
    """Holds one layer's input on the host, and for a while the copy on the GPU that is on its way back."""

    def __init__(self, host: Tensor, device: torch.device, arrived: Any, before: weakref.ref[HostInput] | None) -> None:
        """arrived: the event after the copy to the host; None without streams. before: what was kept last, the layer before."""
        self.host, self.device, self.arrived, self.before = host, device, arrived, before
        self.coming: tuple[Tensor, Any] | None = None  # with the event after the copy back


class LayerInputs:
    """Moves what is saved of a layer's call. One object for all layers of a model, which are called in order."""

    def __init__(self) -> None:
        self.moved = 0  # bytes that went to the host so far
        self._saved: Tensor | None = None  # the input of the call that is saving
        self._last: weakref.ref[HostInput] | None = None
        self._streams: tuple[Any, Any] | None = None  # to the host and back

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a checkpointing function whose first argument behind the layer, its input, is kept on the host."""

        def moved(layer: Callable[..., Any], *inputs: Any) -> Any:
            self._saved = inputs[0] if inputs else None
            try:
                with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
                    return checkpoint(layer, *inputs)
            finally:
                self._saved = None

        return moved

    def pack(self, tensor: Tensor) -> Tensor | HostInput:
        """Begins to copy a layer's input to the host.

        Masks and positions stay: families that hand them over beside it give all layers the same.
        """
        saved = self._saved
        if saved is None or tensor.data_ptr() != saved.data_ptr() or tensor.shape != saved.shape:
            return tensor
        cuda = tensor.is_cuda
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
        arrived = None
        if cuda:
            out, _ = self._both(tensor.device)
            out.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(out):
                host.copy_(tensor, non_blocking=True)
            tensor.record_stream(out)  # its memory is not given away before it was read
            arrived = out.record_event()
        else:
            host.copy_(tensor)
        self.moved += host.nbytes
        kept = HostInput(host, tensor.device, arrived, self._last)
        self._last = weakref.ref(kept)
        return kept

    def unpack(self, kept: Tensor | HostInput) -> Tensor:
        """Returns the input on its device, and begins to copy that of the layer before, which is needed next."""
        if isinstance(kept, Tensor):
            return kept
        tensor, ready = kept.coming or self._fetch(kept)
        kept.coming = None
        if ready is not None:
            torch.cuda.current_stream(kept.device).wait_event(ready)
            before = kept.before() if kept.before is not None else None
            if before is not None and before.coming is None:
                before.coming = self._fetch(before)
        return tensor

    def _fetch(self, kept: HostInput) -> tuple[Tensor, Any]:
        """Begins to copy an input back; returns it and the event after the copy."""
        if kept.arrived is None:
            return kept.host.clone(), None
        _, back = self._both(kept.device)
        tensor = torch.empty(kept.host.shape, dtype=kept.host.dtype, device=kept.device)
        back.wait_stream(torch.cuda.current_stream(kept.device))  # which may still use what this memory was before
        back.wait_event(kept.arrived)
        with torch.cuda.stream(back):
            tensor.copy_(kept.host, non_blocking=True)
        tensor.record_stream(back)
        return tensor, back.record_event()

    def _both(self, device: torch.device) -> tuple[Any, Any]:
        if self._streams is None:
            self._streams = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self._streams
