"""What a report shows in which order: the story of a single run in chapters, and the sections of charts behind it.

Sentences come from `diagnosis.py`, pictures from `charts.py`; a chapter without either is left out.
"""

from collections.abc import Sequence
from html import escape

from orchestration.analysis.diagnosis import diagnose, in_brief
from orchestration.analysis.findings import Chapter, Finding
from orchestration.analysis.run_data import RunData
from orchestration.report import charts

HEADINGS: dict[Chapter, str] = {
    "entropy": "What entropy did",
    "why": "Why",
    "control": "What control did",
    "cost": "What it cost, what it kept",
    "trust": "Can the numbers be trusted",
}
SHARE = {"y_label": "share of tokens", "zero": True}


def story(runs: Sequence[RunData], envs: Sequence[str], k: int) -> str:
    """HTML: chapters with their charts for one run, the cause and the warnings of each for several; or empty text."""
    if len(runs) > 1:
        brief = [(run.name, in_brief(diagnose(run))) for run in runs]
        body = "".join(f"<h3>{escape(name)}</h3>{_said(found)}" for name, found in brief if found)
        return f"<h2>The diagnosis</h2>{body}" if body else ""
    findings, parts = diagnose(runs[0]), []
    for number, (chapter, heading) in enumerate(HEADINGS.items(), start=1):
        said = _said([f for f in findings if f.chapter == chapter])
        pictures = grid(_pictures(runs, envs, k, chapter))
        if said or pictures:
            parts.append(f"<h3>{number}. {escape(heading)}</h3>{said}{pictures}")
    return f"<h2>The story of the run</h2>{''.join(parts)}" if parts else ""


def grid(pictures: Sequence[str]) -> str:
    """Charts two a line; one without data is empty text and takes no place."""
    shown = "".join(pictures)
    return f'<div class="grid">{shown}</div>' if shown else ""


def table(kind: str, head: str, body: str) -> str:
    """A table of rows that are markup already, scrolling sideways where the page is narrow."""
    return f'<div class="wide"><table class="{kind}"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _said(findings: Sequence[Finding]) -> str:
    plain, marked = "<li>", '<li class="warning"><b>Warning.</b> '
    items = [f"{marked if f.severity == 'warning' else plain}{escape(f.text)}</li>" for f in findings]
    return f'<ul class="said">{"".join(items)}</ul>' if items else ""


def _pictures(runs: Sequence[RunData], envs: Sequence[str], k: int, chapter: Chapter) -> list[str]:
    match chapter:
        case "entropy":
            return [charts.entropy_chart(runs), charts.success_chart(runs)]
        case "why":
            return [charts.ledger_chart(runs), charts.dh_chart(runs)]
        case "control":
            return [charts.control_chart(runs), charts.coefficient_chart(runs)]
        case "cost":
            seen = [charts.distinct_chart(runs), charts.responses_chart(runs)]
            earned = [charts.reward_chart(runs, envs), charts.terms_chart(runs)]
            return [*earned, charts.pass_over_time(runs, k), *seen]
        case "trust":
            return [_gap_chart(runs), charts.ess_chart(runs)]


def _gap_chart(runs: Sequence[RunData]) -> str:
    return charts.quantile_chart(runs, "gap", "Quantiles of the log-prob gap", y_label="nats, absolute", zero=True)


def sections(runs: Sequence[RunData], envs: Sequence[str], k: int) -> list[tuple[str, list[str]]]:
    """Headings with their charts; a chart without data is empty text."""
    timing = [charts.time_chart(r, "Time of an iteration" + (f", {r.name}" if len(runs) > 1 else "")) for r in runs]
    out = [
        (
            "Entropy and reward",
            [charts.entropy_chart(runs), charts.reward_chart(runs, envs), charts.terms_chart(runs)],
        ),
        (
            "What the policy can do",
            [
                charts.pass_over_time(runs, k),
                charts.pass_by_k(runs),
                charts.front_chart(runs, k),
                charts.distinct_chart(runs),
                charts.responses_chart(runs),
            ],
        ),
        (
            "The entropy ledger",
            [
                charts.coefficient_chart(runs),
                charts.dh_chart(runs),
                charts.ledger_chart(runs),
                charts.control_chart(runs),
                charts.key_chart(runs, "entropy/affected", "Tokens the coefficient touches", **SHARE),
                charts.forgone_chart(runs),
                charts.key_chart(runs, "entropy/covariance", "Covariance of advantage and log-prob", y_label="nats"),
                charts.success_chart(runs),
                charts.place_chart(runs),
                charts.env_entropy_chart(runs, envs),
            ],
        ),
        (
            "Trainer and engine",
            [
                charts.key_chart(runs, "gap/outside", "Tokens whose trainer/engine ratio leaves [0.9, 1.1]", **SHARE),
                charts.key_chart(runs, "gap/outside_rare", "The same among rare tokens", **SHARE),
                charts.key_chart(runs, "gap/engine_mean", "Mean log-prob gap", y_label="nats", zero=True),
                _gap_chart(runs),
                charts.key_chart(runs, "importance/limited", "Importance weights that were cut", **SHARE),
            ],
        ),
        (
            "The update",
            [
                charts.key_chart(runs, "clip/high", "Clipped from above", **SHARE),
                charts.quantile_chart(runs, "ratio", "Quantiles of the ratio of new to old probability", log_y=True),
                charts.ess_chart(runs),
                charts.key_chart(runs, "grad_norm", "Gradient norm", zero=True),
                charts.key_chart(runs, "response/length_mean", "Response length", y_label="tokens", zero=True),
                charts.key_chart(runs, "groups/no_signal", "Groups without signal", y_label="groups", zero=True),
            ],
        ),
        (
            "Where the time went",
            [
                *timing,
                charts.key_chart(runs, "tokens/per_second", "Throughput", y_label="tokens per second", zero=True),
            ],
        ),
    ]
    for env in envs if len(envs) > 1 else []:
        pictures = [
            charts.key_chart(runs, f"reward/{env}", "Reward"),
            charts.key_chart(runs, f"response/length/{env}", "Response length", y_label="tokens", zero=True),
            charts.key_chart(runs, f"entropy/{env}", "Exact entropy", zero=True),
            charts.pass_by_k(runs, env),
            charts.distinct_chart(runs, env),
        ]
        out.append((f"Environment: {env}", pictures))
    return out
