"""Part `learner` of check.py: DeepSpeed on the device, by the cases of tests/integration/test_learner_group.py on one rank."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[..., None]  # (what, found, ok)


def learner(say: Say) -> None:
    import numpy as np
    from integration import learner_cases
    from integration.test_learner_group import (
        BEGUN,
        EXHAUSTED,
        HALF,
        METHODS,
        RESUMED,
        RICH,
        SAME,
        SEQUENCE,
        SKIPPED,
        UNTIED,
        WIDE,
    )

    folder = Path(tempfile.mkdtemp())
    model = learner_cases.make_model(str(folder / "model"))
    untied = learner_cases.make_model(str(folder / "untied"), tied=False)
    halves = [c for c in HALF if c["precision"] != "fp16"]
    on_cpu = [*SAME[:1], *METHODS, *halves, *RICH[:1], *UNTIED]
    on_gpu = [
        *SAME, *RESUMED, *BEGUN, *SEQUENCE, *WIDE, *RICH, *METHODS, *HALF, *UNTIED, *SKIPPED,
        *EXHAUSTED,
    ]  # fmt: skip
    context = multiprocessing.get_context("spawn")
    children = []
    for name, cases, cuda in (("cpu", on_cpu, False), ("gpu", on_gpu, True)):
        cases = [c | ({"model": untied} if c.get("untied") else {}) for c in cases]
        (folder / name).mkdir()
        arguments = (0, 1, learner_cases.free_port(), model, cases, str(folder / name), cuda)
        children.append(context.Process(target=learner_cases.rank_main, args=arguments))
        children[-1].start()
    expected, entropies = learner_cases.reference(model)
    for child in children:
        child.join(100)
        if child.is_alive():
            child.kill()
    say("both learners ended", str([c.exitcode for c in children]), all(c.exitcode == 0 for c in children))

    def load(where: str, case: str) -> tuple[dict[str, Any], list[dict[str, float]]] | None:
        at = folder / where / f"{case}.npz"
        return (dict(np.load(at)), json.loads(at.with_suffix(".json").read_text())) if at.exists() else None

    def apart(what: str, a: Any, b: Any, limit: float, key: str = "entropy/exact") -> None:
        if a is None or b is None:
            say(what, "a case did not finish", False)
            return
        weights = max(float(np.abs(a[0][k] - b[0][k]).max()) for k in a[0])
        entropy = max(abs(x[key] - y[key]) for x, y in zip(a[1], b[1], strict=True))
        say(what, f"weights {weights:.1e}, entropy {entropy:.1e}", weights <= limit and entropy <= limit)

    first = load("gpu", SAME[0]["name"])
    apart("fp32, against plain torch on the CPU", first, (expected, [{"entropy/exact": e} for e in entropies]), 1e-4)
    for cases, what in (
        (SAME, "fp32 and REPO-R"),
        (RICH, "GSPO, Clip-Cov, MIS and KL"),
        (WIDE, "batch scope"),
    ):
        for case in cases[1:]:
            head = load("gpu", cases[0]["name"])
            apart(f"{what}: {case['name']} against {cases[0]['name']}", load("gpu", case["name"]), head, 1e-4)
    for case in RESUMED:
        undisturbed = next(c for c in SAME if c["stage"] == case["stage"])
        apart(f"{case['name']} against undisturbed", load("gpu", case["name"]), load("gpu", undisturbed["name"]), 1e-5)
    for stage in range(4):
        apart(
            f"optimiser reset, ZeRO {stage}, against a new one", load("gpu", f"reset{stage}"), load("gpu", "new0"), 1e-4
        )
    for case in [*METHODS, *UNTIED, *halves]:
        half = case.get("precision", "fp32") != "fp32"
        limit = (
            2e-2 if half else 1e-4
        )  # two kernels round a half-precision forward apart, and Adam's first steps are signs
        apart(f"{case['name']} against the CPU", load("gpu", case["name"]), load("cpu", case["name"]), limit)
    for case in HALF:
        if case["precision"] == "fp16":
            apart(f"{case['name']} against fp32", load("gpu", case["name"]), first, 1e-2)
    for case in SKIPPED:
        result = load("gpu", case["name"])
        skipped = [int(m["steps/skipped"]) for m in result[1]] if result else None
        say(f"{case['name']}: overflowing steps skipped", str(skipped), bool(skipped and skipped[0] > 0))
    for case in EXHAUSTED:
        at = folder / "gpu" / f"{case['name']}.refused"
        text = at.read_text() if at.exists() else "nothing was raised"
        say(f"{case['name']}: an exhausted loss scale is an error", text[:60], "loss scale" in text)
