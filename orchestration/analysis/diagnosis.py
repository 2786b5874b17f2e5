"""What a run's numbers say about its entropy, in sentences, in the order a person would ask. Pure.

diagnose(load_run(Path("runs/demo"))) ->
    [Finding("entropy", "course", "Entropy fell 63 %, from 1.21 to 0.45 nats per token, in 300 iterations."), ...]
"""

from collections.abc import Sequence

from orchestration.analysis import checks_control, checks_entropy, checks_outcome
from orchestration.analysis.findings import Check, Finding
from orchestration.analysis.run_data import RunData

CHECKS: tuple[Check, ...] = (*checks_entropy.CHECKS, *checks_control.CHECKS, *checks_outcome.CHECKS)


def diagnose(run: RunData) -> list[Finding]:
    """Everything the run's numbers support, chapter by chapter; empty for a run without any of them."""
    return [finding for check in CHECKS if (finding := check(run)) is not None]


def in_brief(findings: Sequence[Finding]) -> list[Finding]:
    """The cause and the warnings: what fits beside other runs."""
    return [f for f in findings if f.topic == "cause" or f.severity == "warning"]
