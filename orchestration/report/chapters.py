"""Arranges the charts and findings of a report: the summary of a single run in chapters, and the sections of charts after it.

`CHARTS` says how each chart is drawn, `CHAPTERS` and `SECTIONS` which of them stand where. A chart without data is left out,
and so are a chapter and a section without any content.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.analysis.diagnosis import diagnose, in_brief
from orchestration.analysis.findings import Chapter, Finding
from orchestration.analysis.run_data import RunData
from orchestration.report import charts

SHARE = {"y_label": "share of tokens", "zero": True}


@dataclass(frozen=True, slots=True)
class Selection:
    """Holds the runs of a report, all their environments, and the k shown beside pass@1."""

    runs: Sequence[RunData]
    envs: Sequence[str]
    k: int


@dataclass(frozen=True, slots=True)
class Section:
    """Holds a heading, the findings under it and the charts under those, as SVG."""

    heading: str
    charts: Sequence[str] = ()
    findings: Sequence[Finding] = ()


Draw = Callable[[Selection], str]


def _metric(key: str, title: str, **options: Any) -> Draw:
    return lambda shown: charts.key_chart(shown.runs, key, title, **options)


def _times(shown: Selection) -> str:
    several = len(shown.runs) > 1
    return "".join(
        charts.time_chart(run, "Time of an iteration" + (f", {run.name}" if several else "")) for run in shown.runs
    )


CHARTS: Mapping[str, Draw] = {
    "entropy": lambda shown: charts.entropy_chart(shown.runs),
    "reward": lambda shown: charts.reward_chart(shown.runs, shown.envs),
    "reward terms": lambda shown: charts.terms_chart(shown.runs),
    "pass over time": lambda shown: charts.pass_over_time(shown.runs, shown.k),
    "pass by k": lambda shown: charts.pass_by_k(shown.runs),
    "quality against coverage": lambda shown: charts.front_chart(shown.runs, shown.k),
    "distinct solutions": lambda shown: charts.distinct_chart(shown.runs),
    "distinct responses": lambda shown: charts.responses_chart(shown.runs),
    "effective solutions": lambda shown: charts.solutions_chart(shown.runs),
    "coefficient": lambda shown: charts.coefficient_chart(shown.runs),
    "predicted and realised": lambda shown: charts.dh_chart(shown.runs),
    "predicted by sign": lambda shown: charts.ledger_chart(shown.runs),
    "with and without control": lambda shown: charts.control_chart(shown.runs),
    "affected": _metric("entropy/affected", "Tokens the coefficient touches", **SHARE),
    "withheld": lambda shown: charts.forgone_chart(shown.runs),
    "covariance": _metric("entropy/covariance", "Covariance of advantage and log-prob", y_label="nats"),
    "entropy by success": lambda shown: charts.success_chart(shown.runs),
    "entropy by position": lambda shown: charts.position_chart(shown.runs),
    "entropy by environment": lambda shown: charts.env_entropy_chart(shown.runs, shown.envs),
    "outside": _metric("gap/outside", "Tokens whose trainer/engine ratio leaves [0.9, 1.1]", **SHARE),
    "outside, rare": _metric("gap/outside_rare", "The same among rare tokens", **SHARE),
    "mean gap": _metric("gap/engine_mean", "Mean log-prob gap", y_label="nats", zero=True),
    "gap quantiles": lambda shown: charts.quantile_chart(
        shown.runs, "gap", "Quantiles of the log-prob gap", y_label="nats, absolute", zero=True
    ),
    "limited": _metric("importance/limited", "Importance weights that were cut", **SHARE),
    "clipped": _metric("clip/high", "Clipped from above", **SHARE),
    "ratio quantiles": lambda shown: charts.quantile_chart(
        shown.runs, "ratio", "Quantiles of the ratio of new to old probability", log_y=True
    ),
    "effective sample size": lambda shown: charts.ess_chart(shown.runs),
    "gradient norm": _metric("grad_norm", "Gradient norm", zero=True),
    "response length": _metric("response/length_mean", "Response length", y_label="tokens", zero=True),
    "no signal": _metric("groups/no_signal", "Groups without signal", y_label="groups", zero=True),
    "time": _times,
    "throughput": _metric("tokens/per_second", "Throughput", y_label="tokens per second", zero=True),
}

CHAPTERS: Mapping[Chapter, tuple[str, tuple[str, ...]]] = {
    "entropy": ("What entropy did", ("entropy", "entropy by success")),
    "why": ("Why", ("predicted by sign", "predicted and realised")),
    "control": ("What control did", ("with and without control", "coefficient")),
    "cost": (
        "What it cost, what it kept",
        ("reward", "reward terms", "pass over time", "distinct solutions", "distinct responses", "effective solutions"),
    ),
    "trust": ("Can the numbers be trusted", ("gap quantiles", "effective sample size")),
    "time": ("Where the time went", ("time", "throughput")),
}

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Entropy and reward": ("entropy", "reward", "reward terms"),
    "What the policy can do": (
        "pass over time",
        "pass by k",
        "quality against coverage",
        "distinct solutions",
        "distinct responses",
        "effective solutions",
    ),
    "The entropy ledger": (
        "coefficient",
        "predicted and realised",
        "predicted by sign",
        "with and without control",
        "affected",
        "withheld",
        "covariance",
        "entropy by success",
        "entropy by position",
        "entropy by environment",
    ),
    "Trainer and engine": ("outside", "outside, rare", "mean gap", "gap quantiles", "limited"),
    "The update": (
        "clipped",
        "ratio quantiles",
        "effective sample size",
        "gradient norm",
        "response length",
        "no signal",
    ),
    "Where the time went": ("time", "throughput"),
}


def chapters(shown: Selection) -> list[Section]:
    """Returns the numbered chapters of a single run: the findings of each with their charts."""
    findings, made = diagnose(shown.runs[0]), []
    for number, (chapter, (heading, names)) in enumerate(CHAPTERS.items(), start=1):
        own = [finding for finding in findings if finding.chapter == chapter]
        drawn = _drawn(CHARTS[name](shown) for name in names)
        if own or drawn:
            made.append(Section(f"{number}. {heading}", drawn, own))
    return made


def diagnoses(runs: Sequence[RunData]) -> list[Section]:
    """Returns the cause and the warnings of every run that has any, under the run's name."""
    brief = [Section(run.name, findings=in_brief(diagnose(run))) for run in runs]
    return [section for section in brief if section.findings]


def sections(shown: Selection) -> list[Section]:
    """Returns the sections of charts; of a single run without the charts that its chapters have already."""
    in_chapters = {name for _, names in CHAPTERS.values() for name in names} if len(shown.runs) == 1 else set()
    made = [
        Section(heading, _drawn(CHARTS[name](shown) for name in names if name not in in_chapters))
        for heading, names in SECTIONS.items()
    ]
    made += [_environment(shown.runs, env) for env in (shown.envs if len(shown.envs) > 1 else ())]
    return [section for section in made if section.charts]


def _environment(runs: Sequence[RunData], env: str) -> Section:
    drawn = (
        charts.key_chart(runs, f"reward/{env}", "Reward"),
        charts.key_chart(runs, f"response/length/{env}", "Response length", y_label="tokens", zero=True),
        charts.key_chart(runs, f"entropy/{env}", "Exact entropy", zero=True),
        charts.pass_by_k(runs, env),
        charts.distinct_chart(runs, env),
    )
    return Section(f"Environment: {env}", _drawn(drawn))


def _drawn(drawings: Iterable[str]) -> list[str]:
    """Drops the charts without data, which are empty text."""
    return [drawing for drawing in drawings if drawing]
