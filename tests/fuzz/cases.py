"""Makes one fuzzed input from a seed and gives it to what a command gives it to, in this process.

An input that is bad may end with one sentence and an exit code of the documented set, and in no other way. `play_case` says what
went wrong; the same seed is the same input.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from fuzz.material import QUESTIONS, RECIPES_TEXT, make_models, make_stopped_run
from fuzz.mutations import ODD_YAML, bytes_changed, file_changed, mutated, nodes, odd_value, text_changed
from fuzz.responses import fuzzed
from support.builders import run_folder

from envs import catalog
from envs.types import Message
from learner.checkpoint import OWN_HASH, state_hash
from orchestration import cli
from orchestration.config.run_config import RunConfig, load_config
from orchestration.defects import MARK, SHOW, defects
from orchestration.errors import ConfigError, IsentropeError
from orchestration.telemetry.sinks.base import RunInfo
from orchestration.telemetry.sinks.jsonl import JsonlSink

CODES = {0, 1, 2, 3, 4, 130, 143}
LONGEST = 2048  # bytes of a message


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says how one input ended; problem: what is wrong with that, or ''."""

    kind: str
    seed: int
    code: int
    said: str
    problem: str = ""


class Material:
    """Holds the valid folders that inputs are made of, in a temporary folder of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        tempfile.tempdir = self._folder.name  # tracebacks and inputs, too: one that is killed leaves them here
        root = Path(self._folder.name)
        self.models = make_models(root / "models")
        self.stopped: list[tuple[Path, RunConfig]] = []
        for number, model in enumerate(self.models):
            run = root / f"stopped-{number}"
            run.mkdir()
            with contextlib.chdir(run):
                self.stopped.append((run, make_stopped_run(model, staged=bool(number))))
        self.logs = run_folder(root / "logs", 12)

    def close(self) -> None:
        self._folder.cleanup()


# --- what an input is given to ------------------------------------------------------------------------------------------


def command(*arguments: str, stdin: str = "") -> tuple[int, str]:
    """Runs a command line in this process; returns the exit code and what it said on stderr."""
    said, before = io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = ["isentrope", *arguments], io.StringIO(stdin)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as strict as a terminal
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), said.getvalue()
    finally:
        sys.argv, sys.stdin = before
    return 0, said.getvalue()


def called(work: Callable[[], object]) -> tuple[int, str]:
    """Calls what a command calls, with the command's own handling of errors."""
    try:
        with defects(), contextlib.redirect_stdout(io.StringIO()):
            work()
    except IsentropeError as error:
        return error.exit_code, "".join(traceback.format_exception(error)) if os.environ.get(SHOW) else str(error)
    return 0, ""


# --- the kinds ----------------------------------------------------------------------------------------------------------


def recipe(rng: random.Random, material: Material) -> tuple[int, str]:
    """A shipped recipe whose tree of values is changed."""
    data = yaml.safe_load(rng.choice(list(RECIPES_TEXT.values())))
    data["model"]["path"] = str(rng.choice(material.models))
    Path("recipe.yaml").write_text(yaml.safe_dump(mutated(rng, data)), "utf-8", "surrogateescape")
    return command("train", "--dry-run", "recipe.yaml")


def recipe_bytes(rng: random.Random, material: Material) -> tuple[int, str]:
    """A shipped recipe whose bytes are changed."""
    text = re.sub(
        "path: [^,} ]+", f"path: {rng.choice(material.models)}", rng.choice(list(RECIPES_TEXT.values())), count=1
    )
    Path("recipe.yaml").write_bytes(bytes_changed(rng, text.encode()))
    return command("train", "--dry-run", "recipe.yaml")


def overrides(rng: random.Random, material: Material) -> tuple[int, str]:
    """A valid recipe with overrides of any key to any value, in any form."""
    keys = dotted_keys()
    words: list[str] = [f"model.path={rng.choice(material.models)}"]
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(keys) if rng.random() < 0.9 else text_changed(rng, rng.choice(keys))
        value = rng.choice([rng.choice(ODD_YAML), json.dumps(odd_value(rng)), str(odd_value(rng))])
        form = rng.randrange(4)
        words += [f"{key}={value}"] if form < 2 else [f"--{key}={value}"] if form == 2 else [f"--{key}", value]
    if rng.random() < 0.05:
        words.append(rng.choice(["", "=", "--", "-x", "a", "x" * 5000, "=1", "..=1", "a..b=1", "."]))
    name = rng.choice([*RECIPES_TEXT, "smoke", "smoke"]) if rng.random() < 0.97 else str(odd_value(rng))
    return command("train", "--dry-run", name, *words)


def grid(rng: random.Random, material: Material) -> tuple[int, str]:
    """A grid of a laboratory whose tree of values is changed."""
    data = {
        "name": "g", "recipe": "smoke", "seeds": [0, 1], "overrides": {"run.iterations": 4, "model.path": str(material.models[0])},
        "settings": {"short": {}, "long": {"run.iterations": 9}},
        "arms": {"grpo": {"note": "n"}, "repo": {"seeds": [0], "entropy.method": {"kind": "repo_r"}}},
    }  # fmt: skip
    text = yaml.safe_dump(mutated(rng, data)).encode()
    Path("grid.yaml").write_bytes(text if rng.random() < 0.8 else bytes_changed(rng, text))
    return command("lab", "--dry-run", "grid.yaml")


def model(rng: random.Random, material: Material) -> tuple[int, str]:
    """A model folder of which a file is changed, read as a run reads it before it starts."""
    shutil.copytree(rng.choice(material.models), "model")
    change_files(rng, Path("model"), ["config.json"] * 2 + ["*.safetensors", "generation_config.json", "*"])
    code, said = command("train", "--dry-run", "smoke", "model.path=./model")
    return (code, said) if code else called(lambda: use_codec(rng, load_config("smoke", ["model.path=./model"])))


def tokenizer(rng: random.Random, material: Material) -> tuple[int, str]:
    """The files of a tokenizer, or its chat template, changed; if it loads, it is used for conversations of every role."""
    shutil.copytree(rng.choice(material.models), "model")
    change_files(rng, Path("model"), ["tokenizer.json", "tokenizer_config.json", "*.jinja", "tokenizer*"])
    config = load_config("smoke", ["model.path=./model"])
    return called(lambda: use_codec(rng, config))


def use_codec(rng: random.Random, config: RunConfig) -> None:
    from orchestration.sampling.codec import load_codecs

    codec = load_codecs(config).policy
    texts = [fuzzed(rng, ["1+2=3"])[:200].encode("utf-8", "replace").decode() for _ in range(3)]
    before = [Message(role, text) for role, text in zip(("system", "user", "assistant"), texts, strict=True)]
    ids = codec.render(before[: rng.choice([1, 2])])
    codec.render_observation(before[:2], [Message(rng.choice(["user", "tool"]), texts[2])], ids[-3:])
    codec.decode(ids)
    codec.defuse(texts[0])


def checkpoint(rng: random.Random, material: Material) -> tuple[int, str]:
    """The folder of a stopped run of which a file is changed, resumed by its recipe or by its folder until something starts.

    Half of the changed checkpoints get the hashes of what they now are, so that more than the hashes is asked.
    """
    from orchestration.run.folder import held
    from orchestration.run.lifecycle import prepare
    from orchestration.run.resume import config_of_run
    from orchestration.run.state import RunState
    from orchestration.sampling.curriculum import Curriculum, stages_of

    folder, config = rng.choice(material.stopped)
    shutil.copytree(folder, ".", dirs_exist_ok=True)
    change_files(
        rng,
        config.folder,
        ["state.json"] * 4 + ["config.yaml", "latest", "hf/*", "engine/*", "*.jsonl", "modules.json", ".lock"],
    )
    if rng.random() < 0.5:
        hash_again(config.folder / "checkpoints" / "step_000002")
    by_folder, step = rng.random() < 0.5, rng.choice([None, None, None, 2, 3])

    def resume() -> None:
        own = config_of_run(config.folder, []) if by_folder else config
        with held(own.folder):
            job = prepare(own, resume=True, step=step)
            environments = [catalog.load(e.name, e.params, seed=own.run.seed) for e in own.all_environments]
            state = RunState.fresh(own, Curriculum(environments, stages_of(own), own.run.seed, own.batch.adaptive))
            if job.state is not None:
                state.load_state_dict(job.state, job.checkpoint or own.folder)
                state.curriculum.next(3)
            sink = JsonlSink(own.folder)
            sink.start(
                RunInfo(own.run.name, own.folder, own.iterations, None if job.state is None else state.iteration)
            )
            sink.close("end")

    return called(resume)


def hash_again(folder: Path) -> None:
    """Makes the hashes and sizes of a checkpoint's state.json those of its files, where there is something to put them into."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError, AttributeError):
        state = json.loads((folder / "state.json").read_bytes())
        for name in state["files"]:
            data = (folder / name).read_bytes()
            state["files"][name] = {
                "bytes": len(data),
                "blake2b": hashlib.blake2b(data, digest_size=32).hexdigest(),
            }
        (folder / "state.json").write_text(json.dumps({**state, OWN_HASH: state_hash(state)}))


def logs(rng: random.Random, material: Material) -> tuple[int, str]:
    """The logs of a run, changed by lines or by bytes, of which a report is written."""
    shutil.copytree(material.logs, "run")
    file = Path("run", rng.choice(["metrics.jsonl", "metrics.jsonl", "samples.jsonl", "config.yaml"]))
    data = file.read_bytes()
    if file.suffix == ".jsonl" and rng.random() < 0.7:
        lines = [json.loads(line) for line in data.decode().splitlines()]
        changed = mutated(rng, lines)
        data = "".join(
            json.dumps(line) + "\n" for line in (changed if isinstance(changed, list) else [changed])
        ).encode()
    else:
        data = bytes_changed(rng, data)
    file.write_bytes(data)
    return command("report", "run", *(["run"] if rng.random() < 0.1 else []))


def environment(rng: random.Random, material: Material) -> tuple[int, str]:
    """An environment with changed parameters and data, played with odd responses until the input ends."""
    rows = mutated(rng, QUESTIONS) if rng.random() < 0.6 else QUESTIONS
    data = "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])).encode()
    Path("data.jsonl").write_bytes(data if rng.random() < 0.7 else bytes_changed(rng, data))
    names = [
        "questions",
        "questions",
        *(name for name in catalog.BUILTIN if name not in ("gym", "appworld", "reasoning_gym")),
    ]
    name = rng.choice(names)
    words = {"path": "data.jsonl", "eval_fraction": "0.0"} if name == "questions" else {}
    known = [key for key in inspect.signature(catalog.find(name)).parameters if key != "seed"]
    for key in rng.sample(known, min(len(known), rng.choice([0, 1, 1, 2]))):
        words[key] = rng.choice([str(rng.randrange(-2, 40)), rng.choice(ODD_YAML), json.dumps(odd_value(rng))])
    responses = "".join(fuzzed(rng, ["1+2", "5"]).replace("\n", " ")[:300] + "\n" for _ in range(rng.randrange(6)))
    index = ["--index", str(rng.choice([0, 1, 3, -1, 10**6, 10**30]))] if rng.random() < 0.2 else []
    return command("play", *index, name, *(f"{key}={value}" for key, value in words.items()), stdin=responses)


KINDS: dict[str, Callable[[random.Random, Material], tuple[int, str]]] = {
    "recipe": recipe,
    "recipe_bytes": recipe_bytes,
    "overrides": overrides,
    "grid": grid,
    "model": model,
    "tokenizer": tokenizer,
    "checkpoint": checkpoint,
    "logs": logs,
    "environment": environment,
}


# --- parts --------------------------------------------------------------------------------------------------------------


def dotted_keys() -> list[str]:
    """Lists every key that a recipe can set."""
    tree = load_config("smoke").model_dump()
    names = {id(tree): ""}
    keys = []
    for at, key in nodes(tree):
        name = f"{names[id(at)]}{key}"
        keys.append(name)
        names[id(at[key])] = f"{name}."
    return [
        *keys,
        "stages",
        "rewards.judge",
        "rewards.model",
        "rewards.format.pattern",
        "rewards.length",
        "environments.0.params.digits",
    ]


def change_files(rng: random.Random, folder: Path, patterns: list[str]) -> None:
    """Changes one or two files of a folder that fit one of the patterns; a few are removed or become something else."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        files = sorted(path for path in folder.rglob(rng.choice(patterns)) if path.is_file())
        if not files:
            continue
        file, kind = rng.choice(files), rng.random()
        if kind < 0.04:
            file.unlink()
        elif kind < 0.06:
            file.unlink()
            file.mkdir()
        elif file.suffix == ".json":
            file.write_bytes(file_changed(rng, file.read_bytes()))
        elif file.suffix == ".jinja" and kind < 0.5:
            file.write_text(rng.choice(TEMPLATES), "utf-8")
        elif file.name == "latest":
            file.write_bytes(rng.choice([*POINTERS, rng.randbytes(20)]))
        else:
            file.write_bytes(bytes_changed(rng, file.read_bytes()))


POINTERS = (b"", b"\xff\xfe", b"x" * 5000, b"../x", b"/", b".", b"step_000009", b"a\0b")
TEMPLATES = (
    "{{ raise_exception('no') }}", "{{ 1/0 }}", "{{ messages[7].content }}", "{% for", "{{ x.y.z }}", "",
    "{{ messages }}", "{{ 1 + 'a' }}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ messages[0].role.foo() }}", "{{ ''.__class__ }}", "{{ strftime_now(1) }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% include 'x' %}", "{{ messages | tojson }}{{ 'a' * 3 }}", "{{ none() }}",
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% endfor %}",
)  # fmt: skip


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Works in an empty folder, and leaves nothing in it or in the process."""
    path = list(sys.path)
    with tempfile.TemporaryDirectory(prefix="fuzz-case-") as folder, contextlib.chdir(folder):
        try:
            yield
        finally:
            sys.path[:] = path


def play_case(seed: int, material: Material, kinds: list[str]) -> Outcome:
    """Makes the input of a seed, gives it to what reads it, and judges how that ended."""
    kind = kinds[seed % len(kinds)]
    try:
        with _aside():
            code, said = KINDS[kind](random.Random(f"{kind}/{seed}"), material)
    except ConfigError as error:  # while it was made: two changes can undo each other
        code, said = error.exit_code, str(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        shown = "".join(traceback.format_exception(error)) if os.environ.get(SHOW) else ""
        return Outcome(kind, seed, 1, shown, f"{type(error).__name__}: {str(error)[:300]}")
    problem = ""
    if MARK in said or "Traceback" in said:
        problem = "a traceback"
    elif code not in CODES:
        problem = f"exit code {code} is not documented"
    elif len(said.encode("utf-8", "backslashreplace")) > LONGEST:
        problem = f"a message of {len(said):,} characters"
    elif code and not said.strip():
        problem = "no message"
    return Outcome(kind, seed, code, said, problem)


def quiet() -> None:
    """Sets what the console script sets, and keeps libraries off the network."""
    os.environ.update({**cli.QUIET, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"})
