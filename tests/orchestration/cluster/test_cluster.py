"""The cluster's own bookkeeping, on actors that only note what they are asked. Placed for real in tests/integration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.builders import config_data

from actors.handles import RemoteVerifier
from actors.pool import MemberDied, VerifierPool
from orchestration.cluster.cluster import Cluster
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from orchestration.run.protocols import TrainingCluster


class Call:
    """Stands for a method of an actor: `remote` records the call and returns, or raises, what it was made with."""

    def __init__(self, events: list[str], name: str, result: Any) -> None:
        self._events, self._name, self._result = events, name, result

    async def remote(self) -> Any:
        self._events.append(self._name)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class VerifierActor:
    """Fails to build its environments where `fault` is given."""

    def __init__(self, events: list[str], name: str, fault: str | None = None, dead: bool = False) -> None:
        self.ready = Call(events, f"{name}: ready", MemberDied(name, "killed by a test") if dead else True)
        self.prepare = Call(events, f"{name}: prepare", fault)


def replaced(monkeypatch: pytest.MonkeyPatch, fault: str | None = None) -> tuple[list[str], list[str], str]:
    """Replaces the only verifier, which died. Returns (events in order, members of the pool afterwards, error)."""
    events: list[str] = []
    cluster = Cluster(validate(config_data()), events.append)
    old: Any = VerifierActor(events, "verifier 0", dead=True)
    cluster.verifiers = VerifierPool([RemoteVerifier("verifier 0", old, 60.0)], events.append)
    cluster._slots._taken["verifier 0"] = (0, old)

    def make(slot: int) -> RemoteVerifier:
        events.append(f"verifier 1 is made for slot {slot}")
        fresh: Any = VerifierActor(events, "verifier 1", fault)
        return RemoteVerifier("verifier 1", fresh, 60.0)

    monkeypatch.setattr("ray.kill", lambda actor: events.append("killed the dead one" if actor is old else "?"))
    raised = ""
    try:
        asyncio.run(cluster._replace_in(cluster.verifiers, make))
    except ConfigError as error:
        raised = str(error)
    return events, [member.name for member in cluster.verifiers.members], raised


def test_a_replaced_verifier_builds_its_environments_before_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    events, members, raised = replaced(monkeypatch)
    assert (members, raised) == (["verifier 1"], "")
    assert "killed the dead one" in events
    assert events[-4:] == [
        "verifier 1 is made for slot 0",
        "verifier 1: ready",
        "verifier 1: prepare",
        "verifier 0 was replaced by verifier 1",
    ]


def test_a_replaced_verifier_that_cannot_build_them_ends_the_run_and_judges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, members, raised = replaced(monkeypatch, fault="on 10.0.0.7: no module 'mine'")
    assert members == []
    assert raised.startswith(
        "verifier 1 cannot build the environments, on 10.0.0.7: no module 'mine'; files of your own"
    )


def test_the_loop_needs_of_a_cluster_only_what_its_protocol_has() -> None:
    """Pyright reports an error in the first line if the cluster lacks a method of the protocol."""
    cluster: TrainingCluster = Cluster(validate(config_data()), print)
    assert cluster.version == 0
