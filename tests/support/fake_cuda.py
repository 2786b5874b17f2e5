"""Stands in for CUDA on machines without: tensors that are said to be on a GPU are the host's, and every call is written down.

It is stricter than the real thing where that finds mistakes: an operation that mixes tensors of a GPU and of the host raises, as it
does there, and `unfinished` says which GPUs have been given work since their stream was waited for last. A copy on another stream
than the usual one is made when somebody waits for it, and until then there is nan where it goes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What takes tensors of two devices, or copies from one to the other.
_CROSSING = {"copy_", "to", "cpu", "cuda", "set_", "clone", "__get__", "__set__", "size", "stride", "dim"}
_READING = {"__get__", "size", "stride", "dim", "data_ptr", "untyped_storage", "numel", "element_size", "is_contiguous"}


class FakeGPUs:
    """Holds which storages are on which GPU, and what CUDA was asked, in order.

    events: tuples such as ("synchronise", "cuda:0"). uuids: of the GPUs that this process sees.
    """

    def __init__(
        self, uuids: Sequence[str] = ("GPU-a",), shared_memory: int = 227 * 1024, capability: Any = (9, 0)
    ) -> None:
        self.uuids, self.shared_memory, self.capability = list(uuids), shared_memory, capability
        self.events: list[tuple[Any, ...]] = []
        self.unfinished: set[str] = set()
        self.current = 0
        self.refuses_to_pin = False
        self._numbers = itertools.count()
        self._marks: dict[
            int, tuple[torch.UntypedStorage, torch.device]
        ] = {}  # the storage, so that its address stays its
        self._lock = threading.Lock()
        self.stream: FakeStream | None = None  # that work is given to; None: the usual one, whose work is done at once

    def say(self, *event: Any) -> None:
        with self._lock:
            self.events.append(event)

    def device_of(self, tensor: Tensor) -> torch.device | None:
        """Returns the GPU that a tensor is on; None for the host's."""
        with torch._C.DisableTorchFunction():
            found = self._marks.get(tensor.untyped_storage().data_ptr())
        return None if found is None else found[1]

    def mark(self, tensor: Tensor, device: torch.device) -> Tensor:
        device = torch.device("cuda", self.current if device.index is None else device.index)
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        with self._lock:
            self._marks[storage.data_ptr()] = storage, device
            self.unfinished.add(str(device))
        return tensor

    @contextmanager
    def here(self) -> Iterator[None]:
        """Lets this thread's torch see the GPUs; every thread needs it."""
        with _Mode(self):
            yield

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaces torch.cuda's functions, in all threads."""
        for name, function in {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: len(self.uuids),
            "current_device": lambda: self.current,
            "get_device_properties": self._properties,
            "get_device_capability": lambda device=None: self.capability,
            "set_device": self._set_device,
            "current_stream": lambda device=None: self.stream or FakeStream(self, device, "current"),
            "Stream": lambda device=None: FakeStream(self, device, f"stream {next(self._numbers)}"),
            "stream": self._on,
            "empty_cache": lambda: self.say("empty_cache"),
            "cudart": lambda: SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister),
            "device_of": self._guard,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: self.say("record_stream", stream.name), raising=False
        )

    def _properties(self, index: Any) -> SimpleNamespace:
        number = index if isinstance(index, int) else torch.device(index).index or 0
        return SimpleNamespace(
            uuid=self.uuids[number], shared_memory_per_block_optin=self.shared_memory, multi_processor_count=100
        )

    def _set_device(self, device: Any) -> None:
        self.current = torch.device(device).index or 0
        self.say("set_device", str(device))

    def _finish(self, device: Any) -> None:
        self.unfinished.discard(str(device))
        self.say("synchronise", str(device))

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        self.say("register", address, nbytes, flags)
        return int(self.refuses_to_pin)

    def _unregister(self, address: int) -> int:
        self.say("unregister", address)
        return 0

    @contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def _guard(self, tensor: Tensor) -> Iterator[None]:
        self.say("device_of", str(tensor.device))
        yield


class FakeStream:
    """Holds copies in the order in which they were asked for, until somebody waits for them."""

    def __init__(self, gpus: FakeGPUs, device: Any, name: str) -> None:
        self.gpus, self.device, self.name = gpus, device, name
        self.work: list[Callable[[], Any]] = []
        self.done = 0

    def synchronize(self) -> None:
        self._run(len(self.work))
        self.gpus._finish(self.device)

    def wait_stream(self, other: FakeStream) -> None:
        self.gpus.say("wait", self.name, other.name)
        other._run(len(other.work))

    def record_event(self) -> Any:
        return SimpleNamespace(stream=self, count=len(self.work))

    def wait_event(self, event: Any) -> None:
        self.gpus.say("wait", self.name, event.stream.name)
        event.stream._run(event.count)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.fill_(float("nan"))
        self.work.append(lambda: target.copy_(source))

    def _run(self, count: int) -> None:
        for number in range(self.done, count):
            with torch._C.DisableTorchFunction():
                self.work[number]()
        self.done = max(self.done, count)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class _Mode(TorchFunctionMode):
    def __init__(self, gpus: FakeGPUs) -> None:
        super().__init__()
        self.gpus = gpus

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.gpus.device_of(args[0]) or func(*args)
        if func == cast(Any, torch.Tensor.is_cuda).__get__:
            return self.gpus.device_of(args[0]) is not None
        name = getattr(func, "__name__", "")
        if name == "to":
            return self._to(args[0], args[1:], kwargs)
        if kwargs.pop("pin_memory", False):
            self.gpus.say("pinned", func(*args, **kwargs).nbytes)
        asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if asked is not None and asked.type == "cuda":
            return self._made(func, args, kwargs, asked)
        given = list(_tensors([*args, *kwargs.values()]))
        found = {self.gpus.device_of(t) for t in given if t.ndim or name in _CROSSING}
        if len(found) > 1 and name not in _CROSSING:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found}")
        if name == "numpy" and found != {None}:
            raise TypeError("can't convert cuda device type tensor to numpy")
        if name == "copy_" and kwargs.get("non_blocking") and self.gpus.stream is not None:
            source, target = (str(self.gpus.device_of(t) or "cpu") for t in (args[1], args[0]))
            self.gpus.say("copy", source, target, self.gpus.stream.name)
            with torch._C.DisableTorchFunction():
                self.gpus.stream.copy(args[0], args[1])
            return args[0]
        if name == "copy_":
            source, target = (str(self.gpus.device_of(t) or "cpu") for t in (args[1], args[0]))
            self.gpus.say("copy", source, target)
        out = func(*args, **kwargs)
        device = self.gpus.device_of(args[0]) if name == "copy_" else next(iter(found), None)
        if device is not None and name not in _READING:
            for tensor in _tensors([out]):
                self.gpus.mark(tensor, device)
        return out

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Tensor:
        kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        if not out.numel() and func is torch.empty:  # an address of its own to be known by
            out = func(1, **kwargs)[:0]
        return self.gpus.mark(out, device)

    def _to(self, tensor: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        def device_in(value: Any) -> torch.device | None:
            if isinstance(value, torch.device):
                return value
            return torch.device(value) if isinstance(value, str) else None

        values = [*args, *([kwargs["device"]] if "device" in kwargs else [])]
        target = next((d for d in map(device_in, values) if d is not None), None)
        here = self.gpus.device_of(tensor)
        rest = [v for v in args if device_in(v) is None]
        options = {k: v for k, v in kwargs.items() if k != "device"}
        with torch._C.DisableTorchFunction():
            moved = tensor.to(*rest, **options) if rest or options else tensor
        if target is None or (here or torch.device("cpu")).type == target.type:
            return self.gpus.mark(moved, here) if here is not None else moved
        self.gpus.say("copy", str(here or "cpu"), str(target))
        with torch._C.DisableTorchFunction():
            moved = moved.clone()
        return self.gpus.mark(moved, target) if target.type == "cuda" else moved


class FakeNCCL:
    """Stands in for torch's ProcessGroupNCCL, whose members are threads: broadcasts through queues.

    It refuses tensors of the host, and two members on one GPU, as NCCL does. made: (rank, world size, timeout in seconds) of every
    group. refusal: what the first broadcast raises.
    """

    class Options:
        _timeout: Any = None

    def __init__(self, gpus: FakeGPUs, refusal: str = "") -> None:
        self.gpus, self.refusal = gpus, refusal
        self.made: list[tuple[int, int, float]] = []
        self.aborted: list[int] = []
        self.devices: dict[int, str] = {}
        self._wire: dict[tuple[int, int], Tensor] = {}
        self._there = threading.Condition()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch.distributed as dist

        def group(store: Any, rank: int, size: int, options: Any) -> Any:
            self.made.append((rank, size, options._timeout.total_seconds()))
            return _Member(self, rank)

        group.Options = FakeNCCL.Options  # type: ignore[attr-defined]
        monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
        monkeypatch.setattr(dist, "ProcessGroupNCCL", group, raising=False)


class _Member:
    def __init__(self, fabric: FakeNCCL, rank: int) -> None:
        self.fabric, self.rank, self.round = fabric, rank, 0

    def broadcast(self, buffers: list[Tensor], options: Any) -> Any:
        fabric, (buffer,) = self.fabric, buffers
        if fabric.refusal:
            raise RuntimeError(fabric.refusal)
        assert options.rootRank == 0
        device = fabric.gpus.device_of(buffer)
        if device is None:
            raise RuntimeError("Tensors must be CUDA and dense")
        with fabric._there:
            if str(device) in {d for r, d in fabric.devices.items() if r != self.rank}:
                raise RuntimeError(f"Duplicate GPU detected : rank {self.rank} on {device}")
            fabric.devices[self.rank] = str(device)
        self.round += 1
        number = self.round
        if self.rank == 0:
            with fabric._there, torch._C.DisableTorchFunction():
                fabric._wire[0, number] = buffer.clone()
                fabric._there.notify_all()
            return SimpleNamespace(wait=lambda limit: True)
        return SimpleNamespace(wait=lambda limit: self._receive(buffer, number, limit.total_seconds()))

    def _receive(self, buffer: Tensor, number: int, seconds: float) -> None:
        wire, there = self.fabric._wire, self.fabric._there
        with there:
            if not there.wait_for(lambda: (0, number) in wire, seconds):
                raise RuntimeError("Watchdog caught collective operation timeout")
            with torch._C.DisableTorchFunction():
                buffer.copy_(wire[0, number])

    def abort(self) -> None:
        self.fabric.aborted.append(self.rank)


def seen_by(gpus: FakeGPUs, work: Callable[[], Any]) -> Callable[[], Any]:
    """Returns `work` for another thread, which sees the GPUs as well."""

    def run() -> Any:
        with gpus.here():
            return work()

    return run
