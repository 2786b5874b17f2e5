"""A learner and generators as processes, each on a GPU of its own: part `nccl` of multi.py. Without GPUs, over gloo on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

TIMEOUT, GRACE_S = 40.0, 20.0


def _generator(pipe: Connection, device: str | None) -> None:
    """Joins, receives what it is told to, and answers with the sums of what it got; its errors are sentences."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    from learner.weights.protocol import WeightSyncError
    from learner.weights.subscriber import Subscriber

    on = torch.device("cpu") if device is None else torch.device("cuda", 0)
    if device is not None:
        torch.cuda.set_device(on)
    try:
        subscriber = Subscriber(pipe.recv(), TIMEOUT, device=on, model_device=on)
        pipe.send("joined")
        while (manifest := pipe.recv()) is not None:
            sums = {name: float(tensor.double().sum()) for name, tensor in subscriber.receive(manifest)}
            pipe.send((sums, subscriber.checksum))
    except WeightSyncError as error:
        pipe.send(str(error))


class Members:
    """Holds the learner, this process, and its generators. devices: a GPU each, the first for the learner; none: the CPU."""

    def __init__(self, devices: Sequence[str], generators: int) -> None:
        import torch

        from learner.weights.network import listen
        from learner.weights.protocol import make_rendezvous
        from learner.weights.publisher import Publisher

        context = multiprocessing.get_context("spawn")
        self._children: list[Any] = []
        self._pipes: list[Connection] = []
        for number in range(generators):
            ours, theirs = context.Pipe()
            device = devices[number + 1] if devices else None
            child = context.Process(target=_generator, args=(theirs, device), daemon=True)
            child.start()
            theirs.close()
            self._children.append(child)
            self._pipes.append(ours)
        listener, kind = listen("127.0.0.1"), "cuda" if devices else "cpu"
        names = [(f"generator {i}", 1) for i in range(generators)]
        port = listener.getsockname()[1]
        own, *ends = make_rendezvous("127.0.0.1", port, names, "nccl" if devices else "gloo", 0)
        for pipe, end in zip(self._pipes, ends, strict=True):
            pipe.send(end)
        width = 4096 if devices else 256
        self._weights = [(f"w{i}", torch.randn(width, width, device=kind, dtype=torch.bfloat16)) for i in range(16)]
        self._publisher = Publisher(own, TIMEOUT, listener=listener, memory=False, source=torch.device(kind, 0))
        for pipe in self._pipes:
            self._answer(pipe)

    def transfer(self, number: int) -> float:
        """Sends one version to all; returns the rate in GB/s. RuntimeError where one of them has other bytes."""
        from learner.weights.protocol import make_manifest

        for _, tensor in self._weights:
            tensor.add_(0.5)
        expected = {name: float(tensor.double().sum()) for name, tensor in self._weights}  # also waits for the GPU
        manifest = make_manifest(self._weights, number)
        for pipe in self._pipes:
            pipe.send(manifest)
        begun = time.perf_counter()
        sent = self._publisher.publish(manifest, self._weights)
        answers = [self._answer(pipe) for pipe in self._pipes]
        seconds = time.perf_counter() - begun
        for index, answer in enumerate(answers):
            if answer != (expected, sent):
                raise RuntimeError(f"generator {index} answers version {number} with {str(answer)[:300]}")
        return sum(tensor.nbytes for _, tensor in self._weights) / 1e9 / seconds

    def transfer_without_the_last(self) -> str:
        """Kills the last generator and sends a version; returns what the learner says of it, or that it said nothing."""
        from learner.weights.protocol import WeightSyncError, make_manifest

        self._children[-1].kill()
        self._children[-1].join(GRACE_S)
        self._publisher.channel.timeout_s = 5.0
        manifest = make_manifest(self._weights, 100)
        for pipe in self._pipes[:-1]:
            pipe.send(manifest)
        try:
            self._publisher.publish(manifest, self._weights)
        except WeightSyncError as error:
            return str(error)
        return "no error"

    def _answer(self, pipe: Connection) -> Any:
        if not pipe.poll(TIMEOUT):
            raise RuntimeError(f"a generator did not answer within {TIMEOUT:g} s")
        answer = pipe.recv()
        if isinstance(answer, str) and answer != "joined":
            raise RuntimeError(answer)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        for child in self._children:
            child.kill()
            child.join(GRACE_S)
