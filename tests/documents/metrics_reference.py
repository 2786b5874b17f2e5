"""Writes docs/metrics.md from the table of metric keys: `python tests/documents/metrics_reference.py > docs/metrics.md`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from orchestration.telemetry.keys import KEYS, RENAMED  # noqa: E402

HEADER = """\
# Metrics

<!-- Generated from the table of metric keys: python tests/documents/metrics_reference.py > docs/metrics.md -->

`runs/NAME/metrics.jsonl` has one object an iteration, whose keys are listed here; iteration 0 is the policy before training.
TensorBoard shows the same keys (`run.sinks=[jsonl,console,tensorboard]`). Names in braces stand for a family: `reward/{env}` covers
`reward/countdown` and `reward/reasoning_gym/chain_sum`, since a task family reports as an environment. A key that was not measured
in an iteration is absent or `null`.
"""
# Sentences above a group of keys that have the same first part.
NOTES = {
    "": "Where the run stands, and the optimiser's step.",
    "stage": "Only in runs with stages.",
    "term": "Only where `rewards` has terms.",
    "drift": (
        "The reward-hacking monitor: whether the reward rises without what it stands for. It compares the last 5 iterations of the "
        "stage with its first 5."
    ),
    "dynamic": "Only with dynamic sampling (`batch.dynamic`).",
    "adaptive": "Only with adaptive difficulty (`batch.adaptive`).",
    "diversity": (
        "Only with `diversity`. Numbers of solutions are of groups with two correct responses that have one, and missing where "
        "no group has."
    ),
    "entropy": "The entropy ledger and the controller. [entropy.md](entropy.md) explains both.",
    "coefficient": "Only for environments with an entropy target of their own, as are `target/`, `error/` and `saturated/`.",
    "sync": "The probe after a weight transfer: the trainer's log-probs against the engine's.",
    "gap": "The same comparison over the responses that are trained on.",
    "status": "How responses ended. `timeout` and `error` failed to be scored and are left out of the update.",
    "eval": "Held-out prompts. Evaluations count what the environment calls correct, whatever is rewarded.",
}


def reference() -> str:
    """Returns the whole page: a table for each first part of the keys, and the names that keys had before."""
    groups: dict[str, list[str]] = {}
    for key in KEYS:
        first, slash, _ = key.partition("/")
        groups.setdefault(first if slash else "", []).append(key)
    page = HEADER
    for first, keys in groups.items():
        page += f"\n## {f'`{first}/`' if first else 'Run'}\n"
        page += f"\n{textwrap.fill(NOTES[first], 128)}\n" if first in NOTES else ""
        page += "\n| key | meaning | unit |\n|---|---|---|\n"
        page += "".join(f"| `{key}` | {KEYS[key][0].replace('|', chr(92) + '|')} | {KEYS[key][1]} |\n" for key in keys)
    page += "\n## Former names\n\nRuns that were written with a former name are read with the present one.\n"
    page += "\n| former | present |\n|---|---|\n"
    return page + "".join(f"| `{old}` | `{new}` |\n" for old, new in RENAMED.items())


if __name__ == "__main__":
    print(reference(), end="")
