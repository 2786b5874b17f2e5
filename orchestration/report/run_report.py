"""One self-contained report.html from a run folder, or from several side by side.

The page needs no network: charts are inline SVG (`charts.py`, `plots.py`). Responses are untrusted text: everything is
escaped, and the Content-Security-Policy admits only the one script whose hash it names, so that nothing else could run
even if an escape were forgotten below.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from orchestration.analysis.run_data import RunData, load_run
from orchestration.analysis.run_summary import COLUMNS, RunSummary, comparison, sentences, summary_of, widest_k
from orchestration.report import retention_section as retention_page
from orchestration.report import svg as plots
from orchestration.report.chapters import grid, sections, story, table

SAMPLES_SHOWN = 6  # responses of the first and of the last iteration
RESPONSE_LIMIT = 4000  # characters of one prompt or response
ENV_COLUMNS = ("entropy start", "end", "change", "reward", "pass@1", "pass@K", "distinct")  # of `COLUMNS`


# What a reader asks for first, in the names of `config.py`.
_CHIP = re.compile(
    r"run\.(seed|iterations)|model\.path|environments\.\d+\.name|stages\.\d+\.name|batch\.\w+|sampling\.(temperature|max_tokens)"
    r"|learner\.(ranks|zero_stage|precision|lr|updates|epochs)|generators\.(count|dtype)|objective\.\w+"
    r"|entropy\.(method|controller|target)\.\w+"
)


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """The scalars of a nested config by dotted path; a list of scalars counts as one."""
    if isinstance(config, Mapping):
        return {k: v for key, value in config.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    if isinstance(config, list) and any(isinstance(item, Mapping | list) for item in config):
        return {k: v for i, value in enumerate(config) for k, v in _flat(value, f"{prefix}{i}.").items()}
    if config is None or config == []:
        return {}
    return {prefix[:-1]: ", ".join(map(str, config)) if isinstance(config, list) else str(config)}


def _chips(runs: Sequence[RunData]) -> str:
    """The settings a reader asks for first; with several runs, what they share and then what differs in each."""
    flats = [_flat(run.config) for run in runs]
    shared = {k: v for k, v in flats[0].items() if _CHIP.fullmatch(k) and all(flat.get(k) == v for flat in flats)}
    lines = [_chip_line("" if len(runs) == 1 else "shared", shared, limit=24)]
    for colour, (run, flat) in enumerate(zip(runs, flats, strict=True) if len(runs) > 1 else ()):
        own = {k: v for k, v in flat.items() if k != "run.name" and any(other.get(k) != v for other in flats)}
        lines.append(_chip_line(run.name, own, limit=10, colour=colour))
    return "".join(lines)


def _short_name(path: str) -> str:
    """learner.lr -> lr, generators.count -> generators count, entropy.method.kind -> method."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in ("kind", "name", "path"):
        return parts[-2]
    plain = len(parts) == 2 and parts[0] in ("run", "batch", "sampling", "learner", "objective")
    return parts[-1] if plain else " ".join(parts[-2:])


def _chip_line(title: str, settings: Mapping[str, str], limit: int, colour: int | None = None) -> str:
    if not settings:
        return ""
    dot = "" if colour is None else f'<i class="run c{colour % plots.PALETTE}"></i>'
    chips = "".join(
        f'<span class="chip"><b>{escape(_short_name(k))}</b> {escape(v[:60])}</span>'
        for k, v in list(settings.items())[:limit]
    )
    return f'<div class="chips">{dot}<span class="who">{escape(title)}</span>{chips}</div>'


def _summary_table(summaries: Sequence[RunSummary]) -> str:
    k = widest_k(summaries)
    heads = "".join(f"<th>{escape(title.replace('K', str(k)))}</th>" for title, _ in COLUMNS)
    body = "".join(
        f'<tr><th><i class="run c{colour % plots.PALETTE}"></i>{escape(s.name)}</th>'
        + "".join(f"<td>{escape(cell(s, k))}</td>" for _, cell in COLUMNS)
        + "</tr>"
        for colour, s in enumerate(summaries)
    )
    return table("summary", f"<tr><th>run</th>{heads}</tr>", body)


def _envs(runs: Sequence[RunData]) -> list[str]:
    return list(dict.fromkeys(env for run in runs for env in run.envs()))


def _env_table(runs: Sequence[RunData], k: int) -> str:
    """The summary of each environment alone, where there are several."""
    envs = _envs(runs)
    if len(envs) < 2:
        return ""
    columns = [(title.replace("K", str(k)), cell) for title, cell in COLUMNS if title in ENV_COLUMNS]
    body = ""
    for env in envs:
        for colour, run in enumerate(runs):
            if env in run.envs():
                s = summary_of(run.only(env))
                dot, aside = f'<i class="run c{colour % plots.PALETTE}"></i>', f" <small>{escape(run.name)}</small>"
                who = f"{dot}{escape(env)}{aside}" if len(runs) > 1 else escape(env)
                body += f"<tr><th>{who}</th>{''.join(f'<td>{escape(cell(s, k))}</td>' for _, cell in columns)}</tr>"
    heads = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    return table("summary", f"<tr><th>environment</th>{heads}</tr>", body)


# Terminal escapes, and the marks that reorder text: a response must not redraw the cell next to it.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _untrusted(value: Any) -> str:
    """Text from a model or an environment, made safe to show: escaped, visible, and of bounded length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > RESPONSE_LIMIT:
        text = f"{text[:RESPONSE_LIMIT]} … ({len(text) - RESPONSE_LIMIT:,} more characters)"
    return visible(text)


def visible(text: str) -> str:
    """Any text, escaped, with what a reader could not see made visible."""
    return escape(clean(text))


def clean(text: str) -> str:
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def _samples(run: RunData) -> str:
    """Responses of the first and of the last iteration that has any."""
    when = [s.get("iteration", 0) for s in run.samples]
    if not when:
        return ""
    rows = []
    for iteration in sorted({min(when), max(when)}):
        for s in [s for s in run.samples if s.get("iteration", 0) == iteration][:SAMPLES_SHOWN]:
            reward = s.get("reward")
            shown = f"{reward:.3g}" if isinstance(reward, int | float) else "—"
            verdict = "right" if s.get("correct") else "wrong"
            status = s.get("status", "ok")
            aside = "" if status == "ok" else f"<br><small>{_untrusted(status)}</small>"
            rows.append(
                f"<tr><td>{_untrusted(iteration)}</td><td>{_untrusted(s.get('env', ''))}</td>"
                f"<td><pre>{_untrusted(s.get('prompt', ''))}</pre></td>"
                f"<td><pre>{_untrusted(s.get('response', ''))}</pre></td>"
                f'<td><span class="{verdict}">{shown}</span>{aside}</td></tr>'
            )
    head = "<tr><th>iteration</th><th>env</th><th>prompt</th><th>response</th><th>reward</th></tr>"
    return f"<h3>{escape(run.name)}</h3>" + table("samples", head, "".join(rows))


def render(runs: Sequence[RunData]) -> str:
    """The whole page. Runs of equal name are told apart by a number."""
    names = [run.name for run in runs]
    runs = [
        replace(run, name=f"{run.name} ({names[: i + 1].count(run.name)})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs)
    ]
    summaries = [summary_of(run) for run in runs]
    title = " · ".join(run.name for run in runs)
    lead = "".join(
        f'<p class="lead">{f"<b>{escape(s.name)}.</b> " if len(runs) > 1 else ""}{escape(sentences(s))}</p>'
        for s in summaries
    )
    leads = comparison(summaries) if len(runs) > 1 else ""
    lead += f'<p class="lead">{escape(leads)}</p>' if leads else ""
    envs, k = _envs(runs), widest_k(summaries)
    told = story(runs, envs, k)
    parts = [told]
    for heading, pictures in sections(runs, envs, k):
        # A chart is drawn the same wherever it stands: what the story has shown is not shown again.
        shown = grid([picture for picture in pictures if picture not in told])
        if shown:
            parts.append(f"<h2>{escape(heading)}</h2>{shown}")
    for run in runs:
        if kept := retention_page.retention_section(run, k):
            whose = f", {escape(run.name)}" if len(runs) > 1 else ""
            parts.append(f"<h2>What was retained{whose}</h2>{kept}")
    responses = "".join(_samples(run) for run in runs)
    if responses:
        parts.append(f"<h2>Responses, first and last iteration</h2>{responses}")
    for run in runs:
        if run.config_text:
            summary = f"<summary>Configuration of {escape(run.name)}</summary>"
            parts.append(f"<details>{summary}<pre>{visible(run.config_text)}</pre></details>")
    head = f"{lead}{_chips(runs)}"
    body = f"{_summary_table(summaries)}{_env_table(runs, k)}{''.join(parts)}"
    return page(
        "Isentrope report",
        title,
        head,
        body,
        kind="single" if len(runs) == 1 else "several",
        style=retention_page.STYLE,
    )


def page(what: str, title: str, head: str, body: str, *, kind: str = "several", style: str = "") -> str:
    """The shell of every page: `head` stands under the title, `body` after it, both markup that is escaped already.

    `kind` is the class of the body: a "single" page hides a legend of one entry. `style` is CSS for this page alone.
    """
    digest = base64.b64encode(hashlib.sha256(plots.SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{visible(title)}</title><style>{plots.STYLE}{PAGE_STYLE}{style}</style></head>"
        f'<body class="{kind}"><main><header><p class="kind">{escape(what)}</p><h1>{visible(title)}</h1>{head}</header>'
        f"{body}</main><script>{plots.SCRIPT}</script></body></html>\n"
    )


def write_report(runs: list[Path], out: Path) -> Path:
    """Write the report of one run folder or several to `out` and return it.

    Raises ValueError in a sentence when `runs` is empty, a run has no iteration, or a file in it is broken.
    """
    if not runs:
        raise ValueError("A report needs at least one run folder.")
    text = render([load_run(run) for run in runs])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


PAGE_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 24px 64px}
.kind{margin:0;color:var(--soft);font-size:13px;letter-spacing:.02em}
h1{margin:2px 0 12px;font-size:26px;line-height:1.25;font-weight:650;overflow-wrap:anywhere}
h2{margin:40px 0 12px;font-size:18px;font-weight:650}h3{margin:18px 0 8px;font-size:14px}
ul.said{margin:0 0 14px;padding-left:20px;max-width:86ch}.said li{margin:3px 0}.said .warning b{color:var(--c1)}
.lead{margin:0 0 8px;max-width:86ch}
.chips{display:flex;flex-wrap:wrap;align-items:center;gap:6px;margin:10px 0 0;font-size:12.5px}
.chip{border:1px solid var(--line);background:var(--card);border-radius:6px;padding:1px 8px;overflow-wrap:anywhere}
.chip b{font-weight:400;color:var(--soft)}.who{color:var(--soft);margin-right:4px}.who:empty{display:none}
i.run{display:inline-block;width:9px;height:9px;border-radius:50%;background:var(--c);margin-right:7px;flex:none}
.chips i.run{margin-right:0}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
.grid>:only-child{grid-column:1/-1;max-width:calc(50% - 7px)}
@media (max-width:760px){.grid{grid-template-columns:1fr}.grid>:only-child{max-width:none}}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:22px 0 14px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:8px 10px;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:500}
.summary td,.summary th{white-space:nowrap}.summary th:not(:first-child),.summary td{text-align:right}
.summary td{font-variant-numeric:tabular-nums}.summary tbody th{font-weight:600}
.samples pre{margin:0;max-height:220px;overflow:auto}
.samples td:nth-child(3){width:36%}.samples td:nth-child(4){width:42%}
pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.right{color:var(--c2);font-weight:600}.wrong{color:var(--soft)}small{color:var(--soft)}
details{margin-top:14px;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 16px}
summary{cursor:pointer;font-weight:600;font-size:14px}
"""
