"""Makes weight groups whose members are threads of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from learner.weights.network import listen
from learner.weights.protocol import WeightManifest, make_rendezvous
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber

TIMEOUT = 10.0


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def meet(engines: int, timeout_s: float = TIMEOUT, memory: bool = False) -> tuple[Publisher, list[Subscriber]]:
    listener = listen("127.0.0.1")
    ends = make_rendezvous(
        "127.0.0.1", listener.getsockname()[1], [(f"generator {i}", 1) for i in range(engines)], "gloo", epoch=0
    )
    joining = [in_thread(lambda end=end: Subscriber(end, timeout_s)) for end in ends[1:]]
    publisher = Publisher(ends[0], timeout_s, listener=listener, memory=memory)
    return publisher, [future.result(TIMEOUT) for future in joining]


def receive(subscriber: Subscriber, manifest: WeightManifest) -> tuple[dict[str, torch.Tensor], int]:
    got = {name: tensor.clone() for name, tensor in subscriber.receive(manifest)}
    return got, subscriber.checksum
