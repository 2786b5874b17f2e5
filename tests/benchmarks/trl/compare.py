"""Measures whole rounds against TRL's GRPOTrainer: the same model, prompts, sampling, updates, learning rate and cores.

    PYTHONPATH=.:tests python -m benchmarks.trl.compare [--json FILE] [--only heavy short countdown] [--tune]

heavy, short   seconds of a round of 256 replies and 4 updates: generation, scoring, training and what connects them. The two take
               turns, run by run; the first round of every run is left out. TRL uses all cores in each half of a round, we a core
               in each at the same time: our generator is a round ahead (`batch.staleness: 1`)
countdown      seconds of training until the mean reward of WINDOW rounds in a row reaches TARGET, three seeds

TRL has a virtual environment of its own (`make .venv-trl/ready`). Its rounds are timed in its callbacks, ours by the clock in
metrics.jsonl. Lengths follow from what is sampled, so tokens are reported and a ratio by the token is given too. --tune times TRL's
rows of a micro-batch instead, to find the best for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ideal, measure, runs

PYTHON = runs.ROOT / ".venv-trl" / "bin" / "python"
SCRIPT = Path(__file__).parent / "grpo.py"
RUNS, ROUNDS = 2, 3  # of each side, and rounds of each that count
# Rows of TRL's forward and backward pass: what --tune finds fastest here. It pads all of them to the round's longest reply.
MICRO_BATCH = {"heavy": 8, "short": 64, "countdown": 64}
GOALS = {"heavy": 8.0, "short": 1.2}  # or NEAR of the ideal where that is less
NEAR = 0.9
STALENESS = 1
TARGET, WINDOW, SEEDS, MOST_ROUNDS = 0.5, 3, (0, 1, 2), 40
COUNTDOWN_GOAL = 2.0


@dataclass
class Rounds:
    """Holds what rounds of one side took and made, one number a round."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)

    @property
    def second(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Returns tokens a second over all rounds."""
        return sum(self.tokens) / sum(self.seconds)

    @property
    def length(self) -> float:
        return statistics.fmean(self.tokens)

    def add(self, other: Rounds) -> None:
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.reward += other.reward

    def until(self, target: float) -> float | None:
        """Returns the seconds until the mean of WINDOW rewards in a row first reaches the target; None if it never does."""
        for i in range(WINDOW, len(self.reward) + 1):
            if statistics.fmean(self.reward[i - WINDOW : i]) >= target:
                return sum(self.seconds[:i])
        return None


def ours(workload: str, folder: Path, name: str, rounds: int, seed: int = 0, warm: int = 1) -> Rounds:
    """Runs `isentrope train` with a core for the generator and one for the learner, which work at the same time; the first `warm`
    iterations are left out."""
    given = [f"run.iterations={rounds + warm}", f"run.seed={seed}", f"batch.staleness={STALENESS}"]
    rows = runs.train(runs.WORKLOADS / f"{workload}.yaml", folder, name, given).rows
    at = [rows[0]["time/unix"] - rows[0]["time/iteration"], *(row["time/unix"] for row in rows)]
    seconds = [b - a for a, b in itertools.pairwise(at)]
    return Rounds(seconds[warm:], [r["tokens/generated"] for r in rows[warm:]], [r["reward/mean"] for r in rows[warm:]])


def task(workload: str, rounds: int, seed: int) -> dict[str, Any]:
    """Returns what TRL's side is given: the recipe's prompts, in their order and rendered, and its numbers."""
    from envs import catalog
    from learner.chat import load_tokenizer

    recipe = runs.recipe(workload)
    declared, batch = recipe["environments"][0], recipe["batch"]
    catalog.look_in(runs.WORKLOADS)
    environment = catalog.load(declared["name"], declared["params"], seed=seed)
    model = runs.ROOT / recipe["model"]["path"]
    tokenizer = load_tokenizer(model)
    prompts = [environment.prompt("train", i) for i in range(batch["prompts"] * rounds)]
    chats = [[{"role": m.role, "content": m.content} for m in p.messages] for p in prompts]
    texts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
    name = declared["name"] if ":" in declared["name"] else catalog.BUILTIN[declared["name"]]
    return {
        "model": str(model),
        "prompts": texts,
        "tasks": [p.task for p in prompts],
        "environment": {"name": name, "params": declared["params"]},
        "group": batch["responses"],
        "replies": batch["prompts"] * batch["responses"],
        "updates": recipe["learner"]["updates"],
        "rounds": rounds,
        "max_tokens": recipe["sampling"]["max_tokens"],
        "lr": recipe["learner"]["lr"],
        "threads": len(os.sched_getaffinity(0)),
        "micro_batch": MICRO_BATCH[workload],
        "until": None,
        "window": WINDOW,
        "seed": seed,
    }


def theirs(given: dict[str, Any], folder: Path, name: str, warm: int = 1, limit_s: float = 900) -> Rounds:
    """Runs TRL. Raises RuntimeError with the end of what it printed where it fails."""
    out, file = folder / f"{name}.jsonl", folder / f"{name}.json"
    file.write_text(json.dumps(given | {"out": str(out)}), "utf-8")
    environment = {k: v for k, v in runs.environment().items() if k != "PYTHONPATH"}
    command = [str(PYTHON), str(SCRIPT), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(f"TRL ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()][warm:]
    return Rounds([r["seconds"] for r in rows], [r["tokens"] for r in rows], [r["reward"] for r in rows])


def speed(workload: str, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the lines of a workload, whole rounds and by the token, and the single rounds."""
    runs.make_model(workload)
    given = task(workload, ROUNDS + 1, seed=0)
    isentrope, trl = Rounds(), Rounds()
    for i in range(RUNS):
        trl.add(theirs(given, folder, f"{workload}-{i}"))
        isentrope.add(ours(workload, folder, f"{workload}-{i}", ROUNDS))
    alone = ideal.pure(workload)
    longer = max(statistics.median(alone["generate"]), statistics.median(alone["train"]))
    value, possible = trl.second / isentrope.second, trl.second / longer
    goal = min(GOALS[workload], NEAR * possible)
    lines = [
        measure.ratio(
            f"{workload}: TRL / Isentrope, seconds of a round",
            value,
            goal=f"at least {goal:.3g}",
            held=value >= goal,
            ours=f"{measure.seconds(isentrope.second)} ({isentrope.length:.0f} tokens)",
            other=f"{measure.seconds(trl.second)} ({trl.length:.0f} tokens)",
            values=measure.paired(isentrope.seconds, trl.seconds),
        ),
        measure.ratio(
            f"{workload}: TRL / the ideal (the longer of pure generation and pure training), seconds of a round",
            possible,
            ours=f"generation {measure.seconds(statistics.median(alone['generate']))}, "
            f"training {measure.seconds(statistics.median(alone['train']))}",
            other=measure.seconds(trl.second),
        ),
        measure.ratio(
            f"{workload}: Isentrope / TRL, tokens a second",
            isentrope.rate / trl.rate,
            ours=f"{isentrope.rate:.0f} tokens/s",
            other=f"{trl.rate:.0f} tokens/s",
        ),
    ]
    return lines, {"isentrope": vars(isentrope), "trl": vars(trl), "ideal": alone}


def countdown(folder: Path, seeds: Sequence[int] = SEEDS) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the line of the wall time to the same reward, and the curves."""
    runs.make_countdown_model()
    curves: dict[str, Any] = {}
    ratios, both = [], []
    for seed in seeds:
        trl = theirs(task("countdown", MOST_ROUNDS, seed) | {"until": TARGET}, folder, f"countdown-{seed}", warm=0)
        isentrope = ours("countdown", folder, f"countdown-{seed}", MOST_ROUNDS, seed, warm=0)
        curves[str(seed)] = {"isentrope": vars(isentrope), "trl": vars(trl)}
        took, other = isentrope.until(TARGET), trl.until(TARGET)
        both.append((took, other))
        if took is not None and other is not None:
            ratios.append(other / took)
    said = [", ".join("never" if t is None else measure.seconds(t) for t in side) for side in zip(*both, strict=True)]
    every = len(ratios) == len(both)
    value = statistics.median(ratios) if ratios else float("nan")
    line = measure.ratio(
        f"countdown, reward {TARGET}: TRL / Isentrope, seconds of training, seeds {', '.join(map(str, seeds))}",
        value,
        goal=f"at least {COUNTDOWN_GOAL:g}",
        held=every and value >= COUNTDOWN_GOAL,
        ours=said[0],
        other=said[1],
        values=ratios,
    )
    return [line], curves


def tune(workload: str, folder: Path) -> None:
    """Prints TRL's seconds of a round by the rows of a micro-batch."""
    runs.make_model(workload)
    for rows in (4, 8, 16, 32, 64):
        found = theirs(task(workload, 3, seed=0) | {"micro_batch": rows}, folder, f"tune-{rows}")
        print(f"{workload}: {rows} rows a micro-batch: {found.second:.2f} s a round", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=["heavy", "short", "countdown"], default=["heavy", "short", "countdown"]
    )
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    if not PYTHON.is_file():
        raise SystemExit("TRL has no virtual environment yet: make .venv-trl/ready")
    lines: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for workload in args.only:
            if args.tune:
                tune(workload, Path(folder))
                continue
            found, details[workload] = (countdown if workload == "countdown" else lambda f, w=workload: speed(w, f))(
                Path(folder)
            )
            lines += found
            print(measure.table(found), flush=True)
    if not args.tune:
        measure.write(args.json, "trl", lines, **details)


if __name__ == "__main__":
    main()
