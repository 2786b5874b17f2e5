"""Compares planned memory with what learner ranks take: SmolLM2-135M, all weights and an adapter, ZeRO 0 and 3, one and two ranks.

    PYTHONPATH=.:tests python -m benchmarks.memory [--json FILE] [--model FOLDER] [--case "LoRA 32, ZeRO 0, 1 rank"]

A ratio is planned / measured, of a whole process, its libraries included; beside it stands the ratio without them. Measured is the
peak of the resident set, as the kernel counts it (tests/support/memory_cases.py). Cases of two ranks that train all weights go
without the ledger, and with a smaller micro-batch: 6 GB of memory are enough for each. The model is downloaded where none is given.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from support.memory_cases import MIB, Measured, name_of
from support.memory_cases import measure as played

GOAL = 0.10
SMALL: dict[str, Any] = {"ledger_share": 0.0, "micro_batch_tokens": 128}
CASES: list[dict[str, Any]] = [
    {
        "zero_stage": stage,
        **({"lora": 32} if adapted else {}),
        **({"ranks": 2} if two else {}),
        **(SMALL if two and not adapted else {}),
    }
    for adapted in (False, True)
    for stage in (0, 3)
    for two in (False, True)
]


def line(found: Measured) -> dict[str, Any]:
    """Returns a rank's line of the table of results."""
    return measure.ratio(
        f"{found.case}, rank {found.rank}: planned / measured",
        found.ratio,
        goal="0.9 to 1.1",
        held=abs(found.ratio - 1) <= GOAL,
        ours=f"{found.planned / MIB:.0f} MiB",
        other=f"{found.peak / MIB:.0f} MiB, {found.libraries / MIB:.0f} of them libraries; without: {found.ratio_above:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--case", action="append", choices=[name_of(case) for case in CASES])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = args.model or _downloaded(Path(folder))
        cases = [case for case in CASES if args.case is None or name_of(case) in args.case]
        lines = [line(found) for case in cases for found in played(str(model), case, limit_s=560)]
    measure.write(args.json, "memory", lines)


def _downloaded(folder: Path) -> Path:
    from orchestration.commands.get_model import get_model

    return get_model("smollm2", folder / "smollm2", print)


if __name__ == "__main__":
    main()
