"""The script for whoever has the cards: a part that fails, dies or hangs is a line, the next one begins, and one file is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import check, driver, multi
from gpu.driver import Line, Part, chosen, play, table

ROOT = Path(__file__).parents[2]
FAKES = "support.fake_parts:"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Line], Path]:
    """Returns what a check finds of which half fails, and its folder."""
    out = tmp_path_factory.mktemp("out")
    parts = {
        "passes": Part(FAKES + "passes", 120, (7, "x")),
        "wrong": Part(FAKES + "finds_something_wrong", 120),
        "raises": Part(FAKES + "raises", 120),
        "missing": Part(FAKES + "no_such_part", 120),
        "nothing": Part(FAKES + "says_nothing", 120),
        "dies": Part(FAKES + "dies", 120),
        "last": Part(FAKES + "passes", 120),
    }
    return play(parts, out), out


def test_every_part_is_played_whatever_became_of_the_one_before(played: tuple[list[Line], Path]) -> None:
    lines = {(line.part, line.what): line for line in played[0]}
    assert lines["passes", "a sum"].ok and lines["passes", "arguments"].found == "(7, 'x')"
    assert lines["wrong", "a sum"].ok and not lines["wrong", "another"].ok
    assert lines["raises", "it ended"].found == "RuntimeError: no such card"
    assert "no_such_part" in lines["missing", "it ended"].found
    assert lines["nothing", "nothing"].found == "it found nothing"
    assert lines["dies", "before"].ok and lines["dies", "exit code"].found == "-11"
    assert lines["last", "a sum"].ok


def test_the_table_has_a_row_a_part_with_what_is_wrong(played: tuple[list[Line], Path]) -> None:
    rows = {row.split("|")[1].strip(): row for row in table(played[0]).splitlines()}
    assert list(rows) == ["passes", "wrong", "raises", "missing", "nothing", "dies", "last"]
    assert [name for name, row in rows.items() if "| FAIL |" in row] == [
        "wrong",
        "raises",
        "missing",
        "nothing",
        "dies",
    ]
    assert "another: 5" in rows["wrong"] and "a sum" not in rows["wrong"]
    assert "2 checks" in rows["last"]


def test_what_a_part_prints_is_in_its_log(played: tuple[list[Line], Path]) -> None:
    assert (played[1] / "passes.log").read_text() == "what a part prints\n"
    assert "RuntimeError: no such card" in (played[1] / "raises.log").read_text()


def test_a_part_that_hangs_ends_at_its_limit_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "GRACE_S", 2.0)
    pid_file = tmp_path / "pid"
    part = Part(FAKES + "hangs_with_a_child", 60, (str(pid_file),))
    running = driver.Running("hangs", part, tmp_path / "log")
    lines = running.lines()
    assert next(lines).what == "began"
    running.began -= 60  # its time is over
    (late,) = lines
    assert (late.what, late.found, late.ok) == ("limit", "not done within 60 s", False)
    pid = int(pid_file.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            break
        time.sleep(0.1)
    else:
        os.kill(pid, 9)
        pytest.fail("the part's own process was left running")


def test_several_parts_at_once_are_all_played(tmp_path: Path) -> None:
    lines = play({name: Part(FAKES + "passes", 120) for name in "ab"}, tmp_path, together=True)
    assert [line.part for line in lines] == ["a", "a", "b", "b"]


def test_a_part_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(check.PARTS, "maths,math")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("there is no part math: parts are packed, maths, ")
    assert list(chosen(check.PARTS, "learner,maths")) == ["learner", "maths"]


@pytest.mark.parametrize("part", [*check.PARTS.values(), *multi.PARTS.values()], ids=lambda part: part.work)
def test_every_part_is_a_function_that_can_be_imported(part: Part) -> None:
    module, _, function = part.work.partition(":")
    code = f"import {module}; assert callable({module}.{function})"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_several_gpus_take_ten_minutes_at_most() -> None:
    assert sum(part.limit_s for part in multi.PARTS.values()) == 600


# --multi


@pytest.mark.parametrize("found", [(), ("0",)])
def test_with_fewer_than_two_gpus_it_says_so_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(multi, "gpus", lambda: found)
    with pytest.raises(SystemExit) as ended:
        multi.main(None, tmp_path / "out", False, 1.0)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"this machine has {len(found)} GPUs that torch can use and --multi needs two or more")
    assert said.err.count("\n") == 1 and not said.out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [False, True])
def test_one_file_is_left_to_send_and_the_exit_code_says_whether_the_node_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: bool
) -> None:
    given: dict[str, Part] = {}

    def play(parts: dict[str, Part], out: Path) -> list[Line]:
        given.update(parts)
        out.mkdir()
        (out / "nccl.log").write_text("x" * multi.LOG_BYTES + "NCCL INFO the end")
        return [Line("nccl", "bytes", "the same", True), Line("ipc", "medium", "network", not wrong)]

    monkeypatch.setattr(multi, "gpus", lambda: ("3", "5"))
    monkeypatch.setattr(multi, "play", play)
    monkeypatch.setattr(multi, "_said", lambda *command: f"<{' '.join(command)}>")
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    assert multi.main("nccl,ipc", tmp_path / "out", False, 2.0) == int(wrong)
    assert {name: part.limit_s for name, part in given.items()} == {"nccl": 120, "ipc": 120}
    (node,) = given["ipc"].arguments
    assert (node.devices, node.members, node.cuda) == (("3", "5"), 2, True)
    assert os.environ["NCCL_DEBUG"] == "INFO"
    text = (tmp_path / "out" / "send.txt").read_text()
    for part in (
        "torch 2.",
        "<nvidia-smi topo -m>",
        "NCCL_IB_DISABLE=1",
        "NCCL_DEBUG=INFO",
        "NCCL INFO the end",
        "there is none",
    ):
        assert part in text
    assert "a secret" not in text
    assert ("| ipc              | FAIL | medium: network |" in text) is wrong
    said = capsys.readouterr().out
    assert ("does not work as it should: send us" if wrong else "this node works") in said and "send.txt" in said


def test_gpus_are_named_as_the_user_lets_them_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for given, expected in ((None, ("0", "1")), ("6,2", ("6", "2")), ("GPU-a,GPU-b,GPU-c", ("GPU-a", "GPU-b"))):
        if given is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert multi.gpus() == expected


def test_a_part_sees_the_gpus_that_it_asks_for_and_a_rank_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from integration import learner_cases

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    node = multi.Node(("6", "2", "4"), "f")
    node.see(0, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,4"
    ranks: list[Any] = []
    monkeypatch.setattr(
        learner_cases, "rank_main", lambda *args, cuda: ranks.append((os.environ["CUDA_VISIBLE_DEVICES"], cuda))
    )
    for rank in range(3):
        multi._rank(node.devices, rank, 3)
    assert ranks == [("6", True), ("2", True), ("4", True)]


@pytest.mark.parametrize(
    ("count", "shards", "backend", "whole", "turns"),
    [(0, 2, None, "2 ranks, an engine of 2 shards", False), (2, 2, None, "1 ranks, an engine of 1 shards", True),
     (3, 2, "nccl", "1 ranks, an engine of 2 shards", True), (8, 2, "nccl", "2 ranks, an engine of 2 shards", True)],
)  # fmt: skip
def test_parts_use_as_many_gpus_as_there_are(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    count: int,
    shards: int,
    backend: str | None,
    whole: str,
    turns: bool,
) -> None:
    from gpu import whole_runs
    from integration import weight_sync_cases

    asked: list[Any] = []
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(weight_sync_cases, "many_updates", lambda *a, **o: asked.append(o) or {"score": 1e-6})
    node = multi.Node(tuple(map(str, range(count))), str(tmp_path))
    multi.tensor_parallel(lambda *line: said.append(line), node)
    (options,) = asked
    assert (options["shards"], options.get("backend"), options.get("gpus")) == (shards, backend, 1 if count else None)
    assert str(options.get("sender")) == ("cuda:2" if backend else "None")
    assert ("VLLM_CPU_OMP_THREADS_BIND" in os.environ) is (count == 0)

    runs: list[tuple[str, ...]] = []

    def train(folder: Path, name: str, limit: float, *overrides: str, **options: Any) -> Any:
        runs.append(overrides)
        gap = 1e-6 if len(runs) == 1 else 0.5
        return 0, "", [{"sync/logprob_gap_max": gap}] * 3

    monkeypatch.setattr(whole_runs, "train", train)
    monkeypatch.setattr(multi, "_program", lambda arguments: None)
    said.clear()
    multi.run(lambda *line: said.append(line), node)
    assert [line[2] for line in said] == [True, False][: 1 + turns], "a gap of half a nat is not passed"
    assert said[0][0] == f"isentrope train, {whole}, 3 iterations"
    assert ("generators.colocated=true" in runs[-1]) is turns
    assert f"learner.gpus={int(count > 0)}" in runs[0]
