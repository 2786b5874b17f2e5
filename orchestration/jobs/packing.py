"""Decides how what a run needs gets to a cluster: an absolute path is expected there, what a relative one names is uploaded.

The package is a folder with the same relative paths, which becomes the working directory of every process of the job.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config.model_folder import check_model
from orchestration.config.run_config import RECIPES, RunConfig, find_recipe
from orchestration.errors import ConfigError

IGNORED = {".git", ".venv", "__pycache__", ".gitignore", ".rayignore"}  # Ray would leave out what the last two name
OURS = ("actors", "envs", "learner", "orchestration")


@dataclass(frozen=True, slots=True)
class Item:
    """Names one thing that a run needs. files: relative to the package, where it is uploaded; empty: by path.

    Item("model.path", "models/tiny", ("models/tiny/config.json", "models/tiny/model.safetensors"))
    """

    key: str
    value: str
    files: tuple[str, ...] = ()
    note: str = ""  # how it gets there, where it is not uploaded


@dataclass(frozen=True, slots=True)
class Package:
    """Holds what goes along. files: path in the package -> file here; recipe: as the job names it."""

    recipe: str
    items: tuple[Item, ...]
    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def write(self, folder: Path) -> None:
        """Fills a folder with links to the files."""
        for name, source in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())


def pack(recipe: str, config: RunConfig, working_dir: Path | None = None) -> Package:
    """Returns the package of a run. Relative paths count from `working_dir`, else from the current directory.

    With `working_dir` all of it is uploaded but what its .gitignore names. Raises ConfigError for what cannot work there.
    """
    root = (working_dir or Path()).resolve()
    if not root.is_dir():
        raise ConfigError(f"--working-dir {working_dir} is not a folder")
    _check_run_dir(config)
    files: dict[str, Path] = {}
    items: list[Item] = []
    if working_dir is not None:
        files |= {name: root / name for name in _whole(root)}
        items.append(Item("working directory", str(working_dir), tuple(files)))
    name, found = _recipe(recipe, root)
    files |= found
    items.append(Item("recipe", recipe, tuple(found), "shipped with isentrope"))
    for module in _modules(config):
        found = _module(module, find_recipe(recipe).resolve().parent, root, Path(name).parent)
        files |= found
        items.append(Item("environment", module, tuple(found), "installed there"))
    for key, value in _paths(config):
        item = _item(key, value, root)
        if item is not None:
            files |= {file: root / file for file in item.files}
            items.append(item)
    items.append(Item("run.dir", config.run.dir, note="by path: the driver and the learner write there"))
    _check_names(files)
    return Package(name, tuple(items), files)


def _check_run_dir(config: RunConfig) -> None:
    if not Path(config.run.dir).is_absolute():
        raise ConfigError(
            f"run.dir is {config.run.dir}, which would be in the job's own copy of its files and vanish with it: give "
            "run.dir=PATH, the absolute path of a folder that the nodes of driver and learner see"
        )


def _check_names(files: Mapping[str, Path]) -> None:
    """Refuses what would hide a package of ours: the package comes first on the cluster's module search path."""
    tops = {name.partition("/")[0].removesuffix(".py") for name in files}
    if all(ours in tops for ours in OURS):
        return  # our own source tree
    for ours in OURS:
        if ours in tops:
            raise ConfigError(
                f"the job would take along {ours}, and hide the package of that name: rename it, or leave it out"
            )


def _whole(root: Path) -> Iterator[str]:
    """Yields the files of a folder: in a git repository those that git does not ignore, else all that are not hidden."""
    listing = (
        subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=False,
        )
        if _has_git()
        else None
    )
    if listing is not None and listing.returncode == 0:
        for name in os.fsdecode(listing.stdout).split("\0"):
            if name and (root / name).is_file() and not IGNORED & set(Path(name).parts):
                yield name
        return
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in IGNORED and not f.startswith(".") and f != "runs")
        for name in sorted(names):
            if name not in IGNORED and (Path(folder) / name).is_file():
                yield (Path(folder) / name).relative_to(root).as_posix()


def _has_git() -> bool:
    import shutil

    return shutil.which("git") is not None


def _recipe(recipe: str, root: Path) -> tuple[str, dict[str, Path]]:
    """Returns a recipe as the job names it, and its file in the package; none for one that is shipped."""
    file = find_recipe(recipe).resolve()
    if file.parent == RECIPES.resolve():
        return file.stem, {}
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    return name, {name: file}


def _modules(config: RunConfig) -> list[str]:
    """Returns the modules of the environments that are a user's own."""
    names = (env.name.partition(":")[0] for env in config.all_environments if ":" in env.name)
    return list(dict.fromkeys(names))


def _module(name: str, beside: Path, root: Path, target: Path) -> dict[str, Path]:
    """Returns the files of a module beside the recipe or in the root, with all Python files of its folder: it may import them."""
    first = name.partition(".")[0]
    for folder, at in ((beside, target), (root, Path())):
        package = folder / first
        if package.is_dir() and any(package.rglob("*.py")):
            return {(at / file.relative_to(folder)).as_posix(): file for file in _files(package)}
        if (folder / f"{first}.py").is_file():
            return {(at / file.name).as_posix(): file for file in sorted(folder.glob("*.py"))}
    return {}


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of every setting that may name a file or a folder."""
    data = config.model_dump(mode="json")
    yield "model.path", config.model.path
    yield from _texts("rewards", data["rewards"])
    for i, environment in enumerate(data["environments"]):
        yield from _texts(f"environments.{i}.params", environment["params"])
    for s, stage in enumerate(data["stages"]):
        for i, environment in enumerate(stage["environments"]):
            yield from _texts(f"stages.{s}.environments.{i}.params", environment["params"])


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(f"{key}.{name}", inner)
    elif isinstance(value, Sequence):
        for i, inner in enumerate(value):
            yield from _texts(f"{key}.{i}", inner)


def _item(key: str, value: str, root: Path) -> Item | None:
    """Returns how one path gets there; None for a text that is not a path."""
    model = key.endswith(("model.path", "generator.path"))
    path = value.partition(":")[0] if value.partition(":")[0].endswith(".py") else value  # file.py:function
    if Path(path).is_absolute():
        return Item(key, value, note="by path: every node has to see it")
    if path.startswith("~"):
        raise ConfigError(
            f"{key} is {value[:200]}, and a cluster's home folder is another: give an absolute path, or one below here"
        )
    there = root / path
    if not os.path.exists(there):  # noqa: PTH110 - Path raises for an overlong name
        if model:
            check_model(path)
            return Item(key, value, note="from the Hugging Face hub")
        return None
    if not path.strip() or (not model and there == root):
        return None
    if not there.resolve().is_relative_to(root):
        raise ConfigError(
            f"{key} is {value[:200]}, outside the working directory {root}: give an absolute path that every node sees"
        )
    if model:
        check_model(str(there))
    name = there.resolve().relative_to(root) if ".." in Path(path).parts else Path(path)
    found = _files(root / name) if there.is_dir() else [root / name]
    return Item(key, value, tuple(file.relative_to(root).as_posix() for file in found))


def _files(folder: Path) -> list[Path]:
    """Returns the files below a folder, without caches and hidden folders."""
    return sorted(
        file for file in folder.rglob("*") if file.is_file() and not IGNORED & set(file.relative_to(folder).parts)
    )
