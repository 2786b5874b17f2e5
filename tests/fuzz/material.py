"""Makes the valid things that are then changed: a model folder with a tokenizer, a run's checkpoint, logs, data of environments."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from support.builders import config_data, make_group, run_folder, stages_data

from learner.checkpoint import Checkpoints
from orchestration.config.run_config import RECIPES, RunConfig, validate

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG_JSON: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 32,
    "vocab_size": 128, "max_position_embeddings": 40960,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "eos_token_id": 2,
    "dtype": "float32",
}  # fmt: skip
RECIPES_TEXT = {path.stem: path.read_text("utf-8") for path in sorted(RECIPES.glob("*.yaml"))}


def make_models(folder: Path) -> list[Path]:
    """Writes two small model folders: one with our characters as tokens, one with the byte pairs of other models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from learner.warmstart.tokenizer import build_tokenizer

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog 0123456789"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    pairs = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    made = []
    for name, tokenizer in (("characters", build_tokenizer("0123456789+-*/=() abc?.")), ("pairs", pairs)):
        model = folder / name
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(CONFIG_JSON))
        tokenizer.save_pretrained(model)
        GenerationConfig(eos_token_id=[2, 0], pad_token_id=0).save_pretrained(model)
        header = json.dumps(
            {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
        ).encode()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
        made.append(model)
    return made


def make_stopped_run(model: Path, staged: bool) -> RunConfig:
    """Writes the folder of a run that stopped after two iterations, into the current directory."""
    from envs import catalog
    from orchestration.run.state import RunState
    from orchestration.sampling.curriculum import Curriculum, stages_of

    data = stages_data() if staged else config_data()
    if staged:
        data["batch"] |= {"adaptive": {"revisit": 0.5}}
    data["model"]["path"], data["run"]["dir"] = str(model), "runs"
    config = validate(data)
    environments = [catalog.load(e.name, e.params, seed=config.run.seed) for e in config.all_environments]
    curriculum = Curriculum(environments, stages_of(config), config.run.seed, config.batch.adaptive)
    state = RunState.fresh(config, curriculum)
    for _ in range(2):
        curriculum.next(config.batch.prompts)
        curriculum.observe([make_group([0.0, 1.0])])
        state.monitor.look({"reward/mean": 0.5, "correct/mean": 0.5, "response/length_mean": 9.0})
        state.alarms.look({"drift/hacking": 1.0})
    state.iteration, state.policy_version = 2, 2
    checkpoints = Checkpoints(config.folder / "checkpoints", 2)
    loop = {"controller": {"value": 0.1}, "target": {"start": 1.5, "iteration": 2.0}}
    state.learner = {"steps": 2, "steering": {"": loop}, "ledger": {"entropy": 1.5, "predicted": math.nan}}
    draft = checkpoints.begin(2)
    for name in ("hf/config.json", "hf/model.safetensors", "hf/tokenizer.json", "engine/rank0.safetensors"):
        (draft / name).parent.mkdir(exist_ok=True)
        source = model / ("model.safetensors" if name.startswith("engine") else Path(name).name)
        (draft / name).write_bytes(source.read_bytes())
    checkpoints.finish(draft, state.state_dict())
    (config.folder / "config.yaml").write_text(config.to_yaml(), "utf-8")
    run_folder(Path("logs"), 2)
    for log in ("metrics.jsonl", "samples.jsonl"):
        (config.folder / log).write_bytes(Path("logs", log).read_bytes())
    return config


QUESTIONS = [
    {"prompt": "What is 3/4 of 20?", "answer": 15},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "answer": "4"},
    {"prompt": "half of 3?", "answer": "3/2"},
    {"prompt": "root of 2", "answer": "\\sqrt{2}"},
]
