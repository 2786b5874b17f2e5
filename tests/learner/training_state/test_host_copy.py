"""What is away takes no memory and comes back as it was, for every tensor that looks at it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.training_state import host_copy
from learner.training_state.host_copy import HostCopy


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 64))
def test_views_see_their_values_again(sizes: list[int], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_copy, "PIECE_BYTES", piece)
        tensors = [torch.randn(n, dtype=torch.float64) for n in sizes]
        views = [t[len(t) // 2 :] for t in tensors]
        before, moved = [t.clone() for t in tensors], []
        copy = HostCopy(lambda: moved.append(1))
        for _ in range(2):  # the second time into the same host memory
            assert copy.take([*views, *tensors]) == 8 * sum(sizes)
            assert copy.away
            assert all(t.untyped_storage().nbytes() == 0 for t in views)
            copy.give_back()
            assert not copy.away
            assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
            assert all(torch.equal(v, b[len(b) // 2 :]) for v, b in zip(views, before, strict=True))
        assert len(moved) >= 4 * (8 * sum(sizes) // piece)  # it shows progress, there and back


def test_nothing_is_given_back_that_was_not_taken() -> None:
    copy = HostCopy()
    copy.give_back()
    assert copy.take([]) == 0
    assert not copy.away
