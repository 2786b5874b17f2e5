"""Part `ipc` of check.py: weights that an engine on the learner's own GPU reads out of its memory, and out of the host's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT = 60.0


def engine(pipe: Connection) -> None:
    """Receives on the GPU what it is told to, and answers with sums of what it copied and with the checksum."""
    import torch

    from learner.weights.subscriber import Subscriber

    subscriber: Subscriber | None = None
    while (order := pipe.recv()) is not None:
        if subscriber is None or hasattr(order, "rank"):
            subscriber = Subscriber(order, TIMEOUT, device=torch.device("cpu"), model_device=torch.device("cuda", 0))
            pipe.send("joined")
            continue
        copies = {name: tensor.to("cuda", copy=True) for name, tensor in subscriber.receive(order)}
        torch.cuda.synchronize()
        pipe.send(({name: float(copy.double().sum()) for name, copy in copies.items()}, subscriber.checksum))


def ipc(say: Callable[..., None]) -> None:
    """Compares what arrives by each medium with what was sent, over versions of two buckets' turns."""
    import torch

    from learner.weights.network import listen
    from learner.weights.protocol import make_manifest, make_rendezvous
    from learner.weights.publisher import Publisher

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=engine, args=(theirs,), daemon=True)
    child.start()
    weights = [(f"w{i}", torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)) for i in range(16)]
    for medium, options in (
        ("gpu", {"source": torch.device("cuda", 0)}),
        ("memory", {}),
        ("network", {"memory": False}),
    ):
        listener = listen("127.0.0.1")
        own, end = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 0)
        ours.send(end)
        chosen: dict[str, Any] = options
        publisher = Publisher(own, TIMEOUT, listener=listener, **chosen)
        ours.recv()
        right, seconds = True, 0.0
        for version in range(4):
            for _, tensor in weights:
                tensor.add_(0.5)
            torch.cuda.synchronize()
            manifest = make_manifest(weights, version)  # 8 buckets: each slot is packed four times
            ours.send(manifest)
            begun = time.perf_counter()
            sent = publisher.publish(manifest, weights)
            sums, received = ours.recv()
            seconds = time.perf_counter() - begun  # of the last: the first also allocates
            right &= received == sent and sums == {name: float(t.double().sum()) for name, t in weights}
        gigabytes = sum(tensor.nbytes for _, tensor in weights) / 1e9
        say(
            f"weights by {medium}",
            f"{publisher.medium}, {gigabytes / seconds:.1f} GB/s",
            right and publisher.medium == medium,
        )
        publisher.close()
    ours.send(None)
