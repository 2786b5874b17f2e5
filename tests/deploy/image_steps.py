"""Runs the steps of a Dockerfile in a root of its own, without docker, and trains there: `python tests/deploy/image_steps.py cpu`.

Each stage is an overlay over this machine's root (Debian 12, as the images' base), in which the folders that a clean machine would
not have are empty. It needs root, 12 GB of disk and the package registries, and takes some minutes. What it leaves is removed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMPTY = ("tmp", "root", "home", "work", "srv", "var/tmp")  # of this machine, not of an image
PASSED = re.compile(r"PIP_|SSL_|REQUESTS_|CURL_|.*_proxy$|.*_PROXY$")  # how this machine reaches its registries
INSIDE = "IMAGE_STEPS_INSIDE"  # the folder, for the process that has mounts of its own
CHECK = """
cd && isentrope doctor | head -3
isentrope init-model --recipe smoke steps=0
isentrope train smoke run.iterations=2 evaluation.prompts=0
test -s runs/smoke/report.html && test "$(id --user)" = 1000
"""


@dataclass
class Stage:
    """Holds the root of a stage, and what its instructions have set so far."""

    root: Path
    user: str = "0:0"
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, script: str) -> None:
        """Runs a script in the root as the stage's user. Raises CalledProcessError."""
        passed = {name: value for name, value in os.environ.items() if PASSED.match(name)}
        home = "/home/isentrope" if self.user != "0:0" else "/root"
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environ = {"PATH": path, "HOME": home, "DEBIAN_FRONTEND": "noninteractive", **passed, **self.environ}
        words = ["chroot", f"--userspec={self.user}", str(self.root), "/bin/bash", "-euo", "pipefail", "-c", script]
        subprocess.run(words, env=environ, check=True)


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (instruction, arguments), lines that go on put together, comments left out."""
    text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def make_root(folder: Path) -> Path:
    """Mounts a root in which this machine's own folders are empty; the mounts end with this process's namespace."""
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    root = folder / "root"
    mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work", root)
    for name in EMPTY:
        if (root / name).is_dir():
            mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / name)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/dev", root / "dev")
    mount("--rbind", "/sys", root / "sys")  # vLLM asks lscpu for the processors
    forget_people(root / "etc")
    python = root / "usr/local/bin/python"
    python.unlink(missing_ok=True)
    python.symlink_to("/usr/bin/python3.11")
    return root


def forget_people(etc: Path) -> None:
    """Takes the people of this machine out of a root: an image makes its own user."""
    people = set[str]()
    for name in ("passwd", "group"):
        fields = [line.split(":") for line in (etc / name).read_text("utf-8").splitlines()]
        people |= {words[0] for words in fields if 1000 <= int(words[2]) < 60000}
    for name in ("passwd", "group", "shadow", "gshadow"):
        lines = (etc / name).read_text("utf-8").splitlines()
        (etc / name).write_text("".join(f"{line}\n" for line in lines if line.split(":")[0] not in people), "utf-8")


def copy(arguments: str, stage: Stage, stages: dict[str, Stage]) -> None:
    """Carries out COPY: of this checkout what git and .dockerignore keep, or of another stage."""
    flags = dict(word[2:].split("=", 1) for word in shlex.split(arguments) if word.startswith("--"))
    source, target = (word for word in shlex.split(arguments) if not word.startswith("--"))
    to = stage.root / target.lstrip("/")
    if "from" in flags:
        to.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", stages[flags["from"]].root / source.lstrip("/"), to], check=True)
    elif source == ".":
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
        listed = subprocess.run(["git", "ls-files", "-z", "--", *kept], cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, to)
    if owner := flags.get("chown"):
        subprocess.run(["chroot", stage.root, "chown", "--recursive", owner, target], check=True)


def build(name: str, folder: Path, arguments: dict[str, str], skip_apt: bool) -> Stage:
    """Carries out a Dockerfile; returns its last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction, rest in instructions(ROOT / "deploy" / "docker" / f"Dockerfile.{name}"):
        if instruction == "FROM":
            title = rest.partition(" AS ")[2] or "final"
            stage = stages[title] = Stage(make_root(folder / title))
            continue
        assert stage is not None, "FROM comes first"
        print(f"--- {instruction} {rest[:150]}", flush=True)
        if instruction == "RUN":
            stage.run(re.sub(r"apt-get (update|install [^&]*)", "true ", rest) if skip_apt else rest)
        elif instruction == "COPY":
            copy(rest, stage, stages)
        elif instruction == "ARG":
            key, _, default = rest.partition("=")
            stage.environ[key] = arguments.get(key, default.strip('"'))
        elif instruction == "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                stage.environ[key] = value.replace("$PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        elif instruction == "USER":
            stage.user = rest
        elif instruction not in ("SHELL", "WORKDIR", "CMD"):
            raise SystemExit(f"{instruction} is an instruction that this script does not know")
    assert stage is not None
    return stage


def main(words: Sequence[str]) -> int:
    """Builds an image's root, and trains the smoke recipe in it as the image's user."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", choices=["cpu", "cuda"])
    parser.add_argument("--skip-apt", action="store_true", help="take Debian's packages from this machine")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args(words)
    inside = os.environ.get(INSIDE)
    if inside is None:
        # Mounts are in a namespace that ends with the process below. What is removed then is seen from here, where there are none:
        # nothing of this machine's own is within it.
        with tempfile.TemporaryDirectory(prefix="image-", dir="/var/tmp") as folder:
            command = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, *words]
            return subprocess.run(command, env={**os.environ, INSIDE: folder}, check=False).returncode
    try:
        stage = build(given.image, Path(inside), dict(arg.split("=", 1) for arg in given.build_arg), given.skip_apt)
        stage.environ["HF_HUB_OFFLINE"] = "1"
        stage.run(CHECK)
    except subprocess.CalledProcessError as error:
        print(f"image_steps: a step failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print(f"image_steps: every step of Dockerfile.{given.image} passed, and the smoke recipe trained in its root")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
