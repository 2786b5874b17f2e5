"""The map of CONTRIBUTING.md, held: who imports whom, which library lives where, what starts without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = ["envs", "learner", "actors", "orchestration"]  # each may import itself and what stands before it
FILES = sorted(path.relative_to(ROOT) for package in LINE for path in (ROOT / package).rglob("*.py"))
INITS = [path for path in FILES if path.name == "__init__.py"]
# Which files may import a library.
HOMES = {
    "ray": r"actors/(remote|handles)\.py|orchestration/.*",
    "vllm": r"actors/vllm_\w+\.py",
    "deepspeed": r"learner/deepspeed_engine\.py",
    "httpx": r"actors/rewards/endpoint\.py",
}
# Folders, and files beside them, that start without torch, vLLM, DeepSpeed, Ray and transformers: they answer a mistake at once,
# and read what a run left on machines that have none of these.
LIGHT = (
    "envs",
    "orchestration/config",
    "orchestration/telemetry",
    "orchestration/analysis",
    "orchestration/report",
    "orchestration/lab",
    "orchestration/cli.py",
    "orchestration/errors.py",
    "orchestration/stats.py",
    "orchestration/text.py",
    "orchestration/thresholds.py",
    "orchestration/group_stats.py",
)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: its packages are imported by name"
            yield node.lineno, str(node.module).partition(".")[0]


def test_there_is_something_to_check() -> None:
    assert [path.parts[0] for path in INITS if len(path.parts) == 2] == sorted(LINE)
    assert ("learner/logprobs.py", "torch") in {(str(p), name) for p in FILES for _, name in imports(p)}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_to_the_left_and_libraries_stay_at_home(path: Path) -> None:
    allowed = LINE[: LINE.index(path.parts[0]) + 1]
    for line, name in imports(path):
        assert name not in LINE or name in allowed, f"{path}:{line} imports {name}: only {', '.join(allowed)} may be"
        assert re.fullmatch(HOMES.get(name, ".*"), path.as_posix()), f"{path}:{line} imports {name}"
        assert not (path.parts[0] == "envs" and name == "torch"), f"{path}:{line} imports torch"
        assert name not in ("tests", "fakes", "builders"), f"{path}:{line} imports a test"


@pytest.mark.parametrize("path", INITS, ids=str)
def test_a_package_is_a_docstring_that_names_all_its_files(path: Path) -> None:
    body = ast.parse((ROOT / path).read_text("utf-8")).body
    assert len(body) == 1, f"{path} is a docstring and nothing else"
    table = ast.get_docstring(ast.Module(body, []))
    assert table, f"{path} has no docstring"
    for file in FILES:
        if file.parent == path.parent and file != path:
            assert re.search(rf"^\W*{re.escape(file.name)}(?![\w.])", table, re.M), (
                f"{file} is not in the table of {path}"
            )
    for name in re.findall(r"^\W*(\w+\.py)\b", table, re.M):
        assert (ROOT / path.parent / name).is_file(), f"the table of {path} has {name}, which is not there"


def test_environments_configuration_and_reports_start_without_torch() -> None:
    light = [path for path in FILES if path.as_posix().startswith(LIGHT) and path not in INITS]
    modules = [".".join(path.with_suffix("").parts) for path in light]
    assert "orchestration.config.run_config" in modules
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'vllm', 'deepspeed', 'ray', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'importing {name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
