"""A turn that waits for weights ends with its driver: Ray ends the actor, also on a cluster that goes on without the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
CLUSTER = """
import ray, sys
started = ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
print("address", started.address_info["address"], flush=True)
sys.stdin.read()
"""
DRIVER = """
import asyncio, sys
import ray
from actors.handles import RemoteGenerator
from actors.inference import Request, SamplingParams
from actors.remote import HEALTH, GeneratorActor
from learner.weights.protocol import WeightManifest, WeightSyncError
from support.fakes import FakeEngine

def engine():
    made = FakeEngine()
    made.fail_next_receive = WeightSyncError("generator", "load of version 1", "broken")
    return made

async def main():
    ray.init(address=sys.argv[1], log_to_driver=False)
    actor = ray.remote(num_cpus=0, concurrency_groups={HEALTH: 1})(GeneratorActor).remote(engine, "generator 0", 0)
    generator = RemoteGenerator("generator 0", actor, 30)
    await generator.ready(60)
    await generator.mark_current(0, 30)
    try:
        await generator.receive_weights(WeightManifest(1, ()), 1.0, [])
    except WeightSyncError:
        pass

    async def turn():
        async for _ in generator.stream([Request("r", (1, 2), SamplingParams(4), 0)]):
            raise AssertionError("it was served without weights")

    waiting = asyncio.ensure_future(turn())
    done, _ = await asyncio.wait({waiting}, timeout=2)
    assert not done and generator.busy
    print("waits", generator.whereabouts.pid, flush=True)
    await waiting

asyncio.run(main())
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64},
    )


def said(process: subprocess.Popen[str], word: str) -> str:
    """Returns what stands behind a word that the process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.split()[1]
    pytest.fail(f"it ended with {process.wait()} before it said '{word}'")


def test_a_turn_that_waits_for_weights_ends_when_the_driver_is_killed() -> None:
    cluster = start(CLUSTER)
    try:
        driver = start(DRIVER, said(cluster, "address"))
        try:
            actor = psutil.Process(int(said(driver, "waits")))
            assert actor.is_running() and actor.name().startswith("ray::")
        finally:
            driver.kill()
            driver.wait()
        gone, _ = psutil.wait_procs([actor], timeout=60)
        assert gone and cluster.poll() is None
    finally:
        cluster.communicate(timeout=60)  # its standard input ends, and with it the cluster
