"""The files of a saved optimiser: any division of the parameters is read by any other, and damage is a sentence."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.checkpoint import CheckpointError
from learner.optimiser.adamw import MOMENTS, StepCount
from learner.optimiser.moments import Plain
from learner.training_state import shards
from learner.training_state.fragments import Fragment

KEYS = ("master", *MOMENTS)


def divided(size: int, bounds: list[int]) -> list[tuple[int, int]]:
    at = [0, *sorted(b % (size + 1) for b in bounds), size]
    return list(pairwise(at))


def fragment(name: str, size: int, start: int, end: int, steps: float, value: torch.Tensor | None) -> Fragment:
    values = {
        key: Plain(torch.full((end - start,), -1.0) if value is None else value[k, start:end].clone())
        for k, key in enumerate(KEYS)
    }
    return Fragment(name, size, start, values, StepCount({"step": torch.tensor(steps)}))


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    writers=st.lists(st.integers(0, 9), max_size=3),
    readers=st.lists(st.integers(0, 9), max_size=3),
    file_bytes=st.sampled_from([1, 100, 10_000]),
)
def test_any_division_is_read_by_any_other(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], writers: list[int], readers: list[int], file_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    values = {f"p{i}": torch.randn(3, n) for i, n in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "FILE_BYTES", file_bytes)
        for rank in range(len(writers) + 1):
            own = [fragment(name, v.shape[1], *divided(v.shape[1], writers)[rank], 7, v) for name, v in values.items()]
            shards.write(folder, own, rank, 1)
    for rank in range(len(readers) + 1):
        own = [fragment(name, v.shape[1], *divided(v.shape[1], readers)[rank], 0, None) for name, v in values.items()]
        own = [f for f in own if f.length]
        shards.read(folder, own, values)
        for f in own:
            assert f.steps.value == 7
            for k, key in enumerate(KEYS):
                torch.testing.assert_close(
                    f.values[key].read(), values[f.name][k, f.start : f.start + f.length], rtol=0, atol=0
                )


def test_ranks_that_hold_the_same_write_it_once(tmp_path: Path) -> None:
    value = torch.randn(3, 7)
    for rank in range(3):
        shards.write(tmp_path, [fragment("p", 7, 0, 7, 2, value)], rank, 3)
    whole = fragment("p", 7, 0, 7, 0, None)
    shards.read(tmp_path, [whole], ["p"])
    assert torch.equal(whole.values["exp_avg_sq"].read(), value[2])
    from safetensors.torch import load_file

    written = [load_file(p)["p/master"].numel() for p in sorted(tmp_path.glob("*.safetensors"))]
    assert written == [2, 2, 3]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("a rank is missing", "has 3 of the 7 elements of p"),
        ("another size", "has p with 7 elements and the model has 8"),
        ("another model", "1 of 2 parameters are in one of the two alone, such as q"),
        ("no file", "holds no state of an optimiser"),
        ("no header", "cannot be read"),
        ("no ranges", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, damage: str, sentence: str) -> None:
    value = torch.randn(3, 7)
    for rank, (start, end) in enumerate([(0, 3), (3, 7)]):
        shards.write(tmp_path, [fragment("p", 7, start, end, 2, value)], rank, 1)
    files = sorted(tmp_path.glob("*.safetensors"))
    if damage == "a rank is missing":
        files[1].unlink()
    elif damage == "no file":
        [f.unlink() for f in files]
    elif damage == "no header":
        files[0].write_bytes(b"\xff" * 40)
    elif damage == "no ranges":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, files[0])
    size = 8 if damage == "another size" else 7
    with pytest.raises(CheckpointError, match=sentence):
        shards.read(tmp_path, [fragment("p", size, 0, size, 0, None)], ["p", "q"] if "model" in damage else ["p"])


def test_the_loss_scaler_is_read_back_or_a_sentence(tmp_path: Path) -> None:
    shards.write_scaler(tmp_path, {"cur_scale": 2.0**15, "cur_iter": 9})
    assert shards.read_scaler(tmp_path) == {"cur_scale": 2.0**15, "cur_iter": 9}
    for text in ("[]", "{", ""):
        (tmp_path / shards.SCALER_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"scaler\.json"):
            shards.read_scaler(tmp_path)
