"""Plays the rows about a node that cannot be reached: two nodes of Ray on one machine, and a cable between them that is cut.

Sizes leave one way to place a run: what is to be cut off has room on the second node alone. Root is needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from chaos import checks, faults
from chaos.harness import POLL_S, START_S, Failed, Lab, Run, environment, marked, new_marker
from chaos.netns import TwoNodes, two_nodes

PORT = 6399
SILENT_S, SYNC_S, STARTS_S = 10.0, 15.0, 90.0
NODE_S = 60.0  # for a node to come up
GIVEN_UP_S = SILENT_S + SYNC_S + 10  # for a member to be given up, on two busy cores
JOINS_S = STARTS_S + 90.0  # for a replacement to serve once its node is there: the attempt before it ends first
END_S = 90.0  # for a run to end while the cable is cut
SERVES = " serves from version "  # of an event
SETTINGS = (
    f"cluster.address=10.77.0.1:{PORT}", f"cluster.silent_s={SILENT_S:g}", f"weights.timeout_s={SYNC_S:g}",
    f"cluster.start_timeout_s={STARTS_S:g}", "run.iterations=100000", "learner.ranks=1", "checkpoint.every=5",
    "batch.prompts=64",  # so that an iteration generates long enough to be met while it does
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Nodes:
    """Holds two nodes of Ray, whose processes carry the marker of the run that uses them."""

    net: TwoNodes
    folder: Path
    marker: str
    cpus: Sequence[int]

    def within(self, number: int) -> list[str]:
        """Returns the command that runs a command on a node, with the token of the cluster."""
        return self.net.command(
            number, "env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={self.folder / 'token'}"
        )  # fmt: skip

    def start(self, number: int) -> None:
        """Starts a node of Ray, and returns when it is there; node 0 is the head."""
        where = (
            ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
            if number == 0
            else [f"--address={self.net.addresses[0]}:{PORT}"]
        )
        command = [
            *self.within(number), str(Path(sys.executable).parent / "ray"), "start", "--block", *where,
            f"--node-ip-address={self.net.addresses[number]}", f"--num-cpus={self.cpus[number]}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        log = self.folder / f"node-{number}.log"
        with log.open("ab") as file:
            subprocess.Popen(
                command, env=environment(self.folder, self.marker), stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        until(f"node {number} is there", lambda: "Ray runtime started" in log.read_text("utf-8", "replace"), NODE_S)

    def at(self, number: int) -> list[psutil.Process]:
        """Returns the processes that run on a node."""
        there = Path(f"/run/netns/{self.net.names[number]}").stat().st_ino
        found = []
        for process in marked(self.marker):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == there:
                    found.append(process)
        return found

    def end(self, number: int) -> None:
        """Ends every process of a node, as a machine that is switched off."""
        while left := self.at(number):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=2)


def until(what: str, condition: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)


@contextlib.contextmanager
def nodes(cpus: Sequence[int]) -> Iterator[Nodes]:
    """Starts both nodes, and ends them."""
    if os.geteuid() or shutil.which("ip") is None:
        raise Failed("skipped: two nodes on one machine need root and the command ip")
    folder = Path(tempfile.mkdtemp(prefix="isentrope-ray-", dir="/tmp"))  # a socket's path is short
    (folder / "token").write_text(secrets.token_hex(32))
    with two_nodes() as net:
        both = Nodes(net, folder, new_marker(), cpus)
        try:
            for number in (0, 1):
                both.start(number)
            yield both
        finally:
            for number in (0, 1):
                both.end(number)
            shutil.rmtree(folder, ignore_errors=True)


def begin(lab: Lab, both: Nodes, *overrides: str) -> Run:
    """Starts a run on the two nodes, its driver on the first."""
    run = lab.start(*SETTINGS, *overrides, marker=both.marker, within=both.within(0))
    run.until_iteration(2, START_S)
    return run


def apart(run: Run, both: Nodes, kind: str) -> str:
    """Returns the name of the one actor of this kind on the second node. Raises Failed where another is there as well."""
    there = {process.pid for process in both.at(1)}
    names = sorted(process.environ()["ISENTROPE_NAME"] for process in run.actors() if process.pid in there)
    if len(names) != 1 or not names[0].startswith(kind):
        raise Failed(f"on the second node are {names}, not one {kind}")
    return names[0]


def joined(run: Run, act: Callable[[], object]) -> float:
    """Acts, and returns the seconds until one more generator serves."""
    before, began = run.events().count(SERVES), time.monotonic()
    act()
    run.until("a replacement serves", lambda: run.events().count(SERVES) > before, JOINS_S)
    return time.monotonic() - began


def cut(run: Run, both: Nodes, name: str) -> float:
    """Cuts the cable, thaws the actor that was held for that, and returns the seconds until it is given up."""
    both.net.cable(up=False)
    faults.thaw(run.named(name))
    return run.until_event(f"{name} is gone", GIVEN_UP_S)


def goes_on(run: Run) -> None:
    """Checks that the run gets three iterations further."""
    run.until_iteration(run.iteration() + 3, GIVEN_UP_S)


def each_once(run: Run) -> int:
    """Checks that no iteration is missing or there twice; returns how many there are."""
    numbers = [int(row["iteration"]) for row in run.rows()]
    if numbers != list(range(1, len(numbers) + 1)):
        raise Failed(f"the iterations are {numbers}")
    return len(numbers)


def generator_cut_off(lab: Lab) -> str:
    """Cuts a generator off while it generates, and joins the cable; then in a transfer, and starts its node anew."""
    with nodes((3, 2)) as both:  # one generator has room on each
        run = begin(lab, both, "generators.cpus=1.8")
        name = apart(run, both, "generator")
        faults.hold(run, [name], ("generate", "verify"))
        said = [f"cut while it generated: given up after {cut(run, both, name):.0f} s"]
        goes_on(run)
        said.append(f"another serves {joined(run, lambda: both.net.cable(up=True)):.0f} s after the cable was joined")

        name = apart(run, both, "generator")
        faults.hold_in_sync(run, [name])
        said.append(f"cut in the transfer: given up after {cut(run, both, name):.0f} s")
        goes_on(run)
        both.end(1)
        both.net.cable(up=True)
        said.append(f"another serves {joined(run, lambda: both.start(1)):.0f} s after its node was started anew")

        both.net.cable(up=False)
        lab.ask("stop", "chaos", folder=run.folder)
        return "; ".join([*said, ended(run, 143, "cut, stopped")])


def learner_cut_off(lab: Lab) -> str:
    """Cuts the learner off in its update, and joins the cable; then once more, beyond learner.restarts."""
    with nodes((1, 2)) as both:  # the learner has room on the second alone, and nothing else beside it
        run = begin(lab, both, "learner.cpus=1.95", "learner.restarts=1", "checkpoint.every=1")
        name = apart(run, both, "learner rank")
        faults.hold(run, [name], ("train",))
        said = [f"cut in the update: given up after {cut(run, both, name):.0f} s"]
        at, began = run.iteration(), time.monotonic()
        both.net.cable(up=True)
        run.until_iteration(at + 3, JOINS_S)
        said.append(f"three iterations on {time.monotonic() - began:.0f} s after the cable was joined")
        both.net.cable(up=False)
        return "; ".join([*said, ended(run, 1, "cut again")])


def ended(run: Run, expected: int, when: str) -> str:
    """Waits for the end of the run; checks exit code, sentence, rows and checkpoint, and returns that in words."""
    began = time.monotonic()
    code = run.wait(END_S)
    seconds = time.monotonic() - began
    checks.one_sentence(code, run.errors())
    if code != expected:
        raise Failed(f"{when}: exit {code}, not {expected}: {run.errors().strip()[-300:]}")
    return f"{when}: exit {code} after {seconds:.0f} s, {each_once(run)} iterations, checkpoint {checks.whole_checkpoint(run, 2)}"


ROWS = (
    (
        "two-nodes", "the node of one of two generators is cut off", "while it generates, and in a transfer",
        f"given up within {GIVEN_UP_S:g} s, the run goes on with the other; a replacement joins", generator_cut_off,
    ),
    (
        "two-nodes-learner", "the node of the learner is cut off", "in the update, twice, learner.restarts=1",
        f"goes on from the last checkpoint; the second time exit 1 within {END_S:g} s, a checkpoint", learner_cut_off,
    ),
)  # fmt: skip
