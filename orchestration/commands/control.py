"""Implements `isentrope status`, `stop` and `scale`: what a run is at, and requests to its driver."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.run import control
from orchestration.telemetry.sinks.status import read_status
from orchestration.text import duration

RUNS = Path("runs")


def folder_of(run: str) -> Path:
    """Returns the folder of a run that was given as a path, or by its name in runs/. Raises ConfigError."""
    for folder in (Path(run), RUNS / run):
        if folder.is_dir():
            return folder
    raise ConfigError(f"neither {run[:300]} nor a folder of that name in {RUNS}/ exists: give the folder of a run")


def stop(run: str, now: bool) -> str:
    """Asks a run to stop, after a checkpoint or at once; returns the driver's sentence."""
    return control.ask(folder_of(run), {"do": "stop", "now": now})


def scale(run: str, assignments: Sequence[str]) -> str:
    """Asks a run for another number of generators, given as generators=N; returns the driver's sentence."""
    key, _, value = assignments[0].partition("=") if len(assignments) == 1 else ("", "", "")
    if key != "generators" or not (value.isascii() and value.isdigit() and len(value) < 7 and int(value)):
        raise ConfigError(
            f"isentrope scale takes generators=N, a number from 1, not {' '.join(assignments)[:200] or 'nothing'}"
        )
    return control.ask(folder_of(run), {"do": "scale", "generators": int(value)})


def status(run: str, as_json: bool) -> str:
    """Returns where a run stands, for a person or as JSON."""
    folder = folder_of(run)
    state = control.alive(folder)
    try:
        found = read_status(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return json.dumps({**found, "state": state}, indent=1) if as_json else describe(found, state, time.time())


def describe(status: Mapping[str, Any], state: str, now: float) -> str:
    """Returns the lines that a person reads. state: of `control.alive`; now: seconds since 1970."""
    lines = [f"{status.get('name', 'run')}: {state}, {_position(status)}"]
    if state == "running":
        lines.append(_waits(status, now))
    if state in ("dead", "frozen"):
        lines.append(f"last heartbeat {duration(max(0.0, now - float(status['heartbeat'])))} ago")
    lines.append(f"driver: process {status.get('pid')} on {status.get('host')}")
    lines.append(f"last checkpoint: {status.get('checkpoint') or 'none yet'}")
    counters = {name: count for name, count in (status.get("counters") or {}).items() if count}
    if counters:
        lines.append(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counters.items()))
    for member in status.get("members") or []:
        where = f"process {member.get('pid')} on {member.get('node')}"
        lines.append(f"  {member.get('name', '?'):<16} {member.get('state', '?'):<11} {where}")
    lines += [f"  {event}" for event in (status.get("events") or [])[-5:]]
    return "\n".join(lines)


def _position(status: Mapping[str, Any]) -> str:
    stage = f", stage {status['stage']}" if status.get("stage") else ""
    version = f", policy version {status['policy_version']}" if "policy_version" in status else ""
    return f"iteration {status.get('iteration', 0)} of {status.get('of', '?')}{stage}{version}"


def _waits(status: Mapping[str, Any], now: float) -> str:
    """Says which phase goes on, for how long, and which actors are not healthy."""
    phase = status.get("phase")
    if not phase:
        return "between two phases, or starting"
    since, moved = (duration(max(0.0, now - float(phase[key]))) for key in ("since", "moved"))
    text = f"{phase['name']}: {phase['done']:g} of {phase['total']:g} for {since}, last progress {moved} ago"
    absent = [f"{m.get('name')} ({m.get('state')})" for m in status.get("members") or [] if m.get("state") != "healthy"]
    return f"{text}; not healthy: {', '.join(absent)}" if absent else text
