"""Looks the other trainers' keys of docs/migration.md up in their sources: `python tests/documents/migration_keys.py WHEEL ...`.

    pip download --no-deps -d wheels trl==1.16.0 transformers==5.19.0 verl==0.9.1 openrlhf==0.11.2
    python tests/documents/migration_keys.py wheels/*.whl

What it finds is written to migration_keys.json, which tests/documents/test_migration.py holds against the page without a download.
A key that no source has is named, and the exit code is 1. Nothing of the packages is imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
RECORD = Path(__file__).with_suffix(".json")
SECTIONS = ("TRL", "verl", "OpenRLHF")
VERL = "verl/trainer/config/_generated_ppo_trainer.yaml"
# Keys of verl that its YAML does not have, because they have no default: the code that reads them.
READ_BY = {
    "reward.reward_kwargs.overlong_buffer_cfg.len": "overlong_buffer_cfg.len",
    "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": "overlong_buffer_cfg.penalty_factor",
}


def named(section: str) -> list[str]:
    """Returns the keys in the left column of a section's table, written out: in `a.b.c`, `d` the second is `a.b.d`."""
    text = PAGE.read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found: list[str] = []
    for row in text.splitlines():
        if not row.startswith("| `") or row.startswith("| `GRPOConfig`"):
            continue
        parent = ""
        for word in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            key = re.split(r"[: ]", word)[0]
            if key.endswith("."):
                continue  # a prefix that a note in the cell is about
            if section == "verl" and "." not in key:
                key = f"{parent}.{key}"
            parent = key.rpartition(".")[0]
            found.append(key)
    return found


def fields(source: str, *classes: str) -> set[str]:
    """Returns the annotated fields of classes and the parameters of their methods."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    found.add(ast.unparse(part.target))
                elif isinstance(part, ast.FunctionDef):
                    found |= {argument.arg for argument in part.args.args}
    return found


def options(source: str) -> set[str]:
    """Returns the names of argparse options; an f-string's {prefix} is `actor`, as in a loop over actor and critic."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
            and node.args
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                found.add(str(first.value))
            elif isinstance(first, ast.JoinedStr):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "actor" for p in first.values))
    return found


def dotted(data: dict[str, Any], before: str = "") -> Iterator[str]:
    """Yields every key of nested mappings."""
    for key, value in data.items():
        yield before + key
        if isinstance(value, dict):
            yield from dotted(value, f"{before}{key}.")


class Wheels:
    """Reads files of the wheels, by the name of the package and the end of the path."""

    def __init__(self, paths: list[str]) -> None:
        self._wheels = {Path(path).name.split("-")[0].lower(): path for path in paths}

    def version(self, package: str) -> str:
        return Path(self._wheels[package]).name.split("-")[1]

    def text(self, package: str, end: str) -> str:
        with zipfile.ZipFile(self._wheels[package]) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(end))
            return wheel.read(name).decode()


def known(wheels: Wheels) -> dict[str, set[str]]:
    """Returns what each trainer's source has."""
    trl = fields(wheels.text("trl", "trl/trainer/grpo_config.py"), "GRPOConfig")
    trl |= fields(wheels.text("trl", "trl/trainer/grpo_trainer.py"), "GRPOTrainer")
    trl |= fields(wheels.text("transformers", "transformers/training_args.py"), "TrainingArguments")
    trl |= fields(wheels.text("transformers", "transformers/trainer.py"), "Trainer")
    verl = set(dotted(yaml.safe_load(wheels.text("verl", VERL))))
    dapo = wheels.text("verl", "experimental/reward_loop/reward_manager/dapo.py")
    verl |= {key for key, read in READ_BY.items() if read in dapo and "reward_kwargs" in dapo}
    return {"TRL": trl, "verl": verl, "OpenRLHF": options(wheels.text("openrlhf", "openrlhf/cli/train_ppo_ray.py"))}


def main(paths: list[str]) -> int:
    wheels = Wheels(paths)
    record: dict[str, Any] = {
        "versions": {p: wheels.version(p) for p in ("trl", "transformers", "verl", "openrlhf")},
        "keys": {},
    }
    missing = []
    for section, has in known(wheels).items():
        keys = named(section)
        missing += [f"{section} has no {key}" for key in keys if key not in has]
        record["keys"][section] = sorted({key for key in keys if key in has})
    print("\n".join(missing) or "every key is in its source")
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
