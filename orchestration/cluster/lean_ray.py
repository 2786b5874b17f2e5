"""Leaves out what Ray starts beside a cluster of our own and nothing here asks: it would take a third of the start's CPU time.

These are the autoscaler's monitor (there is one node), the log monitor (what actors print stays in their files), the dashboard's
server (which would count usage alone), everything of the node's agent that needs the dashboard's packages, and idle workers (every
actor has an environment of its own, and so a process of its own). Ray has switches for some, which `ray.init` does not pass on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from ray._private import node, parameter, utils

SETTINGS = {"prestart_worker_first_driver": False}  # of the system configuration


@contextlib.contextmanager
def only_what_is_needed() -> Generator[None]:
    """Starts Ray's processes without the parts above, in calls of `ray.init` inside. Not for several threads at once."""
    left_out: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    params: Callable[..., Any] = partial(parameter.RayParams, **left_out)
    changes: list[tuple[Any, str, Any]] = [
        (parameter, "RayParams", params),
        (node.Node, "start_api_server", lambda self, **_: None),
        (
            utils,
            "get_dashboard_dependency_error",
            lambda: ImportError("it is left out"),
        ),  # makes the agent a minimal one
    ]
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
