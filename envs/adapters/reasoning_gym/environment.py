"""Adapts the task families of reasoning-gym (about a hundred), one alone or several as a weighted mixture.

    {"families": "spell_backward"}
    {"families": {"chain_sum": {"max_digits": 2}, "gcd": {}}, "weights": {"chain_sum": 3, "gcd": 1}}
    {"families": ["chain_sum", "gcd"], "levels": {"chain_sum": 2, "gcd": {"num_terms": 1}}}

The library runs in the subprocess of envs/isolation/killable.py, see worker.py. Its scorers are foreign code and some
evaluate the response: do not use them on text from people you do not trust.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections.abc import Iterable
from typing import Any

from envs.answers.extract import extract
from envs.builtin.questions.environment import PRINTABLE
from envs.checks import check_choice, check_positive
from envs.isolation import killable
from envs.suggest import did_you_mean
from envs.tasks import OneReply, check_index, task_random
from envs.types import Message, Prompt, Split, Verdict

PACKAGE = "reasoning_gym"
DRAW_TIMEOUT_S = 300.0  # a few families search for seconds for one item
RANGES = ("inclusive", "upper_bound")
SAMPLES = 16  # prompts of each family that alphabet() looks at


class ReasoningGym:
    """Asks tasks of reasoning-gym: of one family, several, or a weighted mixture.

    families        a name, a list of names, or a dict name -> parameters of that family
    levels          level of the library's curricula, from 0: one for all families, or name -> level, or name -> {attribute: level}.
                    A family's own parameters override its curriculum's
    ranges          what a curriculum's range covers at a level: "inclusive" of the easier ones, or "upper_bound": that level alone
    weights         name -> relative frequency of a family; 1 where not given
    partial_credit  reward with the score of the family's scorer, which may be a substring's share; otherwise 1.0 for a perfect
                    score and 0.0 for anything else. `correct` always means a perfect score
    system          text of a system message, none by default
    timeout_s       seconds a scorer may take before the response counts as wrong
    name            metrics are named "name/family"
    Raises ValueError, one sentence with the nearest name, for unknown families and parameters.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        families: str | list[str] | dict[str, Any],
        levels: int | dict[str, Any] | None = None,
        ranges: str = "inclusive",
        weights: dict[str, Any] | None = None,
        partial_credit: bool = False,
        system: str = "",
        timeout_s: float = 10.0,
        name: str = "reasoning_gym",
    ) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise ValueError(
                "the environment 'reasoning_gym' needs a package that is not installed: pip install 'isentrope[envs]'"
            )
        check_positive("reasoning_gym", timeout_s=timeout_s)
        check_choice("reasoning_gym", "ranges", ranges, RANGES)
        self._params = _checked(families, levels, ranges)
        self._weights = _weights(weights or {}, list(self._params))
        self._seed = seed
        self._partial_credit = partial_credit
        self._system = system
        self._timeout_s = timeout_s
        self._name = name
        for family in self._params:
            try:
                self._prompt(family, "train", 0)
            except killable.KillableError as error:  # parameters that pass the family's own check and still fail
                raise ValueError(f"reasoning_gym: the family '{family}' cannot make an item: {error}") from error

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        (family,) = rng.choices(list(self._weights), weights=list(self._weights.values()))
        return self._prompt(family, split, index)

    def open(self, prompt: Prompt) -> OneReply:
        return OneReply(lambda text: self._score(text, prompt.task["family"], prompt.task["item"]))

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns the item's own answer, one only, even where the family accepts others.

        Raises ValueError for the families that give none (rush_hour, boxnet).
        """
        answer = prompt.task["answer"]
        if answer is None:
            raise ValueError(f"the family '{prompt.task['family']}' gives no answer to demonstrate")
        return answer

    def alphabet(self) -> Iterable[str]:
        """Returns printable ASCII, the newline, and the characters of the first prompts and answers of each family.

        For most families these add nothing; for the few that draw with symbols they are a sample and may be incomplete.
        """
        characters = set(PRINTABLE) | set(self._system)
        for family in self._params:
            for index in range(SAMPLES):
                prompt = self._prompt(family, "train", index)
                characters.update(prompt.messages[-1].content, prompt.task["answer"] or "")
        return sorted(characters)

    def _prompt(self, family: str, split: Split, index: int) -> Prompt:
        drawn = _worker("draw", family, self._params[family], self._seed, split, index, timeout_s=DRAW_TIMEOUT_S)
        if drawn is None:
            raise ValueError(
                f"reasoning_gym/{family}: none of its items belongs to the {split} split; with these parameters it "
                "has too few different questions"
            )
        system = (Message("system", self._system),) if self._system else ()
        task = {"family": family, "item": drawn["item"], "answer": drawn["answer"]}
        messages = (*system, Message("user", drawn["question"]))
        return Prompt(f"{self._name}/{family}", split, index, messages, task)

    def _score(self, text: str, family: str, item: list[int]) -> Verdict:
        # Raw first: an answer may have several lines, or spaces that matter.
        texts = list(dict.fromkeys((text, text.strip(), extract(text))))
        params = self._params[family]
        _worker("prepare", family, params, self._seed, item, timeout_s=DRAW_TIMEOUT_S)
        try:
            score, winner = _worker("score", family, params, self._seed, item, texts, timeout_s=self._timeout_s)
        except killable.KillableError as error:  # the scorer raised or hung on the response, so it is not an answer
            return Verdict(0.0, detail=str(error)[:200])
        if not math.isfinite(score) or score < 1.0:
            return Verdict(score if self._partial_credit and math.isfinite(score) else 0.0, detail=f"score {score:g}")
        # A lone surrogate cannot be written to a file.
        return Verdict(1.0, correct=True, solution=" ".join(winner.split()).encode("utf-8", "replace").decode())


def _worker(function: str, *args: Any, timeout_s: float) -> Any:
    return killable.call(f"envs.adapters.reasoning_gym.worker:{function}", args, timeout_s, preload=(PACKAGE,))


def _checked(
    families: str | list[str] | dict[str, Any], levels: int | dict[str, Any] | None, ranges: str
) -> dict[str, str]:
    """Returns family -> its parameters as JSON text, which is the key of the subprocess's caches."""
    names = [families] if isinstance(families, str) else list(families)
    if not names:
        raise ValueError("reasoning_gym: families is empty, name at least one")
    known = _worker("families", timeout_s=DRAW_TIMEOUT_S)
    checked: dict[str, str] = {}
    for family in names:
        if family not in known:
            raise ValueError(
                f"reasoning_gym: unknown family '{family}': {did_you_mean(str(family), known)}there are {len(known)}"
            )
        params = (families[family] or {}) if isinstance(families, dict) else {}
        if not isinstance(params, dict):
            raise ValueError(f"reasoning_gym: the parameters of '{family}' are {params!r}, they must be a dict")
        params = {**_curriculum(family, levels, ranges), **params}
        fault = _worker("fault", family, params, timeout_s=DRAW_TIMEOUT_S)
        if fault:
            sentence, unknown, parameters = fault
            hint = f": {did_you_mean(unknown, parameters)}it has {', '.join(parameters)}" if unknown else ""
            raise ValueError(f"reasoning_gym: the family '{family}' {sentence}{hint}")
        checked[family] = json.dumps(params, sort_keys=True)
    for family in levels if isinstance(levels, dict) else ():
        if family not in checked:
            hint = f"{did_you_mean(str(family), checked)}they are {', '.join(checked)}"
            raise ValueError(f"reasoning_gym: levels has '{family}', which is not among the families: {hint}")
    return checked


def _curriculum(family: str, levels: int | dict[str, Any] | None, ranges: str) -> dict[str, Any]:
    """Returns the family's parameters at its level; {} if it has none."""
    level = levels.get(family) if isinstance(levels, dict) else levels
    if level is None:
        return {}
    if isinstance(level, bool) or not isinstance(level, int | dict):
        raise ValueError(
            f"reasoning_gym: levels of '{family}' is {level!r}, it must be a level or {{attribute: level}}"
        )
    parameters = _worker("curriculum", family, level, ranges, timeout_s=DRAW_TIMEOUT_S)
    if isinstance(parameters, str):  # a sentence on why there are none
        raise ValueError(f"reasoning_gym: the family '{family}' {parameters}")
    return parameters


def _weights(weights: dict[str, Any], families: list[str]) -> dict[str, float]:
    for family, weight in weights.items():
        if family not in families:
            hint = f"{did_you_mean(family, families)}they are {', '.join(families)}"
            raise ValueError(f"reasoning_gym: weights has '{family}', which is not among the families: {hint}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"reasoning_gym: the weight of '{family}' is {weight!r}, it must be a number above 0")
    return {family: float(weights.get(family, 1.0)) for family in families}
