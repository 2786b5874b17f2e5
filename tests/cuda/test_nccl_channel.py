"""The weight channel over NCCL: who is in the group, where buckets are, what a refusal says. Threads stand for processes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.fake_cuda import FakeGPUs, FakeNCCL, seen_by
from support.weight_group import TIMEOUT, in_thread, receive

from learner.weights import channel
from learner.weights.checksum import Checksum
from learner.weights.network import listen
from learner.weights.protocol import Rendezvous, WeightSyncError, make_manifest, make_rendezvous
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber

# Learner, an engine of two shards and one of one: four members on four GPUs.
GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGPUs:
    fake = FakeGPUs(GPUS)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def nccl(gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch) -> FakeNCCL:
    fake = FakeNCCL(gpus)
    fake.install(monkeypatch)
    return fake


def ends(backend: Any = "nccl") -> tuple[Any, Rendezvous, list[Rendezvous]]:
    """Returns the listener, the learner's rendezvous, and one for every worker of the engines."""
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    learner, first, second = make_rendezvous("127.0.0.1", port, [("generator 0", 2), ("generator 1", 1)], backend, 3)
    return listener, learner, [first.shard(0), first.shard(1), second.shard(0)]


def meet(gpus: FakeGPUs, sharded: bool = False) -> tuple[Publisher, list[Subscriber]]:
    listener, learner, workers = ends()

    def join(end: Rendezvous) -> Subscriber:
        device = torch.device("cuda", end.rank)
        return Subscriber(end, TIMEOUT, device=device, model_device=device)

    joining = [in_thread(seen_by(gpus, lambda end=end: join(end))) for end in workers]
    publisher = Publisher(
        learner, TIMEOUT, listener=listener, sharded=sharded, source=torch.device("cuda", 0)
    )  # as the learner does on a GPU
    return publisher, [future.result(TIMEOUT) for future in joining]


def test_every_shard_of_every_engine_is_a_member_on_its_own_gpu_and_gets_all_bytes(
    gpus: FakeGPUs, nccl: FakeNCCL, caplog: pytest.LogCaptureFixture
) -> None:
    with gpus.here():
        publisher, subscribers = meet(gpus)
        assert sorted(nccl.made) == [(rank, 4, 2 * TIMEOUT) for rank in range(4)], (
            "twice our own limit, which comes first"
        )
        assert [s.channel.rendezvous.member for s in subscribers] == [
            "generator 0",
            "generator 0 shard 1",
            "generator 1",
        ]
        sent = [(f"w{i}", torch.randn(30, 7, device="cuda:0")) for i in range(5)]
        manifest = make_manifest(sent, 1, 2000)
        assert len(manifest.buckets()) > 2
        with caplog.at_level(logging.WARNING):
            receiving = [in_thread(seen_by(gpus, lambda s=s: receive(s, manifest))) for s in subscribers]
            total = publisher.publish(manifest, sent)
        for future, device in zip(receiving, ("cuda:1", "cuda:2", "cuda:3"), strict=True):
            got, checksum = future.result(TIMEOUT)
            assert checksum == total
            for name, tensor in sent:
                assert str(got[name].device) == device
                assert got[name].tolist() == tensor.tolist()
        assert nccl.devices == {rank: f"cuda:{rank}" for rank in range(4)}
        assert publisher.medium == "network", "NCCL finds the way between whole GPUs itself: no other medium is offered"
        assert not caplog.records
        publisher.close()
        assert 0 in nccl.aborted


@pytest.mark.parametrize("sharded", [False, True])
def test_a_broadcast_of_gathered_tensors_ends_before_the_next_bucket_is_packed(
    gpus: FakeGPUs, nccl: FakeNCCL, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3's gather and the broadcast would be two collectives on one device at once."""
    listener = listen("127.0.0.1")
    (alone,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "nccl", 0)
    with gpus.here():
        publisher = Publisher(alone, TIMEOUT, listener=listener, sharded=sharded)
        events: list[str] = []
        monkeypatch.setattr(publisher.channel, "broadcast", lambda buffer: events.append("begun"))
        monkeypatch.setattr(publisher.channel, "wait", lambda work, phase: events.append("done"))
        tensors = [(f"w{i}", torch.ones(8, device="cuda")) for i in range(3)]
        publisher.publish(make_manifest(tensors, 1, 32), ((events.append(n), (n, t))[1] for n, t in tensors))
    one_by_one = ["w0", "begun", "done", "w1", "begun", "done", "w2", "begun", "done"]
    beside = ["w0", "begun", "w1", "done", "begun", "w2", "done", "begun", "done"]
    assert events == (one_by_one if sharded else beside)


def test_buckets_of_nccl_are_on_the_gpu_of_the_process_and_of_gloo_in_page_locked_memory(gpus: FakeGPUs) -> None:
    _, nccl_end, _ = ends("nccl")
    _, gloo_end, _ = ends("gloo")
    gpus.current = 2
    assert channel.buffer_device(nccl_end) == torch.device("cuda", 2)
    assert channel.buffer_device(gloo_end) == torch.device("cpu")
    with gpus.here():
        assert channel.bucket_buffer(100, torch.device("cuda", 2)).device == torch.device("cuda", 2)
        assert gpus.events == [], "a GPU's memory is not page-locked"
        assert channel.bucket_buffer(100, torch.device("cpu")).device.type == "cpu"
        assert gpus.events == [("pinned", 100)]


def test_memory_is_not_page_locked_in_a_process_without_a_gpu(gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with gpus.here():
        channel.bucket_buffer(100, torch.device("cpu"))
    assert gpus.events == []


def test_what_nccl_refuses_is_the_last_line_of_the_sentence_and_the_channel_is_closed(
    gpus: FakeGPUs, nccl: FakeNCCL
) -> None:
    nccl.refusal = (
        "NCCL error in: NCCLUtils.cpp:77\n\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000\n"
    )
    listener = listen("127.0.0.1")
    (alone,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "nccl", 0)
    with gpus.here():
        publisher = Publisher(alone, TIMEOUT, listener=listener)
        tensors = [("w", torch.ones(8, device="cuda"))]
        with pytest.raises(
            WeightSyncError, match=r"at learner during broadcast: .*Duplicate GPU detected : rank 1"
        ) as caught:
            publisher.publish(make_manifest(tensors, 1, 64), tensors)
    assert "\n" not in str(caught.value)
    assert nccl.aborted == [0]


def test_a_torch_without_nccl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    listener = listen("127.0.0.1")
    (alone,) = make_rendezvous("127.0.0.1", listener.getsockname()[1], [], "nccl", 0)
    with pytest.raises(WeightSyncError, match="this torch build has no NCCL: use the gloo backend on CPU"):
        Publisher(alone, TIMEOUT, listener=listener, device=torch.device("cpu"))


def test_a_gpus_checksum_is_the_hosts_and_takes_one_copy_a_bucket(gpus: FakeGPUs) -> None:
    data = torch.randint(0, 256, (2**18 + 4096,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for pages in (False, True):
        host = Checksum("cpu", pages)
        host.update(data)
        with gpus.here():
            there = Checksum("cuda", pages)
            there.update(data.to("cuda"))  # numpy would raise: the fake's tensors have none on a GPU
        assert there.value == host.value
