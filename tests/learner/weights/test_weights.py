"""The weight protocol: cutting, checksum, errors, and transfers between threads over gloo."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weight_group import TIMEOUT, in_thread, meet, receive

from learner.weights.checksum import Checksum
from learner.weights.network import listen
from learner.weights.protocol import (
    ITEM_BYTES,
    Rendezvous,
    TensorSpec,
    WeightManifest,
    WeightSyncError,
    make_manifest,
    make_rendezvous,
    verify_checksums,
)
from learner.weights.publisher import Publisher
from learner.weights.subscriber import Subscriber

DTYPES = ["float32", "bfloat16", "float16", "int64", "uint8"]

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
specs = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=20).map(
    lambda items: tuple(TensorSpec(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(items))
)


def tensors_for(manifest: WeightManifest, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (s.name, (torch.randn(s.shape, generator=generator) * 50).abs().to(getattr(torch, s.dtype)))
        for s in manifest.tensors
    ]


MEDIA = pytest.mark.parametrize("memory", [False, True], ids=["network", "memory"])


# Cutting into buckets.


@given(specs, st.integers(1, 2000))
def test_buckets_keep_order_and_bounds(tensors: tuple[TensorSpec, ...], bucket_bytes: int) -> None:
    buckets = WeightManifest(1, tensors, bucket_bytes).buckets()
    assert tuple(slot.spec for bucket in buckets for slot in bucket.slots) == tensors
    for bucket in buckets:
        end = 0
        for slot in bucket.slots:
            assert end <= slot.start < end + 16
            assert slot.start % 16 == 0
            assert slot.stop - slot.start == slot.spec.nbytes
            end = slot.stop
        assert end <= bucket.nbytes < end + 16
        assert bucket.nbytes % 16 == 0
        assert end <= bucket_bytes or len(bucket.slots) == 1


@given(specs, st.integers(1, 2000))
def test_buckets_are_as_full_as_order_allows(tensors: tuple[TensorSpec, ...], bucket_bytes: int) -> None:
    buckets = WeightManifest(1, tensors, bucket_bytes).buckets()
    for bucket, following in pairwise(buckets):
        assert bucket.nbytes + following.slots[0].spec.nbytes > bucket_bytes


def test_a_tensor_larger_than_a_bucket_travels_alone() -> None:
    sizes = [4, 100, 4, 4]
    manifest = make_manifest([TensorSpec(f"t{i}", (n,), "uint8") for i, n in enumerate(sizes)], 0, bucket_bytes=40)
    assert [[slot.spec.name for slot in bucket.slots] for bucket in manifest.buckets()] == [
        ["t0"],
        ["t1"],
        ["t2", "t3"],
    ]


def test_manifest_refuses_a_repeated_name() -> None:
    with pytest.raises(ValueError, match="repeated: w"):
        make_manifest([("w", torch.zeros(1)), ("w", torch.ones(1)), ("v", torch.ones(1))], 0)
    with pytest.raises(ValueError, match="positive, not 0"):
        make_manifest([], 0, bucket_bytes=0)


def test_wire_types_and_errors_pickle() -> None:
    manifest = make_manifest([("w", torch.zeros(2, 3, dtype=torch.bfloat16))], 3)
    assert manifest.tensors == (TensorSpec("w", (2, 3), "bfloat16"),)
    digest = manifest.digest
    assert pickle.loads(pickle.dumps(manifest)) == manifest
    assert pickle.loads(pickle.dumps(manifest)).digest == digest
    rendezvous = Rendezvous("h", 1, 4, 2, "generator 1", "gloo", 5)
    assert pickle.loads(pickle.dumps(rendezvous)) == rendezvous
    error = pickle.loads(pickle.dumps(WeightSyncError("generator 1", "connect", "it did not come")))
    assert str(error) == "weight sync failed at generator 1 during connect: it did not come"


def test_ranks_of_engines_with_shards_do_not_collide() -> None:
    learner, first, second = make_rendezvous("h", 1, [("generator 0", 2), ("generator 1", 3)], "nccl", 0)
    ranks = [learner.rank, *(first.shard(i).rank for i in range(2)), *(second.shard(i).rank for i in range(3))]
    assert ranks == list(range(learner.world_size)) == list(range(6))
    assert learner.members == ("learner", *(e.shard(i).member for e, n in ((first, 2), (second, 3)) for i in range(n)))


# Checksum.

words = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=40).map(b"".join)


def checksum(*buffers: bytes | bytearray) -> int:
    total = Checksum()
    for buffer in buffers:
        total.update(torch.frombuffer(bytearray(buffer), dtype=torch.uint8))
    return total.value


@given(words, st.data())
def test_a_flipped_bit_changes_the_checksum(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert checksum(data) != checksum(flipped)
    assert checksum(data) == checksum(bytes(data))


@given(words, words)
def test_swapped_buckets_change_the_checksum(first: bytes, second: bytes) -> None:
    assert (checksum(first, second) == checksum(second, first)) == (first == second)


@given(words, st.data())
def test_swapped_words_change_the_checksum(data: bytes, draw: st.DataObject) -> None:
    count = len(data) // 8
    i, j = draw.draw(st.integers(0, count - 1)), draw.draw(st.integers(0, count - 1))
    parts = [data[k * 8 : k * 8 + 8] for k in range(count)]
    parts[i], parts[j] = parts[j], parts[i]
    assert (checksum(data) == checksum(b"".join(parts))) == (data == b"".join(parts))


def test_checksum_beyond_one_stripe() -> None:
    data = torch.randint(0, 256, (2**20 + 48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    base = Checksum()
    base.update(data)
    for at in (0, 2**17 - 1, 2**17, 2**20 + 47):
        changed = data.clone()
        changed[at] ^= 128
        other = Checksum()
        other.update(changed)
        assert other.value != base.value
    stripes = torch.cat([data[2**17 : 2**18], data[: 2**17], data[2**18 :]])
    swapped = Checksum()
    swapped.update(stripes)
    assert swapped.value != base.value


@given(st.integers(1, 6 * 256), st.data())
def test_of_shared_memory_every_page_counts_and_the_rest_of_it_does_not(pairs: int, draw: st.DataObject) -> None:
    data = torch.arange(16 * pairs, dtype=torch.int64).mul(7919).to(torch.uint8)

    def total(data: torch.Tensor) -> int:
        made = Checksum(pages=True)
        made.update(data)
        return made.value

    at = draw.draw(st.integers(0, len(data) - 1))
    changed = data.clone()
    changed[at] ^= 1
    counts = (
        at % 4096 < 64 or at >= len(data) - len(data) % 4096
    )  # a cache line of every page, and what is no whole page
    assert (total(changed) != total(data)) == counts
    for page in range(len(data) // 4096):  # of another version, or at another place
        other = data.clone()
        other[4096 * page : 4096 * (page + 1)] += 1
        assert total(other) != total(data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_checksum_is_the_same_on_a_gpu() -> None:
    data = torch.randint(0, 256, (3 * 2**20 + 16,), dtype=torch.uint8)
    there, here = Checksum("cuda"), Checksum()
    there.update(data.cuda())
    here.update(data)
    assert there.value == here.value


def test_checksum_mismatch_names_the_member() -> None:
    verify_checksums(3, 7, {"generator 0": 7})
    with pytest.raises(WeightSyncError, match=r"generator 1 during checksum of version 3.*sent 0000000000000007"):
        verify_checksums(3, 7, {"generator 0": 7, "generator 1": 8})


# Transfers.


@settings(max_examples=8, deadline=None)
@given(specs, st.integers(1, 3000), st.booleans())
def test_what_arrives_is_what_was_sent(tensors: tuple[TensorSpec, ...], bucket_bytes: int, memory: bool) -> None:
    publisher, subscribers = meet(2, memory=memory)
    for version in range(3):
        manifest = WeightManifest(version, tensors, bucket_bytes)
        sent = tensors_for(manifest, seed=version)
        receiving = [in_thread(lambda s=s, m=manifest: receive(s, m)) for s in subscribers]
        total = publisher.publish(manifest, iter(sent))
        for future in receiving:
            got, received = future.result(TIMEOUT)
            assert received == total
            assert list(got) == [name for name, _ in sent]
            assert all(torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in sent)
    publisher.close()
    for subscriber in subscribers:
        subscriber.close()


@MEDIA
def test_large_transfer_over_many_buckets(memory: bool) -> None:
    publisher, (subscriber,) = meet(1, memory=memory)
    sent = [(f"w{i}", torch.randn(300, 1000)) for i in range(12)]
    manifest = make_manifest(sent, 1, bucket_bytes=2**21)
    assert len(manifest.buckets()) == 12
    receiving = in_thread(lambda: receive(subscriber, manifest))
    total = publisher.publish(manifest, sent)
    got, received = receiving.result(TIMEOUT)
    assert received == total
    assert all(torch.equal(got[name], tensor) for name, tensor in sent)


def test_non_contiguous_and_grad_tensors_can_be_sent() -> None:
    publisher, (subscriber,) = meet(1)
    sent = [("a", torch.randn(6, 4).t()), ("b", torch.nn.Parameter(torch.randn(3)))]
    manifest = make_manifest(sent, 0)
    receiving = in_thread(lambda: receive(subscriber, manifest))
    publisher.publish(manifest, sent)
    got, _ = receiving.result(TIMEOUT)
    assert torch.equal(got["a"], sent[0][1])
    assert torch.equal(got["b"], sent[1][1].detach())


@MEDIA
def test_a_subscriber_that_is_gone_is_not_waited_for(memory: bool) -> None:
    publisher, subscribers = meet(2, memory=memory)
    gone = publisher.channel._gone = set[str]()
    sent = [("a", torch.randn(3))]
    manifest = make_manifest(sent, 0)
    came = in_thread(lambda: receive(subscribers[0], manifest))
    begun = time.monotonic()
    sending = in_thread(lambda: publisher.publish(manifest, sent))
    gone.add("generator 1")
    with pytest.raises(WeightSyncError, match="generator 1 is gone") as raised:
        sending.result(TIMEOUT)
    assert raised.value.member == "generator 1"
    with pytest.raises(WeightSyncError, match=r"generator 0 .* the learner waits no longer: generator 1 is gone"):
        came.result(TIMEOUT)
    assert time.monotonic() - begun < TIMEOUT / 2


def test_a_subscriber_that_never_comes_is_named() -> None:
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    ends = make_rendezvous("127.0.0.1", port, [("generator 0", 1), ("generator 1", 1)], "gloo", 0)
    came = in_thread(lambda: Subscriber(ends[1], TIMEOUT))
    begun = time.monotonic()
    with pytest.raises(
        WeightSyncError, match=r"generator 1 during connect: generator 1 did not arrive .* within 0.5 s"
    ):
        Publisher(ends[0], 0.5, listener=listener)
    assert time.monotonic() - begun < 5
    with pytest.raises(WeightSyncError, match="generator 0 during connect"):
        came.result(TIMEOUT)


def test_a_learner_that_never_comes_is_an_error() -> None:
    with listen("127.0.0.1") as reserved:
        port = reserved.getsockname()[1]
    _, end = make_rendezvous("127.0.0.1", port, [("generator 0", 1)], "gloo", 0)
    with pytest.raises(WeightSyncError, match=rf"generator 0 during connect: no store at 127.0.0.1:{port} within 1 s"):
        Subscriber(end, 1.0)


@MEDIA
def test_a_subscriber_that_skips_a_version_is_named(memory: bool) -> None:
    publisher, subscribers = meet(2, timeout_s=1.0, memory=memory)
    manifest = make_manifest([("w", torch.zeros(4))], 12)
    receiving = in_thread(lambda: receive(subscribers[0], manifest))
    with pytest.raises(WeightSyncError, match="generator 1 during start of version 12: generator 1 did not arrive"):
        publisher.publish(manifest, [("w", torch.zeros(4))])
    with pytest.raises(WeightSyncError, match="generator 0 during start of version 12"):
        receiving.result(TIMEOUT)
    with pytest.raises(WeightSyncError):  # closed for good
        publisher.publish(manifest, [("w", torch.zeros(4))])


def test_a_subscriber_with_another_manifest_is_named_before_anything_is_sent() -> None:
    publisher, (subscriber,) = meet(1, timeout_s=1.0)
    receiving = in_thread(lambda: receive(subscriber, make_manifest([("w", torch.zeros(4))], 2)))
    with pytest.raises(WeightSyncError, match="generator 0 during start of version 3: another manifest"):
        publisher.publish(make_manifest([("w", torch.zeros(4))], 3), [("w", torch.zeros(4))])
    with pytest.raises(WeightSyncError):
        receiving.result(TIMEOUT)


@MEDIA
@pytest.mark.parametrize(
    ("given_tensors", "sentence"),
    [
        ([("a", torch.zeros(4)), ("c", torch.zeros(4))], r"says b \[4\] float32, but c \[4\] float32 was given"),
        ([("a", torch.zeros(4)), ("b", torch.zeros(5))], r"says b \[4\] float32, but b \[5\] float32 was given"),
        ([("a", torch.zeros(4)), ("b", torch.zeros(4).half())], r"but b \[4\] float16 was given"),
        ([("a", torch.zeros(4))], "the tensors ended before b"),
    ],
)
def test_a_wrong_tensor_stops_its_bucket(
    given_tensors: list[tuple[str, torch.Tensor]], sentence: str, memory: bool
) -> None:
    publisher, (subscriber,) = meet(1, timeout_s=2.0, memory=memory)
    manifest = make_manifest([("a", torch.zeros(4)), ("b", torch.zeros(4))], 5, bucket_bytes=16)
    names: list[str] = []

    def read() -> None:
        names.extend(name for name, _ in subscriber.receive(manifest))

    receiving = in_thread(read)
    with pytest.raises(WeightSyncError, match=f"learner during packing bucket 2 of 2 of version 5: .*{sentence}"):
        publisher.publish(manifest, given_tensors)
    with pytest.raises(WeightSyncError, match="generator 0 during broadcast of bucket 2 of 2 of version 5"):
        receiving.result(TIMEOUT)
    assert "b" not in names


@MEDIA
def test_a_tensor_too_many_is_an_error(memory: bool) -> None:
    publisher, (subscriber,) = meet(1, timeout_s=2.0, memory=memory)
    manifest = make_manifest([("a", torch.zeros(4))], 5)
    in_thread(lambda: receive(subscriber, manifest))
    with pytest.raises(WeightSyncError, match="extra was given but is not in the manifest"):
        publisher.publish(manifest, [("a", torch.zeros(4)), ("extra", torch.zeros(1))])


@MEDIA
def test_members_meet_again_under_the_next_epoch(memory: bool) -> None:
    for _ in range(2):
        publisher, (subscriber,) = meet(1, memory=memory)
        manifest = make_manifest([("a", torch.ones(4))], 1)
        receiving = in_thread(lambda s=subscriber, m=manifest: receive(s, m))
        publisher.publish(manifest, [("a", torch.ones(4))])
        assert receiving.result(TIMEOUT)[0]["a"].tolist() == [1.0] * 4
        publisher.close()
        subscriber.close()


def test_views_are_of_one_reused_buffer() -> None:
    publisher, (subscriber,) = meet(1)
    sent = [("a", torch.ones(4)), ("b", torch.full((4,), 2.0))]
    manifest = make_manifest(sent, 1, bucket_bytes=16)

    def addresses() -> Iterator[int]:
        for _, tensor in subscriber.receive(manifest):
            yield tensor.data_ptr()

    receiving = in_thread(lambda: set(addresses()))
    publisher.publish(manifest, sent)
    assert len(receiving.result(TIMEOUT)) == 1


@pytest.mark.parametrize("name", sorted(ITEM_BYTES))
def test_bytes_of_an_element_are_torchs(name: str) -> None:
    assert ITEM_BYTES[name] == getattr(torch, name).itemsize
