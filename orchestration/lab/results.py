"""What a lab found: figures an arm and a seed, their spread over seeds, and the table of them.

An arm is one setting run under several seeds. `collect` gives a plain dict that JSON can hold; all the rest reads it:

    {"temperature": 1.0, "k": 16, "start": ARM, "arms": [ARM, ...]}
    ARM = {"name": "repo-r", "note": "", "steered": true, "seeds": {"0": {"reward_end": 0.61, ...}}, "failed": {"1": "..."},
           "figures": {"reward_end": {"mean": 0.61, "std": null, "n": 1}, ...},
           "best": {"pass@1": {"temperature": 0.3, "mean": 0.55, "std": null, "n": 1}}}

The names of the figures are those of `lab_figures`, and `pass@K/best`, see `collect`. `temperature` is the first one of
the evaluations (null when the arms differ in it), `k` the largest k that all runs have.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestration.analysis.control import steered
from orchestration.analysis.retention import MatrixKey, StageKey
from orchestration.analysis.run_data import RunData, load_run
from orchestration.lab.compare import Stat, stat
from orchestration.lab.figures import PassKey, figures, name_after_training, pass_counts, temperatures
from orchestration.stats import finite, mean, std
from orchestration.text import duration, number, one_line, percent

if TYPE_CHECKING:
    from rich.table import Table

Arm = Mapping[str, Any]  # one of the ARMs above


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """An arm's runs. ArmRuns("grpo", {0: Path("lab/arms/grpo-0")}, {1: "The engine ran out of memory."}, "no control")"""

    name: str
    runs: Mapping[int, Path]  # seed -> run folder of a finished run
    failed: Mapping[int, str] = field(default_factory=dict)  # seed -> why there is none, one sentence
    note: str = ""  # what the arm is, one line


# ---------------------------------------------------------------- collecting


def collect(arms: Sequence[ArmRuns]) -> dict[str, Any]:
    """The results of a lab, see above; a run that cannot be read counts as failed, with the reason.

    `best` is, for pass@1 and every other k, the temperature whose mean over seeds is highest after training (of equals
    the first), with that mean and its spread; each seed has its value there as `pass@K/best`. The temperature is
    chosen on the very prompts it is then scored by, so the value is optimistic, the more so the more temperatures
    there are and the noisier they are.
    `start` is the policy before training as an arm of its own, under the names of the figures after training: each
    seed's first evaluation, averaged over the arms.
    """
    loaded = [(arm, *_read(arm)) for arm in arms]
    runs = [run for _, found, _ in loaded for run in found.values()]
    firsts = {heats[0] for heats in map(temperatures, runs) if heats}
    made: list[dict[str, Any]] = [
        _arm(arm.name, arm.note, {seed: figures(run) for seed, run in found.items()}, failed)
        | {"steered": any(map(steered, found.values()))}
        for arm, found, failed in loaded
    ]
    evaluated = [ks for arm in made for ks in map(pass_counts, arm["seeds"].values()) if ks]
    return {
        "temperature": firsts.pop() if len(firsts) == 1 else None,
        "k": max(set.intersection(*evaluated), default=1) if evaluated else 1,
        "start": _start(made),
        "arms": made,
    }


def _read(arm: ArmRuns) -> tuple[dict[int, RunData], dict[int, str]]:
    found, failed = {}, dict(arm.failed)
    for seed, path in sorted(arm.runs.items()):
        try:
            found[seed] = load_run(path)
        except (ValueError, OSError) as error:
            failed[seed] = str(error)
    return found, failed


def _arm(name: str, note: str, seeds: Mapping[Any, dict[str, float]], failed: Mapping[int, str]) -> dict[str, Any]:
    found = {str(seed): dict(values) for seed, values in seeds.items()}
    best = {}
    for k in sorted({k for values in found.values() for k in pass_counts(values)}):
        heat = _best_temperature(list(found.values()), k)
        if heat is not None:
            for values in found.values():
                if (there := str(PassKey(k, "end", heat))) in values:
                    values[str(PassKey(k, "best"))] = values[there]
            stat = _stat(values.get(str(PassKey(k, "best")), math.nan) for values in found.values())
            best[f"pass@{k}"] = {"temperature": heat, **stat}
    keys = dict.fromkeys(key for values in found.values() for key in values)
    return {
        "name": name,
        "note": note,
        "seeds": found,
        "failed": {str(seed): reason for seed, reason in sorted(failed.items())},
        "figures": {key: _stat(values.get(key, math.nan) for values in found.values()) for key in keys},
        "best": best,
    }


def _best_temperature(seeds: Sequence[Mapping[str, float]], k: int) -> float | None:
    """Among the temperatures that the most seeds have: fewer seeds would make a lucky mean likelier."""
    keys = [(key, PassKey.parse(key)) for key in dict.fromkeys(key for values in seeds for key in values)]
    columns = {
        found.temperature: [values[key] for values in seeds if key in values]
        for key, found in keys
        if found is not None and found.temperature is not None and (found.k, found.when) == (k, "end")
    }
    # Rounded: of equals the first, not the one that the order of a sum favours.
    return max(columns, key=lambda heat: (len(columns[heat]), round(mean(columns[heat]), 9)), default=None)


def _stat(values: Iterable[float]) -> dict[str, float | int | None]:
    kept = finite(values)
    return {"mean": mean(kept) if kept else None, "std": std(kept) if len(kept) > 1 else None, "n": len(kept)}


def _start(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seeds: dict[str, dict[str, float]] = {}
    for seed in dict.fromkeys(seed for arm in arms for seed in arm["seeds"]):
        mine = [arm["seeds"][seed] for arm in arms if seed in arm["seeds"]]
        names = {key: name_after_training(key) for values in mine for key in values}
        seeds[seed] = {
            name: mean(values[key] for values in mine if key in values)
            for key, name in names.items()
            if name is not None
        }
    return _arm("start", "the policy before training", seeds, {}) | {"steered": False}


# ---------------------------------------------------------------- tables


class Column(NamedTuple):
    title: str
    cell: Callable[[Arm], str]


def spread(value: Stat, style: str = ".3f") -> str:
    """`mean ± std`; the mean alone where one seed has no spread; a dash where there is nothing."""
    return number(value.mean, style) + (f" ± {format(value.std, style)}" if math.isfinite(value.std) else "")


def percents(value: Stat, sign: bool = False) -> str:
    """The same for shares: 4.4 ± 1.0 %."""
    if not math.isfinite(value.std):
        return percent(value.mean, sign)
    digits = 1 if abs(value.mean) < 0.0995 or value.std < 0.00995 else 0
    middle, around = f"{abs(value.mean) * 100:.{digits}f}", f"{value.std * 100:.{digits}f}"
    minus = "\N{MINUS SIGN}" if value.mean < 0.0 else "+" if sign else ""
    return f"{'' if float(middle) == 0.0 else minus}{middle} ± {around}\N{NO-BREAK SPACE}%"


def times(value: Stat) -> str:
    return duration(value.mean) + (f" ± {duration(value.std)}" if math.isfinite(value.std) else "")


def seeds(arm: Arm) -> str:
    """How many seeds the means stand on, and how many are missing."""
    done, lost = len(arm["seeds"]), len(arm["failed"])
    return f"{done} of {done + lost}" if lost else str(done)


def at_best(arm: Arm, k: int) -> str:
    best = arm["best"].get(f"pass@{k}")
    return f"{spread(stat(arm, f'pass@{k}/best'))} (T = {best['temperature']:g})" if best else "—"


def first_temperature(results: Mapping[str, Any]) -> str:
    """T = 1, or in words where the arms do not share the first temperature."""
    heat = results["temperature"]
    return "first T" if heat is None else f"T = {heat:g}"


def columns(results: Mapping[str, Any]) -> list[Column]:
    """What the table shows besides the arm's name; pass@K is left out where no run has a k over 1."""
    heat, passes = first_temperature(results), []
    for k in dict.fromkeys((1, results["k"])):
        passes += [
            Column(f"pass@{k}, {heat}", lambda arm, k=k: spread(stat(arm, f"pass@{k}/end"))),
            Column(f"pass@{k}, best T", lambda arm, k=k: at_best(arm, k)),
        ]
    return [
        Column("seeds", seeds),
        Column("entropy change", lambda arm: percents(stat(arm, "entropy_change"), sign=True)),
        Column("rms off target", lambda arm: percents(stat(arm, "rms_last_two_thirds"))),
        *passes,
        Column("distinct", lambda arm: spread(stat(arm, "distinct_end"), ".2f")),
        Column("reward", lambda arm: spread(stat(arm, "reward_end"))),
        Column("time", lambda arm: times(stat(arm, "seconds"))),
    ]


RETAINED = {
    "retained": "at the end",
    "backward": "backward transfer",
    "forward": "forward transfer",
    "forgetting": "forgetting",
}


def retention_columns(results: Mapping[str, Any]) -> list[Column]:
    """The same for labs of runs with stages: what was kept of the environments, see retention.py. Empty for the others."""
    made = []
    for k in dict.fromkeys((1, results["k"])):
        for what, title in RETAINED.items():
            if any(f"{what}/pass@{k}" in arm["figures"] for arm in results["arms"]):
                made.append(Column(f"{title}, pass@{k}", lambda arm, key=f"{what}/pass@{k}": spread(stat(arm, key))))
    found = [StageKey.parse(key) for arm in results["arms"] for key in arm["figures"]]
    stages = sorted({key.stage for key in found if key is not None and key.metric == "area/reward"})
    for stage in stages:
        key = str(StageKey("area/reward", stage))
        made.append(Column(f"reward, stage {stage}", lambda arm, key=key: spread(stat(arm, key))))
    for stage in stages:
        key = str(StageKey("entropy_change", stage))
        if any(key in arm["figures"] for arm in results["arms"]):
            made.append(Column(f"entropy, stage {stage}", lambda arm, key=key: percents(stat(arm, key), sign=True)))
    return made


class Matrix(NamedTuple):
    """The retention matrix of a lab's arms: a line for every arm and stage, a cell for every environment."""

    k: int
    environments: list[str]
    lines: list[tuple[str, str, list[str]]]  # arm, the stage after which it was evaluated, cells


def matrices(results: Mapping[str, Any]) -> list[Matrix]:
    """For pass@1 and pass@K; none for runs without stages."""
    made = []
    for k in dict.fromkeys((1, results["k"])):
        parsed = [MatrixKey.parse(key) for arm in results["arms"] for key in arm["figures"]]
        keys = [key for key in parsed if key is not None and key.k == k]
        stages = dict.fromkeys(key.stage for key in keys)
        environments = list(dict.fromkeys(key.env for key in keys))
        found = []
        for arm in results["arms"]:
            for stage in stages:
                cells = [spread(stat(arm, str(MatrixKey(k, stage, env)))) for env in environments]
                found.append((arm["name"], "before training" if stage is None else f"stage {stage}", cells))
        if found:
            made.append(Matrix(k, environments, found))
    return made


def markdown_matrix(matrix: Matrix) -> str:
    out = [f"| pass@{matrix.k} | after | {' | '.join(map(_plain, matrix.environments))} |"]
    out.append(f"|---|---|{'---:|' * len(matrix.environments)}")
    out += [f"| {_plain(arm)} | {after} | {' | '.join(cells)} |" for arm, after, cells in matrix.lines]
    return "\n".join(out) + "\n"


def lines(results: Mapping[str, Any]) -> list[Arm]:
    """The arms in their order, after the policy before training where it was evaluated."""
    return [*([results["start"]] if results["start"]["figures"] else []), *results["arms"]]


def failures(results: Mapping[str, Any]) -> list[str]:
    """A sentence for every run that failed."""
    return [
        f"{arm['name']}, seed {seed}: {reason}" for arm in results["arms"] for seed, reason in arm["failed"].items()
    ]


def tables(results: Mapping[str, Any]) -> list[list[Column]]:
    """The columns of every table that these results have: of all labs, and of those whose runs have stages."""
    return [shown for shown in (columns(results), retention_columns(results)) if shown]


def lab_table(results: Mapping[str, Any], shown: Sequence[Column]) -> "Table":
    """The columns as a rich table, one arm a line, with the failed runs under it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.add_column("arm", overflow="fold")
    for column in shown:
        table.add_column(column.title, justify="right")
    for arm in lines(results):
        # Text, not str: rich would read [brackets] in a name as markup.
        table.add_row(Text(arm["name"]), *(Text(column.cell(arm)) for column in shown))
    if failed := failures(results):
        table.caption = Text("\n".join(f"failed: {line}" for line in failed))
    return table


def markdown_table(results: Mapping[str, Any], shown: Sequence[Column]) -> str:
    """The same as Markdown, ending with a line break; the failed runs as a list under it."""
    out = [f"| arm | {' | '.join(column.title for column in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for arm in lines(results):
        out.append(f"| {_plain(arm['name'])} | {' | '.join(column.cell(arm) for column in shown)} |")
    failed = [f"- failed: {_plain(line)}" for line in failures(results)]
    return "\n".join([*out, *([""] if failed else []), *failed]) + "\n"


def _plain(text: str) -> str:
    """One line in which Markdown finds no mark of its own."""
    return "".join(f"\\{c}" if c in "\\`|<>[]*" else c for c in one_line(text))
