"""W&B and MLflow with their real packages: what is read back of what they wrote is what metrics.jsonl has."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.builders import config_data
from support.configs import message

from orchestration.config import preflight
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from orchestration.telemetry.sinks.base import Row, RunInfo
from orchestration.telemetry.sinks.build import build_sinks
from orchestration.telemetry.sinks.jsonl import read_rows
from orchestration.telemetry.sinks.mlflow import mlflow_key
from orchestration.telemetry.sinks.tracker_run import TrackerRun

CONFIG = {"run": {"name": "demo", "seed": 3}, "sampling": {"stop": ["\n"]}, "note": "x" * 900}


def row(iteration: int) -> Row:
    return {
        "iteration": float(iteration),
        "reward/mean": iteration / 8,
        "eval/countdown/pass@4/T=1": 0.25 * iteration,
        "entropy/exact": 1 / 3,
        "loss": math.nan if iteration == 1 else -0.5,
        "time/unix": 1.7e9 + iteration,
    }


def write(folder: Path, sink: str, iterations: Sequence[int], resumed_at: int | None, status: str) -> None:
    sinks = build_sinks(["jsonl", sink], folder, is_terminal=False)
    sinks.start(RunInfo("demo", folder, 4, resumed_at, CONFIG))
    for i in iterations:
        sinks.iteration(row(i))
    sinks.close(status)


def equal(read: Row, written: Row) -> bool:
    return read.keys() == written.keys() and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in ((read[key], written[key]) for key in written)
    )


def records_of(data: bytes) -> Iterator[bytes]:
    """Yields the records of a .wandb file: after seven bytes, LevelDB's log format with records cut at blocks of 32 KiB."""
    whole, at = b"", 7
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # no room for a header: padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the record is whole, or this was its last part
            yield whole
            whole = b""


def wandb_rows(folder: Path) -> list[Row]:
    """Reads every row of the files that an offline W&B run leaves, in the order in which they were written."""
    records: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows: list[Row] = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in records_of(file.read_bytes()):
            record = records.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                assert items["_step"] == items["iteration"]
                rows.append({key: float(value) for key, value in items.items() if not key.startswith("_")})
    return rows


def test_wandb_offline_has_what_metrics_jsonl_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, "wandb", [0, 1, 2, 3], None, "failed")
    first = json.loads((tmp_path / "wandb.json").read_text())
    write(tmp_path, "wandb", [3, 4], 2, "finished")  # from a checkpoint after iteration 2: 3 is repeated
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": first["id"], "last": 4}
    written, read = read_rows(tmp_path), wandb_rows(tmp_path)
    assert [r["iteration"] for r in read] == [0, 1, 2, 3, 4]
    assert all(map(equal, read, written)), (read, written)
    assert not list(tmp_path.glob("wandb/run-*"))  # nothing online


def test_wandb_without_a_key_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    sinks = build_sinks(["wandb"], tmp_path, is_terminal=False)
    with pytest.raises(ConfigError, match=r"api_key not configured .*WANDB_MODE=offline"):
        sinks.start(RunInfo("demo", tmp_path, 4))
    sinks.close("failed")


def test_mlflow_files_have_what_metrics_jsonl_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(tmp_path, "mlflow", [0, 1, 2, 3], None, "failed")
    identity = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    write(tmp_path, "mlflow", [3, 4], 2, "finished")
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    run = client.get_run(identity)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.params["run.seed"] == "3" and len(run.data.params["note"]) == 500
    written = read_rows(tmp_path)
    assert set(run.data.metrics) == {mlflow_key(key) for key in written[0]}
    for key in written[0]:
        history = sorted(client.get_metric_history(identity, mlflow_key(key)), key=lambda metric: metric.step)
        assert [metric.step for metric in history] == [0, 1, 2, 3, 4]
        pairs = zip(history, written, strict=True)
        assert all(m.value == r[key] or (math.isnan(m.value) and math.isnan(r[key])) for m, r in pairs), key


def test_mlflow_where_it_cannot_write_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file" / "store").as_uri())
    sinks = build_sinks(["mlflow"], tmp_path, is_terminal=False)
    with pytest.raises(ConfigError, match=r"^run\.sinks has mlflow, which cannot use file://"):
        sinks.start(RunInfo("demo", tmp_path, 4))
    sinks.close("failed")


@pytest.mark.parametrize(("sink", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_one_sentence(
    sink: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, sink, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        build_sinks([sink], tmp_path, is_terminal=False)


def test_a_missing_package_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    config = validate(config_data(run={"name": "x", "iterations": 1, "sinks": ["jsonl", "mlflow"]}))
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        preflight._check_sinks(config)
    assert "wandb" in message(run={"name": "x", "iterations": 1, "sinks": ["wanbd"]})


def test_what_a_resumed_run_goes_on_with(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    run = TrackerRun(file)
    assert run.begin(None) is None
    run.named("abc")
    assert [run.is_new(i) for i in (0, 1, 1, 2)] == [True, True, False, True]
    again = TrackerRun(file)
    assert again.begin(1) == "abc"
    assert [again.is_new(i) for i in (2, 3)] == [False, True]
    assert TrackerRun(file).begin(None) is None  # a fresh run has a run of its own
    file.write_text('{"id": ')
    assert TrackerRun(file).begin(1) is None


@pytest.mark.parametrize(
    ("key", "name"),
    [("eval/gym/pass@4/T=1", "eval/gym/pass_at_4/T_1"), ("reward/mean", "reward/mean"), ("a{b}", "a_b_")],
)
def test_names_that_mlflow_takes(key: str, name: str) -> None:
    assert mlflow_key(key) == name
