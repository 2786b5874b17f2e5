"""Picks the settings of a run that a report shows under its title, by short names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.analysis.run_data import RunData
from orchestration.report.svg.marks import shade

LIMIT_SHARED, LIMIT_OWN = 24, 10  # settings of a line
VALUE_LIMIT = 60  # characters of a value
# The settings a reader asks for first, in the names of `config`.
_SHOWN = re.compile(
    r"run\.(seed|iterations)|model\.path|environments\.\d+\.name|stages\.\d+\.name|batch\.\w+|sampling\.(temperature|max_tokens)"
    r"|learner\.(ranks|zero_stage|precision|lr|updates|epochs)|generators\.(count|dtype)|objective\.\w+"
    r"|entropy\.(method|controller|target)\.\w+|diversity\.(controller|target)\.\w+"
)


@dataclass(frozen=True, slots=True)
class SettingsLine:
    """Holds (short name, value) pairs under a title; `mark` has the CSS classes of the run's colour."""

    title: str
    settings: Sequence[tuple[str, str]]
    mark: str | None = None


def settings_lines(runs: Sequence[RunData]) -> list[SettingsLine]:
    """Returns one line for a single run; for several, the settings they share and then those in which each differs."""
    flats = [_flat(run.config) for run in runs]
    shared = {k: v for k, v in flats[0].items() if _SHOWN.fullmatch(k) and all(flat.get(k) == v for flat in flats)}
    lines = [SettingsLine("" if len(runs) == 1 else "shared", _short(shared, LIMIT_SHARED))]
    for colour, (run, flat) in enumerate(zip(runs, flats, strict=True) if len(runs) > 1 else ()):
        own = {k: v for k, v in flat.items() if k != "run.name" and any(other.get(k) != v for other in flats)}
        lines.append(SettingsLine(run.name, _short(own, LIMIT_OWN), shade(colour)))
    return [line for line in lines if line.settings]


def _short(settings: Mapping[str, str], limit: int) -> list[tuple[str, str]]:
    return [(_short_name(path), value[:VALUE_LIMIT]) for path, value in list(settings.items())[:limit]]


def _short_name(path: str) -> str:
    """Shortens learner.lr to lr, generators.count to generators count, entropy.method.kind to method."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in ("kind", "name", "path"):
        return parts[-2]
    plain = len(parts) == 2 and parts[0] in ("run", "batch", "sampling", "learner", "objective")
    return parts[-1] if plain else " ".join(parts[-2:])


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Returns the scalars of a nested configuration by dotted path; a list of scalars counts as one."""
    if isinstance(config, Mapping):
        return {k: v for key, value in config.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    if isinstance(config, list) and any(isinstance(item, Mapping | list) for item in config):
        return {k: v for i, value in enumerate(config) for k, v in _flat(value, f"{prefix}{i}.").items()}
    if config is None or config == []:
        return {}
    return {prefix[:-1]: ", ".join(map(str, config)) if isinstance(config, list) else str(config)}
