"""Checks the map of CONTRIBUTING.md: who imports whom, where a library lives, what starts without torch, how large files are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import import_graph
from support.import_graph import FILES, PACKAGES, ROOT, imported

INITS = [path for path in FILES if path.name == "__init__.py"]
FOLDERS = sorted({path.parent for path in FILES})
# Which files may import a library.
HOMES = {
    "ray": r"actors/(remote|handles|health/lifeline)\.py|orchestration/(cluster|run|commands|jobs)/.*"
    r"|orchestration/telemetry/sinks/prometheus\.py",
    "vllm": r"actors/vllm_(\w+|models/\w+)\.py",
    "deepspeed": r"learner/deepspeed_engine\.py",
    "httpx": r"actors/rewards/endpoint\.py",
    "jinja2": r"orchestration/report/.*",
    "triton": r"learner/head/kernels\.py",
    "torch": r"learner/.*|actors/.*|orchestration/commands/precision_probe\.py",
    "transformers": r"learner/.*|actors/.*|orchestration/sampling/codec\.py|orchestration/commands/.*",
}
# Folders, and files beside them, that start without torch, vLLM, DeepSpeed, Ray and transformers: they answer a mistake at once,
# and read what a run left on machines that have none of these.
LIGHT = (
    "envs",
    "learner/settings.py",
    "learner/entropy",
    "learner/diversity",
    "actors/settings.py",
    "orchestration/config",
    "orchestration/memory",
    "orchestration/telemetry",
    "orchestration/analysis",
    "orchestration/report",
    "orchestration/lab",
    "orchestration/cli.py",
    "orchestration/jobs/packing.py",
    "orchestration/jobs/submit.py",
    "orchestration/jobs/variables.py",
    "orchestration/errors.py",
    "orchestration/stats.py",
    "orchestration/text.py",
    "orchestration/thresholds.py",
    "orchestration/group_stats.py",
)
HEAVY = ("torch", "vllm", "deepspeed", "ray", "transformers")


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_is_something_to_check() -> None:
    assert [path.parts[0] for path in INITS if len(path.parts) == 2] == sorted(PACKAGES)
    assert "torch" in {name for _, name in imported(Path("learner/logprobs.py"))}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_flow_and_libraries_stay_at_home(path: Path) -> None:
    layer, known = import_graph.layer_of(path), import_graph.modules()
    allowed = import_graph.allowed(layer)
    for line, name in imported(path):
        if name in known:
            other = import_graph.layer_of(known[name])
            assert other in allowed, (
                f"{path}:{line} imports {name}: {layer} may import {', '.join(sorted(allowed))}, not {other}"
            )
        library = name.partition(".")[0]
        assert re.fullmatch(HOMES.get(library, ".*"), path.as_posix()), f"{path}:{line} imports {name}"
        assert library not in ("tests", "support", "mutation"), f"{path}:{line} imports a test"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_are_by_full_name(path: Path) -> None:
    for node in ast.walk(tree(path)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} imports relatively"


def test_nothing_imports_in_a_circle() -> None:
    assert import_graph.circle(import_graph.edges()) == [], "layers"
    assert import_graph.circle(import_graph.file_graph()) == [], "files"


def test_a_circle_would_be_found() -> None:
    assert import_graph.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert import_graph.circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_layer_is_there() -> None:
    assert {import_graph.layer_of(path) for path in FILES} == import_graph.LAYERS.keys()


def test_the_drawing_in_contributing_is_the_code() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert import_graph.drawn(text) == text, "run `make graph`, which draws it anew"


@pytest.mark.parametrize("path", INITS, ids=str)
def test_a_package_is_a_docstring_that_names_all_its_files(path: Path) -> None:
    body = tree(path).body
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


def test_every_folder_of_code_is_a_package() -> None:
    assert {path.parent for path in INITS} == set(FOLDERS)


def test_files_and_functions_can_be_held_in_the_head() -> None:
    for folder in FOLDERS:
        count = sum(path.parent == folder for path in FILES) - 1  # without its table of contents
        assert count <= 15, f"{folder} has {count} files: make a folder of some"
    for path in FILES:
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
        for function in functions(path):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            assert length <= 60, f"{path}:{function.lineno} {function.name} has {length} lines"


def test_the_driver_of_a_run_and_a_verifier_import_no_torch(tmp_path: Path) -> None:
    """It would take seconds of every start; nothing there computes with tensors. A tokenizer of a family's own class needs it."""
    from learner.warmstart.tokenizer import build_tokenizer

    build_tokenizer("123+").save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "from orchestration.cluster.cluster import Cluster\n"
        "from orchestration.cluster.session import connected\n"
        "from orchestration.run import lifecycle, loop\n"
        "from orchestration.sampling import producer, reward_function, rollouts\n"
        "from orchestration.sampling.codec import HFCodec\n"
        "import actors.remote, actors.verifier_worker\n"
        "from envs.types import Message\n"
        "codec = HFCodec(sys.argv[1], True)\n"
        "assert codec.decode(codec.render([Message('user', '1+2')]))\n"
        "found = {'torch', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_answers_at_once_starts_without_the_big_libraries() -> None:
    light = [path for path in FILES if path.as_posix().startswith(LIGHT) and path not in INITS]
    modules = [".".join(path.with_suffix("").parts) for path in light]
    assert "orchestration.config.run_config" in modules
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {set(HEAVY)} & set(sys.modules)\n"
        "    assert not heavy, f'importing {name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
