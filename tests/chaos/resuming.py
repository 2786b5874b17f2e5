"""Names the rows about checkpoints, full disks, and resumes.

Each is played on the real stack: a driver is killed, what it left is damaged or disputed, and the run is resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from chaos import checks, faults
from chaos.harness import ITERATIONS, START_S, Failed, Lab, Run

RESUME_S = 300.0  # for a resumed run to end
DISK_MB = 16


def killed(lab: Lab, at: int = 5, *overrides: str) -> Run:
    """Returns what is left of a run whose driver was killed after iteration `at`: a copy of its own, which a row may damage."""
    lab.reference()  # before the clock of the row's own waits
    run = lab.killed.get((at, *overrides))
    if run is None:
        run = lab.killed[at, *overrides] = lab.start(*overrides)
        run.until_iteration(at)
        faults.kill_tree(run)
    copy = lab.new_folder()
    shutil.copytree(run.folder, copy, dirs_exist_ok=True, symlinks=True)
    return replace(run, folder=copy)


def resumed(lab: Lab, before: Run, *overrides: str) -> Run:
    """Resumes it, and checks that it then equals the run that was never killed."""
    run = lab.start(*overrides, folder=before.folder, resume=True)
    equal(lab, run)
    return run


def equal(lab: Lab, run: Run) -> None:
    checks.ending(run, (0,), RESUME_S)
    checks.same_rows(run, lab.reference())
    checks.same_samples(run, lab.reference())
    checks.whole_checkpoint(run, ITERATIONS)


def killed_in(phase: str) -> Callable[[Lab], str]:
    """Returns the row that kills the driver in a phase."""

    def play(lab: Lab) -> str:
        lab.reference()
        run = lab.start()
        run.until_iteration(3)
        if phase == "generate":
            faults.hold(run, run.names("generator"), ("generate", "verify"))
        elif phase == "train":
            faults.hold(run, run.names("learner rank"), ("train",))
        elif phase == "sync":
            faults.hold_in_sync(run, run.names("generator"))
        else:
            draft = run.run / "checkpoints"
            run.until("a checkpoint is being written", lambda: list(draft.glob("*.writing")), START_S)
        at = run.iteration()
        faults.kill_tree(run)
        resumed(lab, run)
        return f"killed after iteration {at}, resumed, all rows equal"

    return play


def before_the_first_checkpoint(lab: Lab) -> str:
    run = killed(lab, 1, "checkpoint.every=0")
    if list((run.run / "checkpoints").glob("step_??????")):
        raise Failed("it had a checkpoint already")
    resumed(lab, run)
    return "the same command begins anew, all rows equal"


def two_resumes(lab: Lab) -> str:
    return both_resume(lab, killed(lab))


def both_resume(lab: Lab, before: Run) -> str:
    """Resumes a folder twice at once: one has to go on to the undisturbed end, the other to say who holds the folder."""
    both = [lab.start(folder=before.folder, resume=True) for _ in range(2)]
    both[0].until("one of the two ends", lambda: [r for r in both if r.process.poll() is not None], START_S, ended=True)
    loser, winner = sorted(both, key=lambda run: run.process.poll() is None)
    checks.ending(loser, (2,), 10)
    equal(lab, winner)
    return f"one goes on, all rows equal; the other: {loser.errors().strip()[:120]}"


def damaged(damage: Callable[[Run], None], *words: str) -> Callable[[Lab], str]:
    """Returns the row that damages the newest of two checkpoints; the one before is used, and a line says so."""

    def play(lab: Lab) -> str:
        run = killed(lab)
        newest = faults.newest(run).name
        damage(run)
        again = resumed(lab, run)
        checks.says(again, newest, *words)
        return "the one before is used, all rows equal"

    return play


def flip_engine(run: Run) -> None:
    faults.flip(faults.newest(run), "engine")


def flip_weights(run: Run) -> None:
    faults.flip(faults.newest(run), "hf")


def cut_engine(run: Run) -> None:
    faults.cut(faults.newest(run), "engine")


def other_weights(run: Run) -> None:
    """Puts the weights of version 0 into the newest checkpoint: the right names and sizes, the wrong numbers."""
    source = run.folder.parent / "arithmetic" / "model.safetensors"
    if not source.is_file():
        raise Failed(f"{source} is not there")
    shutil.copyfile(source, faults.newest(run) / "hf" / "model.safetensors")


def latest_elsewhere(lab: Lab) -> str:
    run = killed(lab)
    other = lab.reference().run / "checkpoints"
    (run.run / "checkpoints" / "latest").write_text(str(faults.newest(lab.reference()).resolve()))
    before = {p: p.stat().st_mtime_ns for p in other.rglob("*")}
    resumed(lab, run)
    if before != {p: p.stat().st_mtime_ns for p in other.rglob("*")}:
        raise Failed("the other run's checkpoints were touched")
    return "not followed, all rows equal"


def latest_binary(lab: Lab) -> str:
    run = killed(lab)
    (run.run / "checkpoints" / "latest").write_bytes(b"\xff\x00" * 4000)
    resumed(lab, run)
    return "ignored, all rows equal"


def torn_logs(lab: Lab) -> str:
    run = killed(lab)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run.run / name).open("ab") as file:
            file.write('{"iteration": 6, "response": "é'.encode()[:-1])
    resumed(lab, run)
    return "the torn lines are dropped, all rows equal"


def disk_full_at_a_checkpoint(lab: Lab) -> str:
    """Fills the disk once a checkpoint is there, and makes room again: the run goes on, and the next one is written."""
    lab.reference()
    folder = lab.new_folder()
    with faults.small_disk(folder / "runs", DISK_MB):
        run = lab.start(folder=folder)
        try:
            run.until("a checkpoint", lambda: list((run.run / "checkpoints").glob("step_??????")), START_S)
            # Room for the lines of the logs, not for a checkpoint.
            ballast = faults.fill(folder / "runs", leave=100_000)
            at = checks.whole_checkpoint(run)
            run.until_iteration(run.iteration() + 2, 60)
            if checks.whole_checkpoint(run) < at:
                raise Failed("the old checkpoint is gone")
            ballast.unlink()
            equal(lab, run)
            checks.says(run, "free")
        finally:
            run.end()
    return "the old one intact, the run goes on, all rows equal"


def disk_full_at_a_line(lab: Lab) -> str:
    folder = lab.new_folder()
    with faults.small_disk(folder / "runs", DISK_MB):
        run = lab.start("run.iterations=100000", "checkpoint.every=0", folder=folder)
        try:
            run.until_iteration(3)
            faults.fill(folder / "runs")
            code = checks.ending(run, (1,), 120)
            if "metrics.jsonl" not in run.errors() and "samples.jsonl" not in run.errors():
                raise Failed(f"the sentence names no file: {run.errors().strip()[:200]}")
            report = run.run / "report.html"
            if report.exists() and not report.stat().st_size:
                raise Failed("report.html has 0 bytes")
        finally:
            run.end()
    return f"exit {code}, {run.errors().strip()[:120]}"


RESUMING = (
    *(
        (f"driver-killed-in-{phase}", "the driver is killed", phase, "resumed, the same numbers", killed_in(phase))
        for phase in ("generate", "train", "sync", "checkpoint")
    ),
    (
        "no-checkpoint-yet", "the driver is killed", "before the first checkpoint",
        "--resume begins anew", before_the_first_checkpoint,
    ),
    ("two-resumes", "two resumes of one folder", "at once", "one goes on, the other: exit 2, a sentence", two_resumes),
    *(
        (name, fault, "the newest of two checkpoints", "it is named, the one before is used", damaged(damage))
        for name, fault, damage in (
            ("engine-flipped", "64 bytes of the engine's state are flipped", flip_engine),
            ("weights-flipped", "64 bytes of the weights are flipped", flip_weights),
            ("checkpoint-cut", "a file is cut in half", cut_engine),
            ("other-weights", "another model's weights", other_weights),
        )
    ),
    ("latest-elsewhere", "`latest` names another run's checkpoint", "at a resume", "not followed", latest_elsewhere),
    ("latest-binary", "`latest` is binary and long", "at a resume", "ignored", latest_binary),
    ("logs-torn", "logs end inside a character", "at a resume", "the torn lines are dropped", torn_logs),
    (
        "disk-full-checkpoint", "the disk is full", "at a checkpoint",
        "a sentence, the old one intact, the run goes on", disk_full_at_a_checkpoint,
    ),
    ("disk-full-line", "the disk is full", "at a line of a log", "exit 1, a sentence with the file", disk_full_at_a_line),
)  # fmt: skip
