"""Makes two network namespaces joined by a cable that can be cut: two nodes on one machine. It needs root and `ip`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """Names two namespaces, whose addresses are 10.77.0.1 and 10.77.0.2."""

    names: tuple[str, str]
    addresses: tuple[str, str] = ("10.77.0.1", "10.77.0.2")

    def command(self, node: int, *command: str) -> list[str]:
        """Returns the command that runs `command` on a node."""
        return ["ip", "netns", "exec", self.names[node], *command]

    def cable(self, *, up: bool) -> None:
        """Cuts the cable, or joins it again."""
        ip("-n", self.names[1], "link", "set", "cable1", "up" if up else "down")
        if up:
            self.route(1)

    def route(self, node: int) -> None:
        """Sends everything through the cable, by which programs find the node's own address; a cut takes the route away."""
        ip("-n", self.names[node], "route", "replace", "default", "via", self.addresses[1 - node])


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Makes the nodes and takes them away; processes in them are the caller's to end first."""
    nodes = TwoNodes((f"isentrope-{os.getpid()}-0", f"isentrope-{os.getpid()}-1"))
    made: list[str] = []
    try:
        for name in nodes.names:
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "-n",
            nodes.names[0],
            "link",
            "add",
            "cable0",
            "type",
            "veth",
            "peer",
            "name",
            "cable1",
            "netns",
            nodes.names[1],
        )
        for number, name in enumerate(nodes.names):
            ip("-n", name, "address", "add", f"{nodes.addresses[number]}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
        for number in (0, 1):
            nodes.route(number)
        yield nodes
    finally:
        for name in made:
            ip("netns", "delete", name)
