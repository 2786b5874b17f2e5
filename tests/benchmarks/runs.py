"""Starts runs as a user does, `isentrope train` with a recipe, and reads what their iterations took."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKLOADS = Path(__file__).parent / "workloads"
COUNTDOWN_MODEL = (  # 0.6 million parameters, as those of the other workloads
    "steps=40 hidden_size=128 layers=3 heads=4 kv_heads=2 intermediate_size=384 holdout_prompts=16 holdout_responses=8"
)
WARM = 1  # iterations before those that count: the first ones build what later ones find


@dataclass(frozen=True)
class Measured:
    """Holds the rows of a run's metrics.jsonl, one an iteration; evaluations alone are left out."""

    rows: list[dict[str, float]]
    folder: Path

    def steady(self, key: str, warm: int = WARM) -> list[float]:
        return [row[key] for row in self.rows[warm:]]

    @property
    def walls(self) -> list[float]:
        """Returns the seconds from one row to the next: also right where iterations overlap."""
        at = [row["time/unix"] for row in self.rows]
        return [b - a for a, b in zip(at[WARM - 1 :], at[WARM:], strict=False)]

    def breakdown(self) -> dict[str, float]:
        """Returns the median seconds of every kind of work, over the iterations that count."""
        keys = [k for k in self.rows[-1] if k.startswith("time/") and k != "time/unix"]
        return {k: statistics.median(self.steady(k)) for k in keys if all(k in row for row in self.rows[WARM:])}


def train(recipe: Path, folder: Path, name: str, overrides: Sequence[str] = (), limit_s: float = 600) -> Measured:
    """Runs `isentrope train` to its end. Raises RuntimeError, with the end of what it printed, where it fails."""
    isentrope("train", str(recipe), f"run.dir={folder}", f"run.name={name}", *overrides, limit_s=limit_s)
    return read(folder / name)


def in_turn(recipe: Path, folder: Path, given: Mapping[str, Sequence[str]]) -> dict[str, Measured]:
    """Runs a recipe once for each name and its overrides, one after the other on the same actors, as the laboratory does.

    In this process: the start, half a minute, is paid once. The overrides must leave the actors as they are.
    """
    from orchestration.config.run_config import load_config
    from orchestration.run import lifecycle

    own = {name: [f"run.dir={folder}", f"run.name={name}", *overrides] for name, overrides in given.items()}
    configs = [load_config(str(recipe), overrides) for overrides in own.values()]
    lifecycle.in_turn([lifecycle.prepare(config, overwrite=True) for config in configs])
    return {name: read(folder / name) for name in given}


def isentrope(*arguments: str, limit_s: float = 600) -> None:
    """Runs the command to its end. Raises RuntimeError, with the end of what it printed, where it fails."""
    command = [sys.executable, "-m", "orchestration", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"isentrope {arguments[0]} ended with {done.returncode}: {_tail(done.stdout + done.stderr)}")


def read(folder: Path) -> Measured:
    """Reads the rows of a run that is over."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return Measured([row for row in rows if "time/iteration" in row], folder)


def environment() -> dict[str, str]:
    """Returns the environment of a run: nothing is looked up on the network, and bytecode is kept."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(ROOT)}


def recipe(name: str) -> dict[str, Any]:
    """Reads a workload's recipe as it stands."""
    import yaml

    return yaml.safe_load((WORKLOADS / f"{name}.yaml").read_text("utf-8"))


def make_model(name: str) -> Path:
    """Makes the model of a workload of reply lengths, unless it is there."""
    from benchmarks.workloads import bigram_model

    data = recipe(name)
    folder = ROOT / data["model"]["path"]
    if not (folder / "config.json").is_file():
        bigram_model.make(data["environments"][0]["params"], folder)
    return folder


def make_countdown_model() -> Path:
    """Makes the warm-started model of the workload `countdown`, unless it is there: one to two minutes."""
    folder = ROOT / recipe("countdown")["model"]["path"]
    if not (folder / "config.json").is_file():
        isentrope("init-model", "--recipe", str(WORKLOADS / "countdown.yaml"), *COUNTDOWN_MODEL.split(), limit_s=1200)
    return folder


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
