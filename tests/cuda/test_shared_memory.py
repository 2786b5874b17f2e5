"""Memory that is shared where a GPU takes part: two buckets of the GPU, page-locked segments, the optimiser's state away."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from support.fake_cuda import FakeGPUs, seen_by
from support.weight_group import TIMEOUT, in_thread, receive

from learner.training_state import host_copy
from learner.training_state.host_copy import HostCopy
from learner.weights import choice, cuda_ipc, host_memory
from learner.weights.channel import Channel
from learner.weights.choice import greeting
from learner.weights.cuda_ipc import SlotsInlet, SlotsOutlet
from learner.weights.host_memory import Segment, host_id
from learner.weights.network import listen
from learner.weights.protocol import make_manifest, make_rendezvous
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber

BUCKET = 1200


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGPUs:
    fake = FakeGPUs(("GPU-a", "GPU-b"))
    fake.install(monkeypatch)
    return fake


def one_engine(gpus: FakeGPUs, learner_gpu: int, engine_gpu: int) -> tuple[Publisher, Subscriber]:
    """Joins a learner and an engine as a run does that shares GPUs: over gloo, with the model's tensors on a GPU."""
    listener = listen("127.0.0.1")
    own, end = make_rendezvous("127.0.0.1", listener.getsockname()[1], [("generator 0", 1)], "gloo", 0)
    on = torch.device("cuda", engine_gpu)
    joining = in_thread(seen_by(gpus, lambda: Subscriber(end, TIMEOUT, device=torch.device("cpu"), model_device=on)))
    publisher = Publisher(own, TIMEOUT, listener=listener, source=torch.device("cuda", learner_gpu))
    return publisher, joining.result(TIMEOUT)


def transfer(gpus: FakeGPUs, publisher: Publisher, subscriber: Subscriber, version: int, device: str) -> None:
    sent = [(f"w{i}", torch.randn(40, 7, device=device)) for i in range(5)]
    manifest = make_manifest(sent, version, BUCKET)
    receiving = in_thread(seen_by(gpus, lambda: receive(subscriber, manifest)))
    total = publisher.publish(manifest, sent)
    got, checksum = receiving.result(TIMEOUT)
    assert checksum == total
    assert {name: t.tolist() for name, t in sent} == {name: t.tolist() for name, t in got.items()}


def share_slots(monkeypatch: pytest.MonkeyPatch, refusal: Exception | None = None) -> dict[str, Any]:
    """Lets handles be names of the learner's tensors, as CUDA's are of its memory; `refusal` is what opening one raises."""
    lent: dict[str, Any] = {}

    def lend(slot: Any, gpus: Any) -> str:
        lent[str(len(lent))] = slot
        return str(len(lent) - 1)

    def opened(texts: Any) -> Any:
        if refusal is not None:
            raise refusal
        return [lent[text] for text in texts]

    monkeypatch.setattr(choice, "handle_of", lend)
    monkeypatch.setattr(choice, "open_slots", opened)
    return lent


def test_an_engine_says_which_gpus_it_sees_and_one_on_a_cpu_none(gpus: FakeGPUs) -> None:
    assert cuda_ipc.visible_gpus() == ["GPU-a", "GPU-b"]
    assert json.loads(greeting(torch.device("cuda", 0)))["gpus"] == ["GPU-a", "GPU-b"]
    assert json.loads(greeting(torch.device("cpu"))) == {"host": host_id(), "gpus": []}


def test_a_bucket_is_announced_when_the_gpu_has_packed_it_and_given_back_when_the_gpu_has_read_it(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process sees memory, not streams: a word that overtakes the kernel would let it read the bucket before."""
    lent, checked = share_slots(monkeypatch), {"bucket": 0, "done": 0}
    say, answer = Channel.say, Channel.answer

    def said(self: Channel, key: str, value: str) -> None:
        if key.startswith("bucket/"):
            assert "cuda:1" not in gpus.unfinished, f"{key} was announced while the GPU still packs it"
            checked["bucket"] += 1
        say(self, key, value)

    def answered(self: Channel, key: str) -> None:
        assert gpus.events[-1] == ("synchronise", "cuda:1"), f"{key} was given back while the GPU still reads it"
        checked["done"] += 1
        answer(self, key)

    monkeypatch.setattr(Channel, "say", said)
    with gpus.here():
        publisher, subscriber = one_engine(gpus, 1, 1)
        transfer(gpus, publisher, subscriber, 1, "cuda:1")
        assert publisher.medium == "gpu"
        assert not subscriber.lasting, "a slot is packed anew while the version is under way"
        assert {str(slot.device) for slot in lent.values()} == {"cuda:1"}
        assert checked["bucket"] == 5
        # The inlet alone: in a transfer the two ends' events are in any order.
        monkeypatch.setattr(Channel, "answer", answered)
        channel: Any = subscriber.channel
        monkeypatch.setattr(cuda_ipc, "await_bucket", lambda *arguments: None)
        inlet = SlotsInlet(channel, list(lent.values()))
        bucket = make_manifest([("w", torch.zeros(40, 7))], 1, BUCKET).buckets()[0]
        first = inlet.take(0, bucket, "x", 1.0)
        assert checked["done"] == 0, "the first bucket gives nothing back"
        gpus.say("the first bucket is read")
        second = inlet.take(1, bucket, "x", 1.0)
        assert checked["done"] == 1 and first.data_ptr() != second.data_ptr()
        publisher.close()


def test_a_slot_is_given_out_again_once_all_are_done_with_it(gpus: FakeGPUs) -> None:
    waited: list[str] = []

    class Waits:
        timeout_s = 7.0

        def await_all(self, key: str, phase: str, timeout_s: float) -> None:
            waited.append(f"{key} for {timeout_s:g} s")

    channel: Any = Waits()
    outlet = SlotsOutlet(channel, [torch.zeros(BUCKET), torch.ones(BUCKET)])
    bucket = make_manifest([("w", torch.zeros(40, 7))], 1, BUCKET).buckets()[0]
    rooms = [outlet.room(i, bucket, "x").data_ptr() for i in range(4)]
    assert waited == ["done/0 for 7 s", "done/1 for 7 s"]
    assert rooms[0] == rooms[2] != rooms[1] == rooms[3]


@pytest.mark.parametrize(
    "refusal",
    [RuntimeError("CUDA error: invalid device context"), ValueError("GPU GPU-b is not visible here, only GPU-a")],
    ids=["cuda", "invisible"],
)
def test_an_engine_that_cannot_open_the_slots_reads_the_hosts_memory(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refusal: Exception
) -> None:
    share_slots(monkeypatch, refusal)
    caplog.set_level(logging.WARNING)
    with gpus.here():
        publisher, subscriber = one_engine(gpus, 0, 0)
        for version in range(2):
            transfer(gpus, publisher, subscriber, version, "cuda:0")
            assert publisher.medium == "memory" and subscriber.lasting
        publisher.close()
    assert [r.message for r in caplog.records] == [
        f"weights cannot travel by gpu (generator 0: {type(refusal).__name__}: {refusal}): the next best is taken"
    ], "once for a group"


def test_an_engine_on_another_gpu_reads_the_hosts_memory_and_is_not_offered_the_slots(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = share_slots(monkeypatch)
    with gpus.here():
        publisher, subscriber = one_engine(gpus, 0, 1)
        subscriber._greeting = json.dumps({"host": host_id(), "gpus": ["GPU-b"]})
        transfer(gpus, publisher, subscriber, 1, "cuda:0")
        assert publisher.medium == "memory" and not lent
        assert ("copy", "cuda:0", "cpu") in gpus.events, "packed from the GPU into the segment"
        publisher.close()


def test_a_segment_is_page_locked_where_a_gpu_is_used_and_unlocked_once(gpus: FakeGPUs) -> None:
    segment = Segment(5000)
    address, nbytes = segment.data.data_ptr(), segment.data.nbytes
    assert gpus.events == [("register", address, nbytes, 0)]
    segment.close()
    segment.close()
    assert gpus.events[1:] == [("unregister", address)]


def test_a_segment_that_cuda_does_not_lock_works_and_is_not_unlocked(gpus: FakeGPUs) -> None:
    gpus.refuses_to_pin = True
    segment = Segment(5000)
    segment.data[:] = 7
    segment.close()
    assert [event[0] for event in gpus.events] == ["register"]


def test_nothing_is_locked_in_a_process_that_uses_no_gpu(gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    Segment(5000).close()
    assert not host_memory._pin(torch.zeros(8, dtype=torch.uint8))
    assert gpus.events == []


@pytest.mark.parametrize(("kind", "locked"), [("cuda", True), ("cpu", False)])
def test_state_of_a_gpu_is_away_in_page_locked_memory_and_of_a_cpu_in_plain_memory(
    gpus: FakeGPUs, monkeypatch: pytest.MonkeyPatch, kind: str, locked: bool
) -> None:
    monkeypatch.setattr(host_copy, "PIECE_BYTES", 1000)
    monkeypatch.setattr(torch.UntypedStorage, "device", property(lambda self: torch.device(kind)), raising=False)
    with gpus.here():
        tensor = torch.arange(700.0, device=kind)
        before, copy = tensor.tolist(), HostCopy()
        for _ in range(2):  # the second time into the same memory: to page-lock it anew would take long
            assert copy.take([tensor]) == 2800
            assert tensor.untyped_storage().nbytes() == 0
            copy.give_back()
            assert tensor.tolist() == before
    assert [event for event in gpus.events if event[0] == "pinned"] == [("pinned", 1000)] * (3 if locked else 0)
