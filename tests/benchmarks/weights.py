"""Times a weight transfer beside a plain memcpy: `python tests/benchmarks/weights.py [--mb 540] [--engines 2]`.

Receivers are processes that read every tensor and drop it: an engine's own repacking is apart. Each line is the median of `--runs`
transfers, taken in turn with the other medium's and with the memcpy they are compared with: one copy of the same bytes between two
buffers of the learner's process that were touched before. "ratio" is the transfer's bandwidth (bytes of the weights by its wall
time, until the last receiver has them) over the memcpy's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from benchmarks.measure import ratio, write  # noqa: E402

from learner.weights.network import listen  # noqa: E402
from learner.weights.protocol import Rendezvous, WeightManifest, make_manifest, make_rendezvous  # noqa: E402
from learner.weights.publisher import Publisher  # noqa: E402
from learner.weights.subscriber import Subscriber  # noqa: E402

TIMEOUT = 120.0
MEDIA = {"memory": True, "network": False}


def receiver(pipe: Connection) -> None:
    """Receives what it is told to, and answers with the checksum."""
    torch.set_num_threads(1)
    subscribers: dict[str, Subscriber] = {}
    while (order := pipe.recv()) is not None:
        medium, what = order
        if isinstance(what, Rendezvous):
            subscribers[medium] = Subscriber(what, TIMEOUT)
            pipe.send(None)
        else:
            for _ in subscribers[medium].receive(what):
                pass
            pipe.send(subscribers[medium].checksum)


def connect(pipes: list[Connection], medium: str) -> Publisher:
    listener = listen("127.0.0.1")
    engines = [(f"generator {i}", 1) for i in range(len(pipes))]
    own, *others = make_rendezvous("127.0.0.1", listener.getsockname()[1], engines, "gloo", 0)
    for pipe, end in zip(pipes, others, strict=True):
        pipe.send((medium, end))
    publisher = Publisher(own, TIMEOUT, listener=listener, memory=MEDIA[medium])
    for pipe in pipes:
        pipe.recv()
    return publisher


def transfer(
    pipes: list[Connection], medium: str, publisher: Publisher, manifest: WeightManifest, weights: object
) -> float:
    for pipe in pipes:
        pipe.send((medium, manifest))
    begun = time.perf_counter()
    sent = publisher.publish(manifest, weights)  # type: ignore[arg-type]
    received = [pipe.recv() for pipe in pipes]
    seconds = time.perf_counter() - begun
    if set(received) != {sent} or publisher.medium != medium:
        raise RuntimeError(f"sent {sent:x} by {publisher.medium} instead of {medium}, received {received}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, default=540)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--media", nargs="+", choices=list(MEDIA), default=list(MEDIA))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = options.mb * 10**6 // (24 * 4096 * 4)
    weights = [(f"layer {i}", torch.randn(rows, 4096)) for i in range(24)]
    nbytes = sum(tensor.nbytes for _, tensor in weights)
    whole = [(tensor, torch.zeros_like(tensor)) for _, tensor in weights]

    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(options.engines)]
    processes = [context.Process(target=receiver, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    pipes = [ours for ours, _ in pairs]
    publishers = {medium: connect(pipes, medium) for medium in options.media}
    seconds: dict[str, list[float]] = {"memcpy": [], **{medium: [] for medium in options.media}}
    for run in range(options.runs + 1):
        begun = time.perf_counter()
        for source, target in whole:
            target.copy_(source)
        seconds["memcpy"].append(time.perf_counter() - begun)
        for medium, publisher in publishers.items():
            manifest = make_manifest(weights, run)
            seconds[medium].append(transfer(pipes, medium, publisher, manifest, weights))
    memcpy = statistics.median(seconds["memcpy"][1:])
    print(f"{nbytes / 1e6:.0f} MB to {options.engines} engines on one host, medians of {options.runs}")
    for name, values in seconds.items():
        middle = statistics.median(values[1:])  # the first transfer also allocates
        speed, share = nbytes / middle / 1e9, memcpy / middle
        print(f"{name:8} {middle * 1e3:7.0f} ms  {speed:5.2f} GB/s  ratio {share:.2f}  first {values[0] * 1e3:.0f} ms")
    lines = [
        ratio(
            f"{nbytes / 1e6:.0f} MB to {options.engines} engines by {name}: share of a memcpy's bandwidth",
            memcpy / statistics.median(values[1:]),
            goal="at least 0.5" if name == "memory" else "",
            held=memcpy / statistics.median(values[1:]) >= 0.5 if name == "memory" else None,
            ours=f"{statistics.median(values[1:]) * 1e3:.0f} ms",
            other=f"{memcpy * 1e3:.0f} ms",
            values=[a / b for a, b in zip(seconds["memcpy"][1:], values[1:], strict=True)],
        )
        for name, values in seconds.items()
        if name != "memcpy"
    ]
    write(options.json, "weights", lines, seconds=seconds)
    for pipe in pipes:
        pipe.send(None)
    for publisher in publishers.values():
        publisher.close()


if __name__ == "__main__":
    main()
