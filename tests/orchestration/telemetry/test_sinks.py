"""Sinks: what is on disk after a crash and a resume, what a terminal and a pipe see."""

import errno
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from orchestration.telemetry.sinks.base import FanOut, Row, RunInfo, Sample
from orchestration.telemetry.sinks.build import build_sinks
from orchestration.telemetry.sinks.jsonl import METRICS_FILE, SAMPLES_FILE, JsonlSink, LogError, read_rows, read_samples
from orchestration.telemetry.sinks.live import LiveSink, headline, spark_text
from orchestration.telemetry.sinks.plain import PlainSink
from orchestration.telemetry.sinks.status import StatusSink
from orchestration.telemetry.sinks.tensorboard import TensorboardSink


def write(folder: Path, iterations: Sequence[int], resumed_at: int | None = None) -> JsonlSink:
    sink = JsonlSink(folder)
    sink.start(RunInfo("run", folder, 10, resumed_at))
    for i in iterations:
        sink.iteration({"iteration": float(i), "loss": i / 2})
        sink.sample([{"iteration": i, "env": "e", "prompt": "p", "response": f"r{i}", "reward": 1.0, "correct": True}])
    return sink


def test_jsonl_is_on_disk_before_the_run_ends_and_reads_back(tmp_path: Path) -> None:
    write(tmp_path / "new", [0, 1, 2])  # never closed: a killed process would not close it either
    assert [row["loss"] for row in read_rows(tmp_path / "new")] == [0.0, 0.5, 1.0]
    assert [row["response"] for row in read_samples(tmp_path / "new")] == ["r0", "r1", "r2"]


def test_a_resumed_run_has_every_iteration_once(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2, 3]).close("failed")
    write(tmp_path, [3, 4], resumed_at=2).close("finished")
    assert [row["iteration"] for row in read_rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 5
    assert [row["iteration"] for row in read_samples(tmp_path)] == [0, 1, 2, 3, 4]
    write(tmp_path, [1], resumed_at=0).close("finished")
    assert [row["iteration"] for row in read_rows(tmp_path)] == [0, 1]
    write(tmp_path, [0]).close("finished")  # a fresh run keeps nothing
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {METRICS_FILE, SAMPLES_FILE}  # no temporary file is left


def test_rewind_drops_a_line_cut_short_by_a_crash(tmp_path: Path) -> None:
    write(tmp_path, [1, 2]).close("failed")
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"iteration": 3.0, "lo')
    assert len(read_rows(tmp_path)) == 2
    write(tmp_path, [3], resumed_at=2)
    assert [row["iteration"] for row in read_rows(tmp_path)] == [1, 2, 3]


def test_a_crash_while_rewinding_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = write(tmp_path, [1, 2, 3])

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("learner.checkpoint.os.fsync", fail)
    with pytest.raises(LogError, match="no space"):
        sink.rewind(1)
    assert len(read_rows(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS_FILE, SAMPLES_FILE]


def test_a_line_cut_inside_a_character_is_dropped(tmp_path: Path) -> None:
    """As a full disk or a crash leaves it; every place of the cut is tried."""
    whole = b'{"iteration": 1, "response": "a"}\n'
    last = json.dumps({"iteration": 2, "response": "π🎲"}, ensure_ascii=False).encode()
    for length in range(1, len(last)):
        (tmp_path / SAMPLES_FILE).write_bytes(whole + last[:length])
        assert [row["iteration"] for row in read_samples(tmp_path)] == [1]
        JsonlSink(tmp_path).rewind(5)
        assert (tmp_path / SAMPLES_FILE).read_bytes() == whole
    (tmp_path / SAMPLES_FILE).write_bytes(whole + last[:-3] + b"\n" + whole)
    with pytest.raises(ValueError, match=r"Line 2 of .*samples\.jsonl is not JSON"):
        read_samples(tmp_path)


def test_a_log_with_a_broken_line_is_a_sentence_and_stays_as_it_is(tmp_path: Path) -> None:
    broken = b'{"iteration": 1}\n{"iteration" 2}\n{"iteration": 3}\n'
    (tmp_path / METRICS_FILE).write_bytes(broken)
    with pytest.raises(
        LogError, match=r"cannot be gone on with: Line 2 of \S+metrics\.jsonl is not JSON .* remove this line"
    ):
        JsonlSink(tmp_path).rewind(2)
    assert (tmp_path / METRICS_FILE).read_bytes() == broken
    (tmp_path / METRICS_FILE).write_text('{"iteration": [3]}\n{"iteration": 3}\n')
    JsonlSink(tmp_path).rewind(2)
    assert (tmp_path / METRICS_FILE).read_text() == '{"iteration": [3]}\n'


def test_a_full_disk_at_a_line_is_a_sentence_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = write(tmp_path, [1, 2])

    class Full(io.FileIO):
        """Takes ten bytes and then no more."""

        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            if len(data) < 30:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:10])

    sink._files = {METRICS_FILE: Full(tmp_path / METRICS_FILE, "ab")}
    with pytest.raises(
        LogError, match=r"metrics\.jsonl: No space left on device; \S+ \S+ are free: make room$"
    ) as raised:
        sink.iteration({"iteration": 3.0, "loss": 0.25})
    assert raised.value.exit_code == 1
    sink.close("failed")
    assert [row["iteration"] for row in read_rows(tmp_path)] == [1, 2]
    assert (tmp_path / METRICS_FILE).read_text().endswith("}\n")


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"iteration": 1}\n{"iter\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .*metrics\.jsonl"):
        read_rows(tmp_path)


def test_values_and_responses_that_json_or_utf8_cannot_hold(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.start(RunInfo("run", tmp_path, 1))
    sink.iteration({"iteration": 1.0, "loss": math.nan, "ratio/max": math.inf})
    response = "lone \ud800 surrogate, line\u2028separator, \x85, \r\n, 漢字"
    sink.sample([{"iteration": 1, "response": response}])
    assert json.loads((tmp_path / METRICS_FILE).read_text(), parse_constant=pytest.fail)["loss"] is None
    assert math.isnan(read_rows(tmp_path)[0]["loss"])
    assert read_samples(tmp_path)[0]["response"] == response
    assert "漢字" in (tmp_path / SAMPLES_FILE).read_text(encoding="utf-8")


def test_lines_of_one_iteration_are_merged(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"iteration": 2, "loss": 1}\n{"iteration": 1}\n{"iteration": 2, "lr": 3}\n')
    assert read_rows(tmp_path) == [{"iteration": 1.0}, {"iteration": 2.0, "loss": 1.0, "lr": 3.0}]


ROW: Row = {
    "iteration": 7.0,
    "reward/mean": 0.25,
    "entropy/exact": 0.9,
    "entropy/target": 1.0,
    "entropy/error": 0.1,
    "entropy/coefficient": 0.05,
    "entropy/affected": 0.5,
    "entropy/saturated": 1.0,
    "loss": math.nan,
    "eval/countdown/pass@1": 0.5,
    "eval/countdown/pass@1/T=1": 0.5,
}


def test_plain_writes_one_line_an_iteration() -> None:
    out = io.StringIO()
    sink = PlainSink(out)
    sink.start(RunInfo("demo", Path("runs/demo"), 300, resumed_at=6))
    sink.iteration(ROW)
    sink.event("generator 2 was replaced")
    sink.close("finished")
    head, line, event, end = out.getvalue().splitlines()
    assert "resumed after 6" in head
    assert line == (
        "  7/300  reward 0.250  H 0.900  target 1.000  coefficient 0.05  loss nan  COEFFICIENT AT ITS BOUND  countdown/pass@1 0.500"
    )
    assert (event, end) == ("- generator 2 was replaced", "demo: finished")


def test_live_shows_entropy_against_its_target_and_keeps_its_height() -> None:
    console = Console(file=io.StringIO(), record=True, width=110, force_terminal=True)
    sink = LiveSink(console, clock=lambda: 0.0)
    sink.start(RunInfo("demo", Path("runs/demo"), 300))
    try:
        empty = len(console.render_lines(sink.render()))
        for i in range(40):
            sink.iteration({**ROW, "iteration": float(i), "reward/mean": math.nan if i == 3 else i / 40})
            sink.event(f"event {i} [bold]")
        sink.progress("generate", 512, 4096)
        sink.progress("verify", 0, 0)
        full = len(console.render_lines(sink.render()))
        console.print(sink.render())
    finally:
        sink.close("stopped")
    text = console.export_text()
    assert full == empty
    for shown in (
        "target 1.000",
        "-10.0%",
        "at its bound",
        "512/4,096",
        "countdown/pass@1",
        "event 39 [bold]",
        "39/300",
    ):
        assert shown in text
    assert "\x1b[?25h" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]  # the cursor is back


def test_live_falls_back_to_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    sink = LiveSink(Console(file=out, force_terminal=False))
    sink.start(RunInfo("demo", Path("runs/demo"), 300))
    sink.iteration(ROW)
    sink.close("finished")
    assert "reward 0.250" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_headline_picks_what_says_most() -> None:
    evals = {f"e/pass@{k}": k / 16 for k in (1, 4, 16)} | {"e/entropy": 1.0, "e/distinct_correct": 3.0}
    assert [key for key, _ in headline(evals)] == ["e/pass@1", "e/pass@16", "e/distinct_correct"]
    assert headline({"gym/gcd/pass@1": 0.5}) == [("gym/gcd/pass@1", 0.5)]


def test_spark_text_is_low_to_high_with_gaps() -> None:
    assert spark_text([0.0, math.nan, 7.0]) == "▁ █"
    assert spark_text([2.0, 2.0]) == "▄▄"
    assert spark_text([math.nan]) == ""
    assert len(spark_text(range(100), 10)) == 10


class Recorder:
    """Records the order of events as a sink."""

    def __init__(self, log: list[str], name: str, fails: bool = False) -> None:
        self.log, self.name, self.fails = log, name, fails

    def start(self, run: RunInfo) -> None:
        self.log.append(f"{self.name} start {run.name}")

    def progress(self, phase: str, done: float, total: float) -> None:
        self.log.append(f"{self.name} {phase} {done}/{total}")

    def iteration(self, row: Row) -> None:
        self.log.append(f"{self.name} iteration {row['iteration']:.0f}")

    def sample(self, rows: Sequence[Sample]) -> None:
        self.log.append(f"{self.name} sample {len(rows)}")

    def event(self, text: str) -> None:
        self.log.append(f"{self.name} event {text}")

    def close(self, status: str) -> None:
        self.log.append(f"{self.name} close {status}")
        if self.fails:
            raise OSError("disk gone")


def test_fan_out_passes_everything_on_and_closes_all_even_if_one_fails() -> None:
    log: list[str] = []
    fan = FanOut([Recorder(log, "a", fails=True), Recorder(log, "b")])
    fan.start(RunInfo("demo", Path(), 1))
    fan.progress("train", 1, 2)
    fan.iteration({"iteration": 1.0})
    fan.sample([{}])
    fan.event("x")
    with pytest.raises(OSError, match="disk gone"):
        fan.close("finished")
    calls = ["start demo", "train 1/2", "iteration 1", "sample 1", "event x", "close finished"]
    assert log == [f"{name} {call}" for call in calls for name in ("a", "b")]


def test_build_sinks_by_name(tmp_path: Path) -> None:
    kinds = [type(sink) for sink in build_sinks(["jsonl", "console", "jsonl"], tmp_path, is_terminal=False).sinks]
    assert kinds == [StatusSink, JsonlSink, PlainSink]
    assert isinstance(build_sinks(["console"], tmp_path, is_terminal=True).sinks[1], LiveSink)
    with pytest.raises(ValueError, match="Did you mean 'jsonl'"):
        build_sinks(["json"], tmp_path, is_terminal=False)


def test_tensorboard_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        build_sinks(["tensorboard"], tmp_path, is_terminal=False)


@pytest.mark.parametrize(("resumed_at", "first"), [(None, 0), (0, 1), (4, 5)])
def test_tensorboard_scalars_read_back(tmp_path: Path, resumed_at: int | None, first: int) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    sink = TensorboardSink(tmp_path)
    sink.start(RunInfo("demo", tmp_path, 10, resumed_at=resumed_at))
    sink.iteration({"iteration": 5.0, "loss": 0.5, "time/unix": 1e9})
    sink.close("finished")
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = list(loader.LegacyEventFileLoader(str(path)).Load())
    # Proto numbers, not names: 1 is SessionLog.START, which makes TensorBoard hide the steps that are repeated.
    assert [(e.step, e.session_log.status) for e in events if e.HasField("session_log")] == [(first, 1)]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(5, "loss", 0.5)]


@pytest.mark.parametrize(
    "module",
    [
        "telemetry.keys",
        "telemetry.sinks.build",
        "telemetry.sinks.live",
        "report.run_report",
        "report.charts",
        "analysis.run_summary",
        "analysis.diagnosis",
        "report.svg",
        "stats",
    ],
)
def test_no_heavy_import(module: str) -> None:
    heavy = "torch ray vllm transformers numpy pandas matplotlib tensorboard"
    code = f"import sys, orchestration.{module}; print([m for m in {heavy.split()} if m in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
