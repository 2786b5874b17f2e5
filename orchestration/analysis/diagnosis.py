"""Collects what a run's numbers say about its entropy and its time, in sentences, in the order a reader would ask. Pure.

diagnose(load_run(Path("runs/demo"))) ->
    [Finding("entropy", "course", "Entropy fell 63 %, from 1.21 to 0.45 nats per token, in 300 iterations."), ...]
"""

from collections.abc import Sequence

from orchestration.analysis import advice, control_findings, entropy_findings, outcome_findings, time_findings
from orchestration.analysis.findings import Check, Finding
from orchestration.analysis.run_data import RunData

CHECKS: tuple[Check, ...] = (
    *entropy_findings.CHECKS,
    *control_findings.CHECKS,
    *outcome_findings.CHECKS,
    *advice.CHECKS,
    *time_findings.CHECKS,
)


def diagnose(run: RunData) -> list[Finding]:
    """Returns everything the run's numbers support, chapter by chapter; empty for a run without any of them."""
    return [finding for check in CHECKS if (finding := check(run)) is not None]


def in_brief(findings: Sequence[Finding]) -> list[Finding]:
    """Picks the cause and the warnings: what fits beside other runs."""
    return [f for f in findings if f.topic == "cause" or f.severity == "warning"]
