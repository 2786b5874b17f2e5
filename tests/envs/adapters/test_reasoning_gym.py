"""Tests task families of reasoning-gym, through the subprocess."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.reasoning_gym.environment import ReasoningGym, _worker
from envs.adapters.reasoning_gym.worker import refused
from envs.isolation import killable
from envs.types import Message, Prompt, Verdict

# find_spec: an import here would take seconds, the tests only need the one in the subprocess.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra 'envs' is not installed"
)

FAMILIES: dict[str, Any] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "gcd": {},
    "spell_backward": {"max_word_len": 5},
    "letter_counting": {},
    "number_sorting": {},
    "binary_matrix": {},
    "countdown": {},
    "propositional_logic": {},
    "graph_color": {},
    "isomorphic_strings": {},
    "syllogism": {},
    "caesar_cipher": {},
}


@pytest.fixture(scope="module")
def tasks() -> ReasoningGym:
    return ReasoningGym(seed=4, families=FAMILIES, weights={"gcd": 5})


def by_family(tasks: ReasoningGym, split: Any, count: int) -> dict[str, Prompt]:
    return {(p := tasks.prompt(split, i)).env.partition("/")[2]: p for i in range(count)}


def verdict(tasks: ReasoningGym, prompt: Prompt, response: str) -> Verdict:
    result = tasks.open(prompt).reply(response)
    assert isinstance(result, Verdict)
    return result


def test_every_familys_answer_is_correct_and_another_is_not(tasks: ReasoningGym) -> None:
    prompts = by_family(tasks, "train", 200)
    assert set(prompts) == set(FAMILIES)
    for family, prompt in prompts.items():
        answer = tasks.demonstration(prompt, random.Random(0))
        for response in (answer, f"\n{answer} \n", f"I think so.\n<answer>{answer}</answer>"):
            assert (verdict(tasks, prompt, response).reward, family) == (1.0, family)
        for response in ("", "no idea", f"{answer} {answer}"):
            result = verdict(tasks, prompt, response)
            assert (result.reward, result.correct, family) == (0.0, False, family)


def test_items_are_the_same_in_a_new_subprocess(tasks: ReasoningGym) -> None:
    # isomorphic_strings walks over sets of strings: without a fixed string hash it gives others in every process
    names = ("isomorphic_strings", "gcd", "caesar_cipher")
    wanted = [tasks._prompt(family, "eval", i) for family in names for i in range(5)]
    killable.close()
    assert [tasks._prompt(family, "eval", i) for family in names for i in reversed(range(5))] == [
        wanted[5 * n + i] for n in range(3) for i in reversed(range(5))
    ]
    answer = wanted[0].task["answer"]
    assert verdict(tasks, wanted[0], answer).correct
    assert ReasoningGym(seed=5, families=["gcd"]).prompt("train", 0).messages != wanted[5].messages


def test_a_mixture_is_named_by_family_and_weighted(tasks: ReasoningGym) -> None:
    counts = Counter(tasks.prompt("train", i).env for i in range(400))
    assert 85 < counts["reasoning_gym/gcd"] < 165  # 5 of 16
    assert max(count for name, count in counts.items() if name != "reasoning_gym/gcd") < 60
    named = ReasoningGym(families="gcd", name="g", system="Brief.")
    assert named.prompt("train", 0).env == "g/gcd" and named.prompt("train", 0).messages[0] == Message(
        "system", "Brief."
    )


def test_parameters_reach_the_family(tasks: ReasoningGym) -> None:
    texts = [tasks._prompt("chain_sum", "train", i).messages[-1].content for i in range(30)]
    terms = [text.rpartition(": ")[2].removesuffix(" =") for text in texts]
    assert all(len(term.split()) == 3 for term in terms), terms


def params_of(tasks: ReasoningGym, family: str) -> dict[str, Any]:
    return json.loads(tasks._params[family])


def test_levels_are_the_librarys_curricula() -> None:
    names = {"chain_sum": {}, "gcd": {}, "caesar_cipher": {"max_words": 4}}
    tasks = ReasoningGym(families=names, levels={"chain_sum": 2, "gcd": {"num_terms": 1}})
    assert params_of(tasks, "chain_sum") == {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3}
    assert params_of(tasks, "gcd").items() >= {"min_numbers": 2, "max_numbers": 3}.items()
    assert params_of(tasks, "caesar_cipher") == {"max_words": 4}  # no level: its own defaults
    alone = ReasoningGym(families={"chain_sum": {"max_terms": 9}}, levels=2, ranges="upper_bound")
    assert params_of(alone, "chain_sum") == {"min_terms": 4, "max_terms": 9, "min_digits": 3, "max_digits": 3}
    for index in range(10):
        question = alone.prompt("train", index).messages[-1].content
        numbers = re.findall(r"\d+", question.rpartition(":")[2])
        assert 4 <= len(numbers) <= 9 and {len(number) for number in numbers} == {3}, question


def test_a_higher_level_is_harder() -> None:
    lengths = [
        sum(
            len(ReasoningGym(families="chain_sum", levels=level).prompt("train", i).messages[-1].content)
            for i in range(20)
        )
        for level in (0, 4)
    ]
    assert lengths[1] > lengths[0] * 1.2


def test_every_curriculum_gives_parameters() -> None:
    """In version 0.1.25 three curricula refuse some of their own levels; each refusal has to become one sentence."""
    refused = {}
    for family in _worker("families", timeout_s=60.0):
        outcome = _worker("curriculum", family, 1, "inclusive", timeout_s=60.0)
        if isinstance(outcome, str):
            assert outcome.startswith("has no curriculum") and family in ("acre", "gsm_symbolic", "list_functions")
        elif fault := _worker("fault", family, outcome, timeout_s=60.0):
            refused[family] = fault[0]
    assert set(refused) <= {"modulo_grid", "knight_swap", "caesar_cipher", "time_intervals"}, refused


def test_splits_are_disjoint_even_where_the_family_has_few_questions() -> None:
    small = ReasoningGym(families={"coin_flip": {"min_trials": 3, "max_trials": 6}})
    train, held = ({small.prompt(split, i).messages for i in range(100)} for split in ("train", "eval"))
    assert train and held and not train & held


def test_partial_credit_is_only_given_when_asked() -> None:
    strict, lenient = (ReasoningGym(families="gcd", partial_credit=asked) for asked in (False, True))
    prompt = strict.prompt("train", 0)
    response = f"{prompt.task['answer']} {'x' * 9}"
    assert verdict(strict, prompt, response).reward == 0.0
    result = verdict(lenient, prompt, response)
    assert 0.0 < result.reward < 1.0 and not result.correct and result.solution is None
    assert verdict(lenient, prompt, prompt.task["answer"]).reward == 1.0


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"families": "gdc"}, "unknown family 'gdc': did you mean 'gcd'?"),
        ({"families": []}, "families is empty"),
        ({"families": {"gcd": {"min_number": 3}}}, "no parameter 'min_number': did you mean 'min_numbers'?"),
        ({"families": {"gcd": {"seed": 3}}}, "no parameter 'seed'"),
        ({"families": {"gcd": {"min_numbers": -3}}}, "refuses its parameters: min_numbers must be"),
        ({"families": {"simple_equations": {"operators": ["+"]}}}, "'simple_equations' cannot make an item"),
        ({"families": {"gcd": [1]}}, "must be a dict"),
        ({"families": ["gcd"], "weights": {"lcm": 1}}, "'lcm', which is not among the families"),
        ({"families": ["gcd"], "weights": {"gcd": 0}}, "must be a number above 0"),
        ({"families": "composite"}, "unknown family 'composite'"),
        ({"families": "acre", "levels": 0}, "'acre' has no curriculum in this version"),
        ({"families": "chain_sum", "levels": 11}, "'chain_sum' has levels 0 to 10, not 11"),
        (
            {"families": "chain_sum", "levels": {"chain_sum": {"terms": 1}}},
            "no attribute 'terms' in its curriculum, only num_",
        ),
        (
            {"families": "chain_sum", "levels": {"chain_sum": {"num_digits": 10}}},
            "has levels 0 to 9 of num_digits, not 10",
        ),
        ({"families": "chain_sum", "levels": {"chain_sum": "hard"}}, "levels of 'chain_sum' is 'hard'"),
        (
            {"families": "chain_sum", "levels": {"chain_sun": 1}},
            "'chain_sun', which is not among the families: did you mean",
        ),
        ({"families": "chain_sum", "levels": 1, "ranges": "all"}, "it must be inclusive or upper_bound"),
    ],
)
def test_wrong_parameters_are_one_sentence(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        ReasoningGym(**params)
    assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.adapters.reasoning_gym.environment.PACKAGE", "not_installed_anywhere")
    with pytest.raises(ValueError, match=r"pip install 'isentrope\[envs\]'"):
        ReasoningGym(families="gcd")


def test_a_family_without_answers_says_so() -> None:
    tasks = ReasoningGym(families="rush_hour")
    with pytest.raises(ValueError, match="'rush_hour' gives no answer"):
        tasks.demonstration(tasks.prompt("train", 0), random.Random(0))


def test_scorers_that_evaluate_never_see_a_call(tmp_path: Path) -> None:
    tasks = ReasoningGym(families=["n_queens", "countdown"])
    for family in ("n_queens", "countdown"):
        prompt = tasks._prompt(family, "train", 0)
        for call in (f"open('{tmp_path / 'made'}', 'w')", f"__import__('os').system('touch {tmp_path / 'made'}')"):
            assert verdict(tasks, prompt, call).reward == 0.0
    assert not (tmp_path / "made").exists()
    assert (
        refused("puzzle24", "9**9**9") and refused("puzzle24", "99999!") and not refused("puzzle24", "10*(8 - 5) - 6")
    )
    assert refused("simple_integration", "x.__class__") and not refused("simple_integration", "-5*x**2/2 + C")
