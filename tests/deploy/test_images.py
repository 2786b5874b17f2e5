"""The Dockerfiles: what hadolint says, the locks, no root, and nothing in the image that is not in git."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.tools import output_of, tool

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
IMAGES = pytest.mark.parametrize("name", ["cpu", "cuda"])


def text(name: str) -> str:
    return (DOCKER / f"Dockerfile.{name}").read_text("utf-8")


@IMAGES
def test_hadolint_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    hadolint = [tool("hadolint"), "--no-color", "--config", DOCKER / "hadolint.yaml"]
    assert output_of(*hadolint, DOCKER / f"Dockerfile.{name}") == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text(text(name).replace("USER 1000:1000\n", "USER root\n"))
    assert output_of(*hadolint, worse)[0] != 0


@IMAGES
def test_the_image_is_made_of_the_lock_and_of_two_stages(name: str) -> None:
    first, second = re.findall(r"^FROM (\S+)", text(name), re.MULTILINE)
    assert first == second  # the virtual environment's Python is at the same path
    assert f"--no-deps --no-compile -r /src/deploy/{name}.lock" in text(name)
    assert "COPY --from=build" in text(name) and text(name).rstrip().endswith('CMD ["isentrope", "doctor"]')


@IMAGES
def test_everything_that_is_copied_passes_the_ignore_file(name: str) -> None:
    """All but what .dockerignore names stays out: no runs, models or environments get into a layer."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert lines[0] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert kept == {"actors", "envs", "learner", "orchestration", "deploy", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / path).exists() for path in kept)
    assert f"deploy/{name}.lock" in text(name)


def test_both_images_differ_in_what_a_gpu_needs_alone() -> None:
    def steps(name: str) -> list[str]:
        plain = text(name).replace(f"{name}.lock", "lock")
        lines = [line.strip(" \\") for line in plain.splitlines() if not line.startswith("#")]
        return [line for line in lines if line and "TORCH_INDEX" not in line and "NVIDIA" not in line]

    assert steps("cpu") == steps("cuda")
