"""Checks that trace.json is a Chrome trace at its end, after a kill, and when a resumed run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from learner.tracing.spans import Recorded, Span
from orchestration.telemetry.trace_file import TraceFile

SECOND = 10**9


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    # As viewers read it: the end of the array may be missing, with a comma before it.
    found = json.loads(text if text.endswith("]\n") else text.rstrip().rstrip(",") + "]")
    return [event for event in found if event["ph"] == kind]


def names(path: Path) -> dict[int, str]:
    return {event["pid"]: event["args"]["name"] for event in events(path, "M") if event["name"] == "process_name"}


def test_a_span_is_where_and_when_it_was(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    driver = Recorded([Span("update", 2 * SECOND, 3 * SECOND, 0), Span("batch", 2 * SECOND, 2 * SECOND + 500, 0)], 0)
    file.write({"driver": driver, "generator 0": Recorded([Span("generate", SECOND, 2 * SECOND, 1)], 7)})
    assert events(tmp_path / "trace.json", "X")  # loads before its end
    file.write({"driver": Recorded([], 0), "generator 0": Recorded([Span("generate", 3 * SECOND, 4 * SECOND, 0)], 0)})
    file.close()
    assert [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"]) for e in events(tmp_path / "trace.json", "X")] == [
        ("update", 1, 0, 2e6, 1e6),
        ("batch", 1, 0, 2e6, 0.5),
        ("generate", 2, 1, 1e6, 1e6),
        ("generate", 2, 0, 3e6, 1e6),
    ]
    assert names(tmp_path / "trace.json") == {1: "driver", 2: "generator 0"}
    dropped, _ = events(tmp_path / "trace.json", "i")
    assert dropped["pid"] == 2 and dropped["name"].startswith("7 earlier spans")


def test_a_resumed_run_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    one = {"driver": Recorded([Span("a", 0, 1000, 0)], 0)}
    first = TraceFile(path)
    first.write(one)
    first.close()
    TraceFile(path).write(one)
    with path.open("a") as file:
        file.write('{"name": "a", "ph"')  # and is killed in the middle of a line
    last = TraceFile(path)
    last.write(one)
    last.close()
    assert len(events(path, "X")) == 3 and len(events(path, "i")) == 1
    assert names(path) == {1: "driver", 2: "driver", 3: "driver"}
