"""Checks every command line, link and path of the documents: known commands, names, options and overrides, files that exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from support.readme import ROOT, write_own_data, write_own_environment, write_own_reward

from envs import catalog
from learner.warmstart.settings import InitModelSettings
from orchestration.cli import app
from orchestration.commands.get_model import MODELS
from orchestration.config.loader import parse_overrides
from orchestration.config.run_config import RunConfig, load_config
from orchestration.lab.grid import cells, load_grid

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests" / "benchmarks" / "RESULTS.md",
    ROOT / "tests" / "gpu" / "RESULTS.md",
    ROOT / "tests" / "gpu" / "README.md",
]
COMMANDS: Any = typer.main.get_command(app)
MODES = set(get_args(type(RunConfig.model_fields["precision"].default).model_fields["mode"].annotation))
PROGRAM = re.compile(r"^(?:\S*/)?isentrope (?!:)|^.*\bpython -m orchestration ")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_]*$")  # RECIPE, MODEL, RUN
FOLDERS = ("envs/", "learner/", "actors/", "orchestration/", "tests/", "docs/", "deploy/")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")


def command_lines(text: str) -> Iterator[str]:
    """Yields every isentrope command of a document, in code blocks and in running text, without the program's name."""
    lines = [line for fence in FENCE.findall(text) for line in fence.splitlines()]
    for line in (*lines, *INLINE.findall(FENCE.sub("", text))):
        if match := PROGRAM.match(line):
            yield line[match.end() :]


def links(text: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))


def paths(text: str) -> Iterator[str]:
    """Yields every path of this repository that stands in backticks, without what follows a colon."""
    for word in INLINE.findall(FENCE.sub("", text)):
        path = word.partition(":")[0]
        if path.startswith(FOLDERS) and not re.search(r"[\s{}<>]", path):
            yield path


def check(line: str, folder: Path) -> None:
    """Parses a command, and validates what its recipe, grid, environment and overrides name. Raises what the command would."""
    name, *arguments = shlex.split(line, comments=True)
    command = COMMANDS.commands[name]
    context = command.make_context(name, list(arguments))
    given: dict[str, Any] = context.params
    if any(map(PLACEHOLDER.match, arguments)):
        parse_overrides(context.args)
    elif name in ("train", "submit"):
        load_config(given["recipe"], context.args)
    elif name == "lab":
        assert not [cell.problem for cell in cells(load_grid(given["grid"]), folder, None) if cell.problem]
    elif name == "play":
        catalog.load(given["env"], dict(parse_overrides(context.args)))
    elif name == "init-model":
        names = [{"name": env} for env in given["env"] or []]
        if given["recipe"]:
            config = load_config(given["recipe"])
            names += [{"name": env.name, "params": env.params} for env in config.all_environments]
        InitModelSettings.model_validate({**dict(parse_overrides(context.args)), "environments": names})
    elif name == "get-model":
        assert given["name"] in MODELS
    elif name == "check-env":
        catalog.load(given["name"], dict(parse_overrides(context.args)))
    if name == "eval":
        if given["env"]:
            catalog.load(given["env"], dict(parse_overrides(context.args)))
        if given["recipe"]:
            load_config(given["recipe"], context.args)
    if name == "precision":
        if given["env"]:
            catalog.load(given["env"], dict(parse_overrides(context.args)))
        assert set((given["modes"] or "fp32").split(",")) <= MODES


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a folder with the files that the README tells its reader to write."""
    for write in (write_own_environment, write_own_data, write_own_reward):
        folder = write(tmp_path / write.__name__).parent
        for file in (path for path in folder.rglob("*") if path.is_file()):
            target = tmp_path / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(catalog, "_folders", [])
    yield tmp_path
    for name in ("swaps", "brief"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_one(document: Path, reader: Path) -> None:
    for line in command_lines(document.read_text("utf-8")):
        if line in COMMANDS.commands:  # mentioned by its name alone
            continue
        try:
            check(line, reader)
        except Exception as error:
            raise AssertionError(f"{document.name}: isentrope {line}: {error}") from error


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_path_leads_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    for link in links(text):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), f"{document.name}: {link} does not exist"
            assert not anchor or anchor in anchors(target), f"{document.name}: {link} has no such heading"
    for path in paths(text):
        assert any(ROOT.glob(path.rstrip("/"))), f"{document.name}: {path} does not exist"


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_are_found_in_blocks_and_in_text() -> None:
    block = ".venv/bin/isentrope train smoke  # x\nisentrope: an error\nray -- python -m orchestration lab x\n"
    text = f"Say `isentrope doctor` or\n\n```\n{block}```\n"
    assert list(command_lines(text)) == ["train smoke  # x", "lab x", "doctor"]


@pytest.mark.parametrize(
    "line",
    [
        "train smok",
        "train smoke learner.lrr=1",
        "train smoke --resumed x.y=1",
        "lab entrop",
        "play countdow",
        "play countdown hihg=6",
        "init-model --recipe smoke stepps=1",
        "precision models/x --modes bf17",
        "get-model smolm2",
        "check-env countdow",
        "eval models/x --env countdown numbrs=3",
        "eval models/x --recipe smok",
        "export runs/x",
        "report",
        "trian smoke",
    ],
)
def test_a_wrong_command_is_found(line: str, reader: Path) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(line, reader)
