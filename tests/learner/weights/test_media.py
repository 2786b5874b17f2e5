"""How weights travel: through this host's memory where everybody can open it, else over the network, and nothing is left behind."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.weight_group import TIMEOUT, in_thread, meet, receive
from torch import Tensor

from learner.weights import choice, cuda_ipc, host_memory
from learner.weights.checksum import Checksum
from learner.weights.cuda_ipc import handle_of, open_handle
from learner.weights.host_memory import HEADER, OpenSegment, Segment, free_memory, host_id
from learner.weights.network import listen
from learner.weights.protocol import Rendezvous, WeightManifest, WeightSyncError, make_manifest, make_rendezvous
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber


def weights(seed: int, count: int = 6) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"w{i}", torch.randn(40, 7, generator=generator)) for i in range(count)]


def transfer(publisher: Publisher, subscribers: Sequence[Subscriber], version: int, bucket_bytes: int = 3000) -> None:
    sent = weights(version)
    manifest = make_manifest(sent, version, bucket_bytes)
    receiving = [in_thread(lambda s=s: receive(s, manifest)) for s in subscribers]
    total = publisher.publish(manifest, sent)
    for future in receiving:
        got, checksum = future.result(TIMEOUT)
        assert checksum == total
        assert all(torch.equal(got[name], tensor) for name, tensor in sent)


# The segment.


def test_a_segment_is_read_where_it_was_written() -> None:
    segment = Segment(1000)
    segment.data[:] = torch.arange(1000).to(torch.uint8)
    opened = OpenSegment(segment.offer)
    assert torch.equal(opened.data, segment.data)
    segment.data[7] = 200
    assert opened.data[7] == 200, "the same memory, not a copy of it"


def test_a_segment_has_no_name_and_is_for_its_user_alone() -> None:
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208
    segment = Segment(1000)
    assert set(os.listdir("/dev/shm")) == before  # noqa: PTH208
    found = Path(f"/proc/self/fd/{segment.offer.fd}").stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_nlink == 0
    with pytest.raises(OSError, match="Operation not permitted"):  # sealed: an engine that reads it meets no signal
        os.ftruncate(segment.offer.fd, 10)


def test_another_segment_is_not_taken_for_the_one_offered() -> None:
    segment, other = Segment(1000), Segment(1000)
    for wrong in (
        replace(segment.offer, secret=other.offer.secret),
        replace(segment.offer, fd=other.offer.fd),
        replace(segment.offer, nbytes=999),
    ):
        with pytest.raises(OSError, match="is another one here"):
            OpenSegment(wrong)
    segment.close()
    with pytest.raises(OSError, match="No such file"):
        OpenSegment(replace(segment.offer if segment._fd >= 0 else other.offer, fd=10**6))


def test_an_engine_cannot_write_into_the_segment() -> None:
    segment = Segment(8 * HEADER)
    opened = OpenSegment(segment.offer)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # it is meant
        opened.data[:] = 1
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSEGV
    assert int(segment.data.sum()) == 0


def test_a_segment_takes_a_part_of_the_free_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory() < 2**50
    monkeypatch.setattr(host_memory, "free_memory", lambda: 2**21)
    Segment(2**20)
    with pytest.raises(OSError, match="more than 50% of the 2 MB free"):
        Segment(2**20 + 1)


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(host_memory, "_LIMITS", ((str(limit), str(used)),))
    unlimited = free_memory()
    limit.write_text("max\n")
    used.write_text("10\n")
    assert free_memory() > unlimited / 2
    limit.write_text("5000\n")
    assert free_memory() == 4990


# The choice.


def test_members_on_one_host_share_its_memory_and_keep_the_segment() -> None:
    publisher, subscribers = meet(2, memory=True)
    inodes = set()
    for version in range(3):
        transfer(publisher, subscribers, version)
        outlet: Any = publisher._choice._outlet
        inodes.add(outlet.segment.offer.inode)
        assert publisher.medium == "memory"
        assert all(s.lasting for s in subscribers)
    assert len(inodes) == 1
    transfer(publisher, subscribers, 3, bucket_bytes=100)  # more padding: a larger segment may be needed
    publisher.close()


def test_tensors_last_until_the_next_version() -> None:
    publisher, (subscriber,) = meet(1, memory=True)
    sent = weights(0)
    manifest = make_manifest(sent, 1, 1200)
    receiving = in_thread(lambda: list(subscriber.receive(manifest)))
    publisher.publish(manifest, sent)
    got = dict(receiving.result(TIMEOUT))
    assert all(torch.equal(got[name], tensor) for name, tensor in sent)
    publisher.close()


@pytest.mark.parametrize(
    "fault", ["another host", "no memory", "not opened", "switched off"], ids=lambda fault: fault.replace(" ", "-")
)
def test_what_cannot_be_shared_travels_over_the_network(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "learner.weights.choice")
    if fault == "another host":
        ids = iter(["host 1", "host 2", *["host 1"] * 50])
        monkeypatch.setattr(choice, "host_id", lambda: next(ids))
    if fault == "no memory":
        monkeypatch.setattr(host_memory, "free_memory", lambda: 100)
    if fault == "not opened":
        opened = iter([True, False])

        def refuse(offer: host_memory.SegmentOffer) -> OpenSegment:
            if next(opened):
                return OpenSegment(offer)
            raise OSError("it is in another container")

        monkeypatch.setattr(choice, "OpenSegment", refuse)
    publisher, subscribers = meet(2, memory=fault != "switched off")
    for version in range(3):
        transfer(publisher, subscribers, version)
        assert publisher.medium == "network"
        assert not any(s.lasting for s in subscribers)
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == (fault in ("no memory", "not opened")), "once a group"
    if warned:
        reason = "more than 50%" if fault == "no memory" else r"OSError: it is in another container"
        assert "weights cannot travel by memory" in warned[0]
        assert reason in warned[0]
    publisher.close()


def engine(pipe: Connection, end: Rendezvous, manifest: WeightManifest) -> None:
    subscriber = Subscriber(end, TIMEOUT)
    pipe.send("joined")
    for name, tensor in subscriber.receive(manifest):
        pipe.send((name, float(tensor.sum()), os.getpid()))
        if pipe.recv() == "wait for ever":
            pipe.recv()
    pipe.send(subscriber.checksum)


@pytest.mark.parametrize("killed", [False, True])
def test_processes_share_it_and_a_killed_one_leaves_nothing(killed: bool) -> None:
    """The engine is a real process; killed in the middle, it is missed at the next transfer and holds no memory."""
    listener = listen("127.0.0.1")
    own, end = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 0)
    sent = weights(1)
    manifest = make_manifest(sent, 1, 1200)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=engine, args=(theirs, end, manifest), daemon=True)
    process.start()
    publisher = Publisher(own, 60.0, listener=listener)
    assert ours.recv() == "joined"
    total = publisher.publish(manifest, sent)  # ends with the engine still at its first tensor
    assert publisher.medium == "memory"
    for name, tensor in sent:
        assert ours.recv()[:2] == (name, float(tensor.sum()))
        if killed and name == "w2":
            os.kill(process.pid or 0, signal.SIGKILL)
            break
        ours.send("go on")
    if not killed:
        assert ours.recv() == total
    process.join(20)
    publisher.channel.timeout_s = 1.0
    with pytest.raises(WeightSyncError, match="generator 0 did not arrive"):
        publisher.publish(make_manifest(sent, 2, 1200), sent)
    publisher.close()


# CUDA's shared memory: the bookkeeping, with tensors of the host in place of the GPU's.


def test_buckets_in_two_slots_are_given_back_before_they_are_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: dict[str, Tensor] = {}

    def lend(slot: Tensor, gpus: Sequence[str]) -> str:
        return (shared.setdefault(str(len(shared)), slot) is slot and str(len(shared) - 1)) or ""

    monkeypatch.setattr(choice, "visible_gpus", lambda: ["GPU-b", "GPU-a"])
    monkeypatch.setattr(choice, "handle_of", lend)
    monkeypatch.setattr(choice, "open_slots", lambda texts: [shared[text] for text in texts])
    listener = listen("127.0.0.1")
    engines = [("generator 0", 1), ("generator 1", 1)]
    ends = make_rendezvous("127.0.0.1", listener.getsockname()[1], engines, "gloo", 0)
    joining = [in_thread(lambda end=end: Subscriber(end, TIMEOUT)) for end in ends[1:]]
    publisher = Publisher(ends[0], TIMEOUT, listener=listener, source=torch.device("cuda", 1))
    subscribers = [future.result(TIMEOUT) for future in joining]
    for subscriber in subscribers:
        subscriber._greeting = f'{{"host": "{host_id()}", "gpus": ["GPU-a"]}}'
    monkeypatch.setattr(torch, "empty", lambda n, dtype, device, empty=torch.empty: empty(n, dtype=dtype))
    for version in range(3):
        transfer(publisher, subscribers, version, bucket_bytes=1200)
        assert publisher.medium == "gpu"
        assert len(shared) == 4, "two slots, a handle of each for each engine"
    subscribers[0]._greeting = f'{{"host": "{host_id()}", "gpus": ["GPU-b"]}}'  # a card of its own
    transfer(publisher, subscribers, 3)
    assert publisher.medium == "memory"
    publisher.close()


def test_a_handle_names_its_gpu_by_uuid_and_is_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.multiprocessing import reductions

    tensor, rebuilt = torch.zeros(64, dtype=torch.uint8), []
    arguments = (
        *(torch.Tensor, torch.Size([64]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 1, b"\x00handle", 512, 128),
        *(False, b"counter\xff", 3, b"event", True),
    )
    monkeypatch.setattr(reductions, "reduce_tensor", lambda t: (None, arguments))
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", lambda *args: rebuilt.append(args) or tensor)
    text = handle_of(tensor, ["GPU-a", "GPU-b"])
    assert "GPU-b" in text
    assert open_handle(text, ["GPU-c", "GPU-a", "GPU-b"]) is tensor
    (found,) = rebuilt
    assert found == (*arguments[:6], 2, *arguments[7:]), "what the sender had, under this process's number of the GPU"
    with pytest.raises(ValueError, match="GPU GPU-b is not visible here, only GPU-a"):
        open_handle(text, ["GPU-a"])
    assert cuda_ipc.visible_gpus() == [] or torch.cuda.is_available()


# The checksum on a CPU.


def test_numpy_sums_as_torch_does() -> None:
    data = torch.randint(0, 256, (2**18 + 48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words, checksum = data.view(torch.int64), Checksum()
    multipliers = checksum._multipliers
    for part in (words[: 2**14], words[2**14 : 2**14 + 100]):
        want = int((part * multipliers[: len(part)]).sum())
        assert int(np.dot(part.numpy(), multipliers[: len(part)].numpy())) == want
        assert checksum._stripes(part) == [want]
