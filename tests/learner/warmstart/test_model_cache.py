"""The warm start learns, is cached by its settings, and leaves complete folders or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from envs import catalog
from envs.types import Message
from learner.chat import decode, render, stop_token_ids
from learner.settings import EnvironmentSettings
from learner.warmstart.model_cache import MARKER, WarmStartProgress, init_model
from learner.warmstart.settings import InitModelSettings

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 1,
    "heads": 1,
    "kv_heads": 1,
    "intermediate_size": 32,
    "environments": [{"name": "arithmetic"}],
    "steps": 0,
    "batch_size": 16,
    "responses_per_prompt": 1,
    "train_prompts": 64,
    "warmup_steps": 2,
    "holdout_prompts": 8,
    "holdout_responses": 16,
}


def tiny(**changed: Any) -> InitModelSettings:
    return InitModelSettings(**{**TINY, **changed})


def silent(_: WarmStartProgress) -> None:
    pass


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Limits torch to one thread: two threads on small matrices mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WarmStartProgress]]:
    made: list[WarmStartProgress] = []
    return init_model(tiny(steps=60), None, tmp_path_factory.mktemp("models"), made.append), made


def test_loss_falls_and_the_record_says_what_was_reached(taught) -> None:
    folder, made = taught
    record: dict[str, Any] = json.loads((folder / MARKER).read_text())
    losses = [p.loss for p in made]
    assert losses[-1] < 0.6 * losses[0]
    assert [p.step for p in made] == sorted({p.step for p in made}) and made[-1].step == 60
    assert (record["loss"], record["accuracy"]) == (losses[-1], made[-1].accuracy)
    assert 0 <= record["accuracy"] <= record["pass_at_k"] <= 1 and record["seconds"] > 0
    assert InitModelSettings(**record["settings"]).key() == record["key"]


def test_folder_loads_and_answers(taught) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = taught
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.vocab_size == len(tokenizer)
    stops = stop_token_ids(tokenizer, model.generation_config.eos_token_id)
    assert stops == (tokenizer.eos_token_id,) == (model.generation_config.eos_token_id,)
    context = render(tokenizer, [Message("user", "1+2=")])
    ids = model.generate(torch.tensor([context]), max_new_tokens=8, do_sample=False)[0].tolist()[len(context) :]
    assert ids[-1] in stops and decode(tokenizer, ids).isdigit()


def test_cache_hit_does_not_train_and_out_gets_a_copy(taught, tmp_path: Path) -> None:
    folder, _ = taught

    def fail(_: WarmStartProgress) -> None:
        raise RuntimeError("trained again")

    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert init_model(tiny(steps=60), None, folder.parent, fail) == folder
    out = tmp_path / "deep" / "model"
    assert init_model(tiny(steps=60), out, folder.parent, fail) == out
    assert init_model(tiny(steps=60), out, tmp_path / "elsewhere", fail) == out
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert {p.name for p in out.iterdir()} == {p.name for p in folder.iterdir()} and len(
        list(out.parent.iterdir())
    ) == 1
    with pytest.raises(ValueError, match="exists and is not the model"):
        init_model(tiny(steps=61), out, tmp_path, fail)


def test_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: WarmStartProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        init_model(tiny(steps=4), None, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_same_seed_same_weights_and_the_callers_random_state_is_kept(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first, second = (init_model(tiny(steps=3), None, tmp_path / name, silent) for name in "ab")
    assert torch.equal(before, torch.get_rng_state())
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_mixture_and_early_stop(tmp_path: Path) -> None:
    mixture = [{"name": "arithmetic"}, {"name": "countdown", "params": {"numbers": 3, "min_solutions": 1}}]
    made: list[WarmStartProgress] = []
    settings = tiny(environments=mixture, steps=40, target_accuracy=1e-9, holdout_responses=64, train_prompts=16)
    folder = init_model(settings, None, tmp_path, made.append)
    record = json.loads((folder / MARKER).read_text())
    measured = [p for p in made if p.accuracy is not None]
    assert record["steps"] == made[-1].step == measured[-1].step and measured[-1].accuracy == record["accuracy"]


def test_key_changes_with_every_field() -> None:
    base = tiny()
    other: dict[str, Any] = {
        "architecture": "llama",
        "tie_word_embeddings": False,
        "environments": (EnvironmentSettings(name="arithmetic", params={"digits": 2}),),
        "target_accuracy": 0.5,
    }
    for name in InitModelSettings.model_fields:
        value = other[name] if name in other else getattr(base, name) + 1
        assert base.model_copy(update={name: value}).key() != base.key(), name
    assert tiny().key() == base.key()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"heads": 3, "kv_heads": 2}, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"architecture": "qwen2", "heads": 3}, r"32 != 3 \* 32"),
        ({"head_dim": 16}, "greater than or equal to 32"),
        ({"environments": []}, "at least 1 item"),
        ({"hidden": 8}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tiny(**changed)


def test_environment_without_demonstrations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "load", lambda name, params, seed: object())
    with pytest.raises(ValueError, match="no demonstrations"):
        init_model(tiny(), None, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_settings_import_without_torch() -> None:
    program = "import sys, learner.warmstart.model_cache; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
