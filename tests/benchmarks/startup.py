"""Measures where the start of `isentrope train smoke` spends wall and CPU time, alone or beside another checkout in turn.

    python tests/benchmarks/startup.py --against OTHER --repeats 3

OTHER is a checkout of another revision with a `.venv`, such as a git worktree. CPU seconds are those of the whole process tree,
read every 50 ms, so that a process's last 50 ms may be missing; they depend less than wall seconds on what else the machine does.
Prints the median of each phase, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).parents[2]
# A phase ends with the first line that holds its text.
PHASES = {
    "driver": "starting Ray",
    "Ray": "reserving room",
    "actors, check, first evaluation": "0/",
    "training": "finished",
    "end": None,
}


class Tree:
    """Adds up the CPU seconds of a process and all below it, also of those that have ended."""

    def __init__(self, pid: int) -> None:
        self.root, self.seconds, self.over = psutil.Process(pid), dict[tuple[int, float], float](), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            self.look()

    def look(self) -> float:
        """Returns the seconds so far."""
        try:
            processes = [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            processes = []
        for process in processes:
            try:
                times = process.cpu_times()
                self.seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self.seconds.copy().values())


def start_once(checkout: Path, model: Path) -> dict[str, tuple[float, float]]:
    """Runs the recipe; returns (wall, CPU) seconds of each phase."""
    with tempfile.TemporaryDirectory() as runs:
        command = [checkout / ".venv/bin/python", "-u", "-m", "orchestration", "train", "smoke", "--overwrite"]
        command += [f"model.path={model}", f"run.dir={runs}", "run.iterations=3"]
        environ = os.environ | {"PYTHONPATH": str(checkout)}
        began, before = time.monotonic(), (0.0, 0.0)
        process = subprocess.Popen(
            command, cwd=checkout, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        tree, spent, left = Tree(process.pid), dict[str, tuple[float, float]](), list(PHASES)
        assert process.stdout
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            while left and (text := PHASES[left[0]]) is not None and text in line:
                at = time.monotonic() - began, tree.look()
                spent[left.pop(0)], before = (at[0] - before[0], at[1] - before[1]), at
        process.wait(60)
        tree.over.set()
        tree.thread.join()
        if process.returncode or len(left) != 1:
            raise SystemExit(f"{checkout} did not train:\n{''.join(said)[-2000:]}")
        at = time.monotonic() - began, tree.look()
        spent[left[0]] = at[0] - before[0], at[1] - before[1]
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="Another checkout.")
    parser.add_argument("--model", type=Path, help="A model that `init-model --recipe smoke` made; default: made now.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model: Path = args.model or Path(made) / "model"
        if args.model is None:
            make = [sys.executable, "-m", "orchestration", "init-model", "--recipe", "smoke", "steps=150"]
            subprocess.run([*make, "--out", model], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        checkouts = [ROOT, *([args.against.resolve()] if args.against else [])]
        runs: dict[Path, list[dict[str, tuple[float, float]]]] = {checkout: [] for checkout in checkouts}
        for repeat in range(args.repeats):
            for checkout in checkouts:
                runs[checkout].append(start_once(checkout, model))
                whole = [sum(part[i] for part in runs[checkout][-1].values()) for i in (0, 1)]
                print(f"{repeat + 1}: {checkout}  wall {whole[0]:.1f} s  CPU {whole[1]:.1f} s", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {args.repeats}: wall s, CPU s")
    for phase in (*PHASES, "to the first evaluation", "all"):
        wanted = {"all": list(PHASES), "to the first evaluation": list(PHASES)[:3]}.get(phase, [phase])
        row = [
            [median(sum(run[name][i] for name in wanted) for run in runs[checkout]) for i in (0, 1)]
            for checkout in checkouts
        ]
        line = "   ".join(f"{wall:6.1f} {cpu:6.1f}" for wall, cpu in row)
        ratio = f"   ratio {row[0][0] / row[1][0]:.2f} {row[0][1] / row[1][1]:.2f}" if len(row) > 1 else ""
        print(f"{phase:32} {line}{ratio}")
    if args.json:
        args.json.write_text(json.dumps({"runs": {str(i): r for i, r in enumerate(runs.values())}}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
