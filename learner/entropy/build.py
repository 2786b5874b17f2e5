"""Lists the methods and controllers by kind, and builds a Steering from their settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from learner.entropy import steering
from learner.entropy.bonus import Bonus
from learner.entropy.clip import Adapo, ClipHigher, LowerClip
from learner.entropy.controllers import PI, Additive, Band, Doubling, Fixed, Proportional
from learner.entropy.covariance import ClipCov, KLCov
from learner.entropy.entrocraft import Entrocraft
from learner.entropy.isentropic import Isentropic
from learner.entropy.none import NoControl
from learner.entropy.repo import Repo, RepoD, RepoR
from learner.entropy.target import Target, TargetSettings
from learner.settings import KindSettings

METHODS: dict[str, Any] = {
    "none": NoControl,
    "bonus": Bonus,
    "repo": Repo,
    "repo_r": RepoR,
    "repo_d": RepoD,
    "clip_higher": ClipHigher,
    "adapo": Adapo,
    "lower_clip": LowerClip,
    "entrocraft": Entrocraft,
    "clip_cov": ClipCov,
    "kl_cov": KLCov,
}

CONTROLLERS: dict[str, Any] = {
    "fixed": Fixed,
    "doubling": Doubling,
    "proportional": Proportional,
    "additive": Additive,
    "band": Band,
    "pi": PI,
    "isentropic": Isentropic,
}


def parse(kinds: Mapping[str, Any], value: Any, what: str, section: str = "entropy") -> KindSettings:
    """Parses {kind: ..., ...} as the kind's Settings. Raises ValueError naming the nearest kind, or pydantic's ValidationError."""
    if isinstance(value, KindSettings):
        return value
    fields: Mapping[str, object] = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}
    kind = fields.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"the {section} {what} needs a kind, one of: {', '.join(kinds)}")
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown {section} {what} '{kind}': {hint}one of: {', '.join(kinds)}")
    return kinds[kind].Settings.model_validate(dict(fields))


def build(
    method: KindSettings,
    controller: KindSettings,
    target: TargetSettings,
    environments: Mapping[str, TargetSettings] | None = None,
) -> steering.Steering:
    """Builds a method and its loops.

    environments: targets of their own, by the name an environment's metrics go by; each gets a controller of its own.
    Raises ValueError where the parts do not fit together (bounds, signs, a method that cannot tell environments apart).
    """
    made = METHODS[method.kind](method)
    if environments and made.scope == "batch":
        raise ValueError(
            f"entropy.environments gives {len(environments)} targets of their own, and {method.kind} takes its "
            "statistics over the whole batch, with one coefficient: leave them out or choose another method"
        )
    still = isinstance(controller, Fixed.Settings) and not controller.value and not made.coefficient_range.start
    if still and method.kind != "none":
        raise ValueError(
            f"{method.kind} with a coefficient fixed at 0 changes nothing: give a controller, such as {{kind: band}}"
        )
    released = {t.release_at for t in (target, *(environments or {}).values())}
    if len(released) > 1 and not made.coefficient_range.linear:
        raise ValueError(
            f"entropy.environments are released at different iterations ({', '.join(map(str, sorted(released, key=str)))}), and "
            f"{method.kind} has no coefficient value that does nothing: give all the same release_at"
        )

    def loop(settings: TargetSettings) -> steering.ControlLoop:
        return steering.ControlLoop(CONTROLLERS[controller.kind](controller, made.coefficient_range), Target(settings))

    return steering.Steering(
        made, {steering.COMMON: loop(target), **{name: loop(t) for name, t in (environments or {}).items()}}
    )
