"""The two lists of what there is, and how settings become a Steering."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from learner.entropy import base
from learner.entropy.bonus import Bonus
from learner.entropy.clip import Adapo, ClipHigher
from learner.entropy.controllers import Doubling, Fixed, Proportional
from learner.entropy.none import NoControl
from learner.entropy.repo import RepoD, RepoR
from learner.entropy.target import Target, TargetSettings

METHODS: dict[str, Any] = {
    "none": NoControl,
    "bonus": Bonus,
    "repo_r": RepoR,
    "repo_d": RepoD,
    "clip_higher": ClipHigher,
    "adapo": Adapo,
}

CONTROLLERS: dict[str, Any] = {
    "fixed": Fixed,
    "doubling": Doubling,
    "proportional": Proportional,
}


def parse(kinds: Mapping[str, Any], value: Any, what: str) -> base.Settings:
    """{kind: ..., ...} -> the kind's Settings. Raises ValueError naming the nearest kind, or pydantic's ValidationError."""
    if isinstance(value, base.Settings):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ValueError(f"the entropy {what} needs a kind, one of: {', '.join(kinds)}")
    kind = value["kind"]
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown entropy {what} '{kind}': {hint}one of: {', '.join(kinds)}")
    return kinds[kind].Settings.model_validate(dict(value))


def build(method: base.Settings, controller: base.Settings, target: TargetSettings) -> base.Steering:
    """Raises ValueError where the three do not fit together (bounds, signs)."""
    made = METHODS[getattr(method, "kind")](method)  # noqa: B009 - every Settings of a kind has one; the base has not
    return base.Steering(made, CONTROLLERS[getattr(controller, "kind")](controller, made.knob), Target(target))  # noqa: B009
