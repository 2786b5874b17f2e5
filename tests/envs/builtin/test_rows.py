"""Tests data sets in their usual formats, with rows like the real ones: columns, duplicates, overlap."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from envs.builtin.questions.environment import Questions
from envs.builtin.questions.rows import CONVENTIONS, Row, columns_of, read
from envs.types import Message, Split, Verdict

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def dapo(problem: str, answer: str, index: int = 0) -> dict[str, Any]:
    """Returns a row of BytedTsinghua-SIA/DAPO-Math-17k, with the columns of its card and the wording of the data."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": BEFORE + problem + AFTER, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"9a9b6eb4-{index}"},
    }


# form -> (a row, the question a model sees, the reference)
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "aime": (
        {
            "id": 60,
            "problem": "Find $m+n$.",
            "solution": "It is $\\boxed{204}$.",
            "answer": "204",
            "url": "",
            "year": "2024",
        },
        "Find $m+n$.",
        "204",
    ),
    "dapo": (dapo("Find $k$.", "34"), BEFORE + "Find $k$." + AFTER, "34"),
    "gsm8k": (
        {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24 clips in May.\nThat is 1,072.\n#### 1,072"},
        "How many clips?",
        "1,072",
    ),
    "math": (
        {
            "problem": "What is $x$?",
            "level": "Level 5",
            "type": "Algebra",
            "solution": "So \\boxed{1}, no: $\\boxed{\\frac{1}{2}}$.",
        },
        "What is $x$?",
        "\\frac{1}{2}",
    ),
}


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


def texts(tasks: Questions, split: Split) -> list[str]:
    return [tasks.prompt(split, i).messages[-1].content for i in range(tasks.size(split) or 0)]


def verdict(tasks: Questions, response: str) -> Verdict:
    answer = tasks.open(tasks.prompt("train", 0)).reply(response)
    assert isinstance(answer, Verdict)
    return answer


@pytest.mark.parametrize("form", CONVENTIONS)
def test_a_convention_finds_question_and_answer(form: str, tmp_path: Path) -> None:
    data, question, answer = ROWS[form]
    (row,) = read(lines(tmp_path / "a.jsonl", [data]), columns=columns_of(form))
    assert (row.messages, row.answer) == ((Message("user", question),), answer)
    tasks = Questions(path=lines(tmp_path / "a.jsonl", [data]), columns=form, eval_fraction=0.0, symbolic=False)
    assert verdict(tasks, f"So.\nAnswer: {answer}").correct
    assert verdict(tasks, f"So it is \\boxed{{{answer}}}.").correct
    assert not verdict(tasks, "Answer: 7").correct


def test_answers_are_numbers_or_text_and_columns_have_any_case(tmp_path: Path) -> None:
    """MathArena's answers are integers, Maxwell-Jia's columns are capitalised, AIME's are written with three digits."""
    rows = [
        {"problem": "a", "answer": 73},
        {"ID": "2024-I-4", "Problem": "b", "Answer": 116},
        {"problem": "c", "answer": "073"},
    ]
    parsed = list(read(lines(tmp_path / "a.jsonl", rows), columns=columns_of("aime")))
    assert [(row.problem, row.answer) for row in parsed] == [("a", "73"), ("b", "116"), ("c", "073")]
    tasks = Questions(path=lines(tmp_path / "a.jsonl", rows[2:]), columns="aime", eval_fraction=0.0, symbolic=False)
    assert verdict(tasks, "Answer: 73").correct


def test_maths_answer_goes_before_the_solution_and_boxes_may_be_bare(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "solution": "\\boxed{1}", "answer": "2"},  # MATH-500 has both
        {"problem": "b", "solution": "Thus $\\boxed 9$."},
    ]
    assert [row.answer for row in read(lines(tmp_path / "a", rows), columns=columns_of("math"))] == ["2", "9"]


@pytest.mark.parametrize(
    ("form", "data", "fault"),
    [
        ("math", {"problem": "a", "solution": "It is 3."}, 'no answer is marked in "It is 3."'),
        ("gsm8k", {"question": "a", "answer": "3"}, "no answer is marked"),
        (
            "dapo",
            {"prompt": [{"role": "user", "content": "a"}], "reward_model": {}},
            "reward_model.ground_truth is missing",
        ),
        ("dapo", {"prompt": [], "reward_model": {"ground_truth": "1"}}, "at least one message"),
        ("aime", {"text": "a", "answer": 1}, "problem or question is missing; the columns are text, answer"),
        ("aime", {"problem": "a", "answer": True}, '"answer" is true'),
        ("aime", [1], "the row is a list"),
        (None, {"problem": "a", "answer": "1"}, "its columns are those of columns=aime"),
        (None, {"problem": "a", "solution": "\\boxed{1}"}, "its columns are those of columns=math"),
        (None, dapo("a", "1"), "its columns are those of columns=dapo"),
    ],
)
def test_a_row_that_does_not_fit_is_named(form: str | None, data: Any, fault: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", [data])
    with pytest.raises(ValueError) as caught:
        Questions(path=path, columns=form)
    assert "mine.jsonl, line 1: " in str(caught.value) and fault in str(caught.value), str(caught.value)


def test_columns_of_ones_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "a", [{"in": {"text": "2+2?"}, "out": 4}])
    tasks = Questions(
        path=path, columns={"prompt": "in.text", "answer": "out"}, eval_fraction=0.0, template="{prompt} Say {it}."
    )
    assert texts(tasks, "train") == ["2+2? Say {it}."]
    for wrong in ("amc", {"prompt": "a"}, {"prompt": "a", "answer": 3}):
        with pytest.raises(ValueError, match="columns is"):
            columns_of(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has to be in it"):
        Questions(path=path, template="no place")


def test_dapos_hundredfold_rows_are_one_and_its_contradictions_none(tmp_path: Path) -> None:
    rows = [dapo(f"p{i % 7}", str(i % 7), i) for i in range(700)] + [
        dapo("both", "1"),
        dapo("both", "2"),
        dapo("p1", "01"),
    ]
    path = lines(tmp_path / "dapo.jsonl", rows)
    tasks = Questions(path=path, columns="dapo", eval_fraction=0.0)
    assert sorted(texts(tasks, "train")) == [f"{BEFORE}p{i}{AFTER}" for i in range(7)]
    assert tasks.dropped == {"duplicates": 694, "conflicts": 1, "overlap": 0}
    with pytest.raises(
        ValueError, match=r"dapo.jsonl:702 asks what dapo.jsonl:701 asks and answers '2' where that answers '1'"
    ):
        Questions(path=path, columns="dapo", conflicts="error")
    with pytest.raises(ValueError, match="conflicts is 'keep', it must be error or drop"):
        Questions(path=path, columns="dapo", conflicts="keep")


def test_overlap_is_seen_through_instructions_and_spaces(tmp_path: Path) -> None:
    train = lines(tmp_path / "dapo.jsonl", [dapo("Find  $m+n$ .", "204"), dapo("Find $k$.", "34")])
    held = lines(tmp_path / "aime.jsonl", [{"problem": "find $m + n$.", "answer": 204}])
    parts: dict[str, Any] = {
        "path": train,
        "columns": "dapo",
        "eval_path": held,
        "eval_columns": "aime",
        "template": "{prompt}!",
    }
    with pytest.raises(ValueError, match=r"aime.jsonl:1 asks what dapo.jsonl:1 asks, and so do 1 of 2 train questions"):
        Questions(**parts)
    tasks = Questions(**parts, overlap="drop")
    assert texts(tasks, "train") == [f"{BEFORE}Find $k$.{AFTER}"] and texts(tasks, "eval") == ["find $m + n$.!"]
    assert tasks.dropped["overlap"] == 1
    with pytest.raises(ValueError, match="all 1 train questions are in the eval split"):
        Questions(**{**parts, "path": lines(tmp_path / "one", [dapo("Find $m+n$.", "204")])}, overlap="drop")


def test_a_conversation_is_compared_as_a_whole(tmp_path: Path) -> None:
    def chat(first: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "?"},
            {"role": "user", "content": "Go on."},
        ]

    train, held = (lines(tmp_path / name, [{"messages": chat(name), "answer": 1}]) for name in ("a", "b"))
    assert Questions(path=train, eval_path=held).size("train") == 1


def test_a_list_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "a", "answer": 1}]))
    assert [row.where for row in read(str(tmp_path / "a.json"))] == ["a.json:0"]
    (tmp_path / "b.json").write_text("[1")
    with pytest.raises(ValueError, match=r"b\.json is not JSON"):
        list(read(str(tmp_path / "b.json")))
    with pytest.raises(ValueError, match="is one file and has no splits"):
        list(read(str(tmp_path / "a.json"), split="test"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Records what load_dataset is asked for; like the real one it returns a mapping split -> rows."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, config: str | None) -> dict[str, list[Any]]:
        asked.append((name, config))
        if name == "nobody/nothing":
            raise FileNotFoundError("Dataset 'nobody/nothing'\ndoesn't exist")
        made = {
            split: [{"question": f"{split} {i}", "answer": f"#### {i}"} for i in range(3)]
            for split in ("train", "test")
        }
        return {"train": made["train"]} if name == "one" else made

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_data_set_of_the_hub_by_name_configuration_and_split(hub: list[tuple[str, str | None]]) -> None:
    tasks = Questions(path="hf:openai/gsm8k:main", columns="gsm8k", split="train", eval_split="test")
    assert sorted(texts(tasks, "train")) == ["train 0", "train 1", "train 2"]
    assert texts(tasks, "eval") == ["test 0", "test 1", "test 2"]
    assert tasks.prompt("eval", 0).task["where"] == "openai/gsm8k:0"
    assert hub == [("openai/gsm8k", "main")] * 2
    assert len(list(read("hf:one", columns=columns_of("gsm8k")))) == 3
    for split, words in ((None, "has the splits train, test: give split"), ("dev", "not 'dev'")):
        with pytest.raises(ValueError, match=words):
            list(read("hf:openai/gsm8k", split=split))
    with pytest.raises(
        ValueError, match="hf:nobody/nothing cannot be loaded: FileNotFoundError: Dataset 'nobody/nothing' doesn't"
    ):
        list(read("hf:nobody/nothing"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    for path, package in (
        ("hf:a/b", "datasets"),
        (str(tmp_path / "saved"), "datasets"),
        (str(tmp_path / "a.parquet"), "pyarrow"),
    ):
        with pytest.raises(ValueError, match=rf"needs the package '{package}'.*isentrope\[datasets\]"):
            list(read(path))
    with pytest.raises(ValueError, match="has neither what save_to_disk writes nor"):
        list(read(str(tmp_path)))


def test_saved_data_sets_and_parquet_as_the_library_writes_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([dapo(f"p{i}", str(i), i) for i in range(4)])
    # With fingerprints: the library would pickle its table for one, which not every version of pyarrow lets it.
    made, first = (
        datasets.Dataset(datasets.table.InMemoryTable(part), fingerprint=name)
        for name, part in (("a", table), ("b", table.slice(0, 1)))
    )
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": first}).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "many" / "data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "file.parquet")
    parquet.write_table(table, tmp_path / "many" / "data" / "train-00000-of-00002.parquet")
    parquet.write_table(table.slice(1, 1), tmp_path / "many" / "data" / "test-00000-of-00001.parquet")

    def answers(path: str, split: str | None = None) -> list[str]:
        parsed: list[Row] = list(read(str(tmp_path / path), columns=columns_of("dapo"), split=split))
        return [row.answer for row in parsed]

    rows_read = [answers("one"), answers("two", "train"), answers("file.parquet"), answers("many", "train")]
    assert rows_read == [["0", "1", "2", "3"]] * 4
    assert answers("two", "test") == ["0"] and answers("many", "test") == ["1"]
    with pytest.raises(ValueError, match="two has the splits train, test: give split"):
        answers("two")
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read"):
        answers("broken.parquet")
