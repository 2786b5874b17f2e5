"""Two ranks read a model once, and send it from ZeRO-3's parts a bucket at a time; neither changes a bit, nor hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import weight_stream_cases
from integration.learner_cases import make_model, run_ranks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SENDS = ["whole", "nobody", "whole", "torn", "whole"]
STAGES = {"fp32": (0, 2, 3), "bf16": (0, 3)}
CASES: list[dict[str, Any]] = [
    {"name": f"{precision}-zero{stage}-{how}", "stage": stage, "precision": precision, "all_read": how == "all"}
    for precision, stages in STAGES.items()
    for stage in stages
    for how in ("once", "all")
]
CASES += [
    {"name": "sends-memory", "stage": 3, "sends": SENDS},
    {"name": "sends-network", "stage": 3, "sends": SENDS, "memory": False},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    """Returns case -> (arrays of rank 0, what each rank found)."""
    model, out = make_model(str(tmp_path_factory.mktemp("model"))), tmp_path_factory.mktemp("out")
    run_ranks(weight_stream_cases.rank_main, 2, model, CASES, out, limit_s=380)
    return {
        case["name"]: (
            dict(np.load(out / f"{case['name']}.npz")),
            [json.loads(Path(out / f"{case['name']}-{rank}.json").read_text()) for rank in range(2)],
        )
        for case in CASES
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], of: str) -> bool:
    keys = [key for key in a if key.startswith(of)]
    return bool(keys) and all(np.array_equal(a[key], b[key]) for key in keys)


@pytest.mark.parametrize("precision", list(STAGES))
def test_one_read_gives_every_rank_what_its_own_reading_would(results: Any, precision: str) -> None:
    plain = results[f"{precision}-zero0-all"]
    for stage in STAGES[precision]:
        once, every = (results[f"{precision}-zero{stage}-{how}"] for how in ("once", "all"))
        assert [rank["reads"] for rank in once[1]] == [1, 0]
        assert [rank["reads"] for rank in every[1]] == [1, 1]
        assert same(once[0], plain[0], "loaded"), "as ZeRO-0 that every rank reads for"
        assert same(once[0], every[0], "stepped")
        assert [rank["metrics"] for rank in once[1]] == [rank["metrics"] for rank in every[1]]
        for rank in once[1]:
            assert not rank["training"]
            assert rank["buffers"] == plain[1][0]["buffers"] > 0


@pytest.mark.parametrize("medium", ["memory", "network"])
def test_parts_are_sent_in_buckets_and_no_failure_leaves_a_rank_alone(results: Any, medium: str) -> None:
    arrays, ranks = results[f"sends-{medium}"]
    first, nobody, again, torn, last = ranks[0]["sent"]
    assert first == again == last == "arrived"
    assert nobody == "failed: start of version 1"
    # A reader of shared memory that ends is missed at the next transfer, or by its caller.
    assert torn == "another checksum" if medium == "memory" else torn.startswith("failed: broadcast of bucket")
    assert ranks[1]["sent"] == ["gathered"] * len(SENDS)
    sent = {key.removeprefix("sent "): value for key, value in arrays.items() if key.startswith("sent ")}
    stepped = {key.removeprefix("stepped "): v for key, v in arrays.items() if key.startswith("stepped ")}
    assert sent.keys() == stepped.keys()
    assert all(np.array_equal(sent[key], stepped[key]) for key in sent)
