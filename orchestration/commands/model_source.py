"""Finds the model that a command was given: a model's folder, a checkpoint, a run's folder or name, or a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learner.checkpoint import Checkpoints
from orchestration.config.model_folder import check_model
from orchestration.errors import ConfigError

RUNS = Path("runs")
ADAPTER_CONFIG = "adapter_config.json"  # of a folder in peft's format
WEIGHTS = "hf"  # the folder of a checkpoint that transformers and vLLM load


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Holds a model and where it is from.

    model       a folder that transformers and vLLM load, or an id
    run         the folder of the run that trained it; None where no run did
    checkpoint  the name of its checkpoint there: "step_000100"
    """

    model: str
    run: Path | None = None
    checkpoint: str | None = None

    @property
    def is_adapter(self) -> bool:
        """Returns whether it is an adapter, which needs its base model."""
        return (Path(self.model) / ADAPTER_CONFIG).is_file()

    def whole(self) -> ModelSource:
        """Returns itself. Raises ConfigError where it is an adapter, which no engine loads as a model."""
        if self.is_adapter:
            raise ConfigError(
                f"{self.model} is an adapter: `isentrope export {self.run or self.model} OUT --merged` writes the model that it "
                "makes of its base, and OUT can be given here"
            )
        return self


def find_model(given: str) -> ModelSource:
    """Returns the model; of a run, that of its latest checkpoint. Raises ConfigError, one sentence."""
    for folder in (Path(given), RUNS / given):
        if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
            inside = folder.name == WEIGHTS and _is_run(folder)
            source = (
                ModelSource(str(folder), folder.parents[2], folder.parent.name) if inside else ModelSource(str(folder))
            )
            if not source.is_adapter:
                check_model(source.model)
            return source
        if any((folder / WEIGHTS / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            return find_model(str(folder / WEIGHTS))
        if (folder / "config.yaml").is_file():
            latest = Checkpoints(folder / "checkpoints", 1).latest()
            if latest is None:
                raise ConfigError(
                    f"the run {folder} has no checkpoint yet: wait for one, or stop the run, which writes one"
                )
            return find_model(str(latest / WEIGHTS))
    check_model(given)
    return ModelSource(given)


def _is_run(weights: Path) -> bool:
    """Says whether a folder is RUN/checkpoints/STEP/hf."""
    return len(weights.parents) > 2 and (weights.parents[2] / "config.yaml").is_file()
