"""Part `nccl` of check.py: the weight channel over NCCL, as far as one GPU goes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

Say = Callable[..., None]  # (what, found, ok)


def _second_member(rendezvous: Any, pipe: Any) -> None:
    import torch

    from learner.weights.protocol import WeightSyncError
    from learner.weights.subscriber import Subscriber

    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")
    try:
        channel = Subscriber(rendezvous, 20.0)
        channel.channel.wait(channel.channel.broadcast(torch.zeros(16, dtype=torch.uint8, device="cuda")), "probe")
        pipe.send("no error")
    except WeightSyncError as error:
        pipe.send(str(error))


def nccl(say: Say) -> None:
    import torch

    from learner.weights.checksum import Checksum
    from learner.weights.network import listen
    from learner.weights.protocol import WeightSyncError, make_manifest, make_rendezvous
    from learner.weights.publisher import Publisher

    torch.cuda.set_device(0)
    tensors = [(f"w{i}", torch.randn(1000 + i, 257, device="cuda", dtype=torch.bfloat16)) for i in range(40)]
    manifest = make_manifest(tensors, 1, 2**20)
    listener = listen("127.0.0.1")
    (alone,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "nccl", 1)
    publisher = Publisher(alone, 30.0, listener=listener)
    sums = {publisher.publish(manifest, tensors) for _ in range(2)}
    publisher.close()
    listener = listen("127.0.0.1")
    (host,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "gloo", 1)
    staged = Publisher(host, 30.0, listener=listener)
    sums.add(staged.publish(manifest, tensors))
    say("a group of one: checksum over NCCL and over gloo", ", ".join(f"{s:016x}" for s in sums), len(sums) == 1)
    data = torch.randint(256, (2**20,), dtype=torch.uint8)
    both = []
    for device in ("cpu", "cuda"):
        checksum = Checksum(device)
        checksum.update(data.to(device))
        both.append(checksum.value)
    say("checksum on CPU and GPU", f"{both[0]:016x}", both[0] == both[1])

    listener = listen("127.0.0.1")
    pair = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "nccl", 2)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    child = context.Process(target=_second_member, args=(pair[1], sender))
    child.start()
    try:
        publisher = Publisher(pair[0], 40.0, listener=listener)
        publisher.channel.wait(publisher.channel.broadcast(tensors[0][1].view(torch.uint8).flatten()), "probe", 20.0)
        output = "no error"
    except WeightSyncError as error:
        output = str(error)
    heard = receiver.recv() if receiver.poll(30) else "nothing"
    child.kill()
    say("two members on one device: the learner's error", output[:300], output != "no error")
    say("two members on one device: the generator's error", heard[:300], heard not in ("no error", "nothing"))
