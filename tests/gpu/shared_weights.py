"""Part `ipc` of check.py: weights that an engine on the learner's own GPU reads out of its memory, and out of the host's.

Part `ipc` of multi.py too, with an engine on another GPU, and on a CPU, where it is rehearsed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT = 60.0


def engine(pipe: Connection, visible: str | None, kind: str) -> None:
    """Receives on the device what it is told to, and answers with sums of what it copied and with the checksum.

    visible: the GPU that this process is to see; None: those of its parent.
    """
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    import torch

    from learner.weights.subscriber import Subscriber

    subscriber: Subscriber | None = None
    while (order := pipe.recv()) is not None:
        if subscriber is None or hasattr(order, "rank"):
            subscriber = Subscriber(order, TIMEOUT, device=torch.device("cpu"), model_device=torch.device(kind, 0))
            pipe.send("joined")
            continue
        copies = {name: tensor.to(kind, copy=True) for name, tensor in subscriber.receive(order)}
        if kind == "cuda":
            torch.cuda.synchronize()
        pipe.send(({name: float(copy.double().sum()) for name, copy in copies.items()}, subscriber.checksum))


def ipc(say: Callable[..., None]) -> None:
    """Compares what arrives by each medium with what was sent, where learner and engine are on the same GPU."""
    media(say, "cuda", ("gpu", "memory", "network"))


def media(
    say: Callable[..., None],
    kind: str,
    names: Sequence[str],
    visible: str | None = None,
    width: int = 4096,
    best: str = "",
) -> None:
    """Compares what arrives with what was sent, over versions of two buckets' turns: by each of the media that are named.

    visible: the GPU of the engine; None: the learner's. width: of the tensors, width x width. best: the medium that is expected
    where the learner offers a GPU that the engine is not on.
    """
    import torch

    from learner.weights.network import listen
    from learner.weights.protocol import make_manifest, make_rendezvous
    from learner.weights.publisher import Publisher

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=engine, args=(theirs, visible, kind), daemon=True)
    child.start()
    weights = [(f"w{i}", torch.randn(width, width, device=kind, dtype=torch.bfloat16)) for i in range(16)]
    options: dict[str, dict[str, Any]] = {"gpu": {"source": torch.device("cuda", 0)}, "network": {"memory": False}}
    for medium in names:
        listener = listen("127.0.0.1")
        own, end = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 0)
        ours.send(end)
        publisher = Publisher(own, TIMEOUT, listener=listener, **options.get(medium, {}))
        ours.recv()
        right, seconds = True, 0.0
        for version in range(4):
            for _, tensor in weights:
                tensor.add_(0.5)
            if kind == "cuda":
                torch.cuda.synchronize()
            manifest = make_manifest(
                weights, version, 2 * weights[0][1].nbytes
            )  # 8 buckets: each slot is packed four times
            ours.send(manifest)
            begun = time.perf_counter()
            sent = publisher.publish(manifest, weights)
            sums, received = ours.recv()
            seconds = time.perf_counter() - begun  # of the last: the first also allocates
            right &= received == sent and sums == {name: float(t.double().sum()) for name, t in weights}
        gigabytes = sum(tensor.nbytes for _, tensor in weights) / 1e9
        say(
            f"weights by {medium}" + (f", which is not there: by {best}" if best else ""),
            f"{publisher.medium}, {gigabytes / seconds:.1f} GB/s",
            right and publisher.medium == (best or medium),
        )
        publisher.close()
    ours.send(None)
