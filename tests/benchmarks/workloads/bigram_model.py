"""Makes the model of the workloads of ReplyLengths: a Qwen3 whose weights are set so that it samples exactly those replies.

    python tests/benchmarks/workloads/bigram_model.py RECIPE [RECIPE ...]

The layers are random and cost what layers cost, but add almost nothing to the residual stream, and embedding and head are a table
of next-token probabilities. So lengths are what the recipe says in every engine that samples at temperature 1, without a minute of
training. Written where the recipe's model.path says, unless it is there.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from reply_lengths import ALPHABET, LETTERS, ReplyLengths  # noqa: E402

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 384,
}  # 600K parameters
NEVER = -20.0  # logit of a token that must not follow
QUIET = 1e-3  # scale of what the layers add to the residual stream, against their usual one


def make(params: dict[str, Any], folder: Path, seed: int = 0) -> Path:
    """Writes the model and its tokenizer for an environment with these parameters."""
    import torch

    from learner.settings import EnvironmentSettings
    from learner.warmstart.settings import InitModelSettings
    from learner.warmstart.teacher import create_model
    from learner.warmstart.tokenizer import ASSISTANT, END, build_tokenizer

    environment = ReplyLengths(**params)
    tokenizer = build_tokenizer(environment.alphabet())
    settings = InitModelSettings(
        **SHAPE,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
        environments=(EnvironmentSettings(name="reply_lengths:ReplyLengths", params=params),),
    )
    torch.manual_seed(seed)
    model: Any = create_model(settings, tokenizer)
    size, width = len(tokenizer), SHAPE["hidden_size"]
    number = tokenizer.convert_tokens_to_ids
    logits = torch.full((size, size), NEVER)  # [token, the next one]
    end = number(END)
    for c, (share, mean) in enumerate(zip(params["shares"], params["means"], strict=True)):
        own = [number(letter) for letter in ALPHABET[LETTERS * c : LETTERS * (c + 1)]]
        logits[number(ASSISTANT), own] = math.log(share / LETTERS)
        for letter in own:
            logits[letter, own] = math.log((1 - 1 / mean) / LETTERS)
            logits[letter, end] = math.log(1 / mean)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :size] = logits.T / math.sqrt(width)  # the norm makes a row of length sqrt(width)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    import yaml

    for recipe in sys.argv[1:]:
        data = yaml.safe_load(Path(recipe).read_text())
        folder = Path(data["model"]["path"])
        if not (folder / "config.json").is_file():
            print(f"model: {make(data['environments'][0]['params'], folder)}")


if __name__ == "__main__":
    main()
