"""Tests that a tokenizer that cannot be used is refused in one sentence, before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fuzz.material import make_models

from envs.types import Message
from orchestration.errors import ConfigError
from orchestration.sampling.codec import load_codec


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def test_both_models_can_be_used(models: list[Path]) -> None:
    for model in models:
        codec = load_codec("model.path", str(model), chat_template=True)
        ids = codec.render([Message("system", "a"), Message("user", "1+2")])
        assert ids and codec.render_observation([Message("user", "1")], [Message("tool", "2")], ids[-1:])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "null"),
        ("tokenizer_config.json", "[" * 5000),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": null}'),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": ["a"]}'),
        ("chat_template.jinja", "{{ raise_exception('no') }}"),
        ("chat_template.jinja", "{{ 1 / 0 }}"),
        ("chat_template.jinja", "{{ messages[7].content }}"),
        ("chat_template.jinja", "{% for"),
        ("chat_template.jinja", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    ],
)
def test_what_a_model_folder_may_hold(models: list[Path], tmp_path: Path, file: str, content: str) -> None:
    for model in models:
        folder = tmp_path / model.name
        shutil.copytree(model, folder)
        (folder / file).write_text(content)
        with pytest.raises(ConfigError) as caught:
            load_codec("model.path", str(folder), chat_template=True)
        text = str(caught.value)
        assert text.startswith("the tokenizer of model.path ") and "cannot be used: " in text
        assert "\n" not in text and len(text.encode()) < 2000


def test_a_template_that_fails_later_names_the_roles_it_fails_on(models: list[Path], tmp_path: Path) -> None:
    refusal = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    template = "{% for m in messages %}" + refusal + "{{ m.content }}{% endfor %}"
    shutil.copytree(models[1], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    codec = load_codec("model.path", str(tmp_path / "model"), chat_template=True)
    with pytest.raises(
        ConfigError, match=r"chat template of \S+ fails on messages of user, tool: TemplateError: no tools; use"
    ):
        codec.render_observation([Message("user", "1")], [Message("tool", "2")], [])
