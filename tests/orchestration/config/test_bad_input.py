"""Tests that what nobody should write is refused in one sentence: each case was a traceback, a hang or a message of megabytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.builders import config_data
from support.configs import written

from envs.quoting import quoted, shortened
from orchestration.config.loader import parse_overrides, read_yaml
from orchestration.config.preflight import run_preflight
from orchestration.config.run_config import load_config, validate
from orchestration.errors import ConfigError

BOMB = "[&a [x,x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run_preflight(load_config(recipe, overrides))
    text = str(caught.value)
    assert "\n" not in text and len(text.encode()) < 2000
    return text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"learner.lr={'9' * 5000}", "learner.lr is '999"),
        (f"run.seed={'9' * 30}", "run.seed is '999"),
        ("learner.lr=!!int x", r"learner.lr is '!!int x'"),
        ("learner.lr=!!float x", r"learner.lr is '!!float x'"),
        ("learner.lr=!!timestamp x", r"learner.lr is '!!timestamp x'"),
        ("learner.lr=!!bool x", r"learner.lr is '!!bool x'"),
        ("learner.lr=!!int ''", r"learner.lr is "),
        ("learner.lr=" + "[" * 5000, "learner.lr is '[[[[["),
        ("learner.lr=" + "[" * 60 + "]" * 60, "learner.lr is '[[[[["),
        ("a." * 5000 + "b=1", "it has 5001 parts and a key has 50 at most"),
        ("environments.²=x", "override environments.²: '²' is not an index into a list of 2"),
        (f"environments.{'9' * 5000}=x", "is not an index into a list of 2"),
        ("model.path=~nosuchuser", "the model folder ~nosuchuser does not exist"),
        (f"model.path=/{'x' * 5000}", "does not exist"),
        ("generators.count=100000000", "generators.count is 100000000: input should be less than or equal to 10000"),
        ("verifiers.count=100000000", "verifiers.count is 100000000: input should be less than or equal to 10000"),
        ("learner.ranks=100000000", "learner.ranks is 100000000: input should be less than or equal to 10000"),
        (f"run.name={BOMB}]", "override run.name: it has more than 100,000 values, aliases unfolded"),
        ("environments.0.params=&a {b: *a}", "override environments.0.params: it has more than 50 levels"),
        ("environments.0.params.x=!!binary aGk=", "is of type bytes"),
        ("environments.0.params={1: 2}", "the key 1 is int, not text"),
        ("run.dir=a\0b", "NUL"),
        ("environments.0.params={a: 1, a: 2}", "environments.0.params is '{a: 1, a: 2}'"),
        ('run.dir="\\ud800"', "half a surrogate pair"),
    ],
)
def test_an_override(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(written(tmp_path, config_data()), override)


def test_a_date_is_text_as_everything_that_is_no_number_is(tmp_path: Path) -> None:
    for name in ("2026-02-30", "2026-02-28"):
        config = load_config(written(tmp_path, config_data()), [f"run.name={name}"])
        assert config.run.name == name
        assert load_config(written(tmp_path, config.to_yaml())) == config


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no recipe file 'xxx" in refused("x" * 5000)
    assert "/proc/self/mem cannot be read" in refused("/proc/self/mem")
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\xfd")
    assert "is not UTF-8 text: invalid start byte at byte 0" in refused(str(tmp_path / "recipe.yaml"))
    for deep in ("[" * 5000, "- " * 5000, "{a: " * 5000, "? " * 5000, "\n".join(" " * i + "a:" for i in range(5000))):
        assert "it has more than 50 levels" in refused(written(tmp_path, f"run:\n {deep}"))
    assert "cannot be read as int" in refused(written(tmp_path, f"run: {{seed: {'9' * 5000}}}"))
    assert "more than 100,000 values" in refused(written(tmp_path, f"run: {BOMB}]"))


def test_a_key_that_is_there_twice_is_refused_and_one_that_a_merge_brings_is_not(tmp_path: Path) -> None:
    assert "the key 'lr' is there twice: leave one" in refused(
        written(tmp_path, "learner:\n  lr: 1\n  updates: 2\n  lr: 3")
    )
    merged = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  x: 3\nc:\n  <<: *b\n  y: 4"
    assert read_yaml(Path(written(tmp_path, merged)))["c"] == {"x": 3, "y": 4}


def test_merges_of_merges_are_bounded(tmp_path: Path) -> None:
    levels = "\n".join(f"b{i}: &b{i}\n  <<: [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 12))
    assert "its merges make more than 100,000 values" in refused(written(tmp_path, f"b0: &b0 {{x: 1}}\n{levels}"))


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    data = config_data()
    del data["environments"]
    text = yaml.safe_dump(data) + "environments: [&a {name: countdown, weight: 1.0}, *a]"
    config = load_config(written(tmp_path, text), ["environments.0.weight=3"])
    assert [e.weight for e in config.environments] == [3, 1]
    assert read_yaml(Path(written(tmp_path, "a: &x [1]\nb: *x"))) == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "is not JSON (it is nested too deeply)"),
        ("[]", "it holds [], not an object"),
        ("null", "it holds None, not an object"),
        ('{"text_config": null}', "its text_config is None, not an object"),
        ('{"max_position_embeddings": ', "is not JSON"),
        ('{"rope_scaling": ' + '{"a":' * 400 + "1" + "}" * 400 + "}", ""),
    ],
)
def test_a_models_config_json(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    config = config_data(model={"path": str(tmp_path)})
    if not said:
        return run_preflight(validate(config))
    assert said in refused(written(tmp_path, config))
    return None


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, (20).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"]
)
def test_weights_whose_header_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    said = refused(written(tmp_path, config_data(model={"path": str(tmp_path)})))
    assert f"{tmp_path}/model.safetensors cannot be loaded: " in said and said.endswith("copy the model again")


def test_weights_that_were_cut(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(whole)
    config = config_data(model={"path": str(tmp_path)})
    run_preflight(validate(config))
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    assert "cannot be loaded" in refused(written(tmp_path, config))


def test_weights_of_which_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    for name in names:
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    config = config_data(model={"path": str(tmp_path)})
    run_preflight(validate(config))
    (tmp_path / names[1]).unlink()
    said = refused(written(tmp_path, config))
    assert f"names 2 files of weights and 1 are not there, such as '{names[1]}'" in said
    for odd in ("x" * 5000, "\0", "", "/", 7):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": odd}}))
        assert "names 1 files of weights and 1 are not there" in refused(written(tmp_path, config))
    shutil.copy(tmp_path / names[0], tmp_path / "model.safetensors")
    run_preflight(validate(config))  # an index of other files beside one that has everything
    (tmp_path / "model.safetensors").unlink()
    for odd in ([], None, "x"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": odd}))
        run_preflight(validate(config))


def test_long_values_are_shown_by_their_ends() -> None:
    assert quoted("a") == "'a'" and quoted([1, "b"]) == "[1, 'b']"
    for huge in ("x" * 10**6, ["x" * 1000] * 1000, 10**3000, {str(i): "y" * 100 for i in range(1000)}):
        assert len(quoted(huge)) <= 120
    assert shortened("abc" * 100, 20).startswith("abc") and len(shortened("abc" * 100, 20)) <= 20


def test_words_that_are_no_overrides_are_shown_in_part() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["x" * 10_000])
    assert len(str(caught.value)) < 500
