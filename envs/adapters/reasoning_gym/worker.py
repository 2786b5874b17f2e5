"""Runs reasoning-gym in the subprocess of envs/isolation/killable.py; arguments and results are JSON values.

Why in a subprocess: some families iterate over sets of strings, so only a fixed string hash (the subprocess has one) gives
the same item in every process; some scorers pass the response to sympy, which may never return; and the import takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import lru_cache
from typing import Any

from envs.tasks import in_split, stable_hash
from envs.types import Split

CHUNK = 4096  # items of one dataset object; a few families build all of them at once, one refuses more than 20,000
TRIES = 16  # items that one prompt index owns in each plane
PLANES = 16  # 256 tries: an eval prompt is missed with probability 0.8^256

NOT_TASKS = ("composite",)  # a mixture of families: this adapter has its own mixtures

# Their scorers run the response through eval(), or through sympy's parse_expr, which uses eval(). Characters that a call or
# an attribute needs are refused first: this stops the obvious attacks, it does not make the scorers safe for hostile text.
EVALUATE = frozenset(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"))
PARSE = frozenset(("intermediate_integration", "polynomial_multiplication", "simple_integration"))
GAMES = frozenset(("countdown", "puzzle24"))  # use parse_expr too; an answer needs neither powers nor factorials
_SUM = re.compile(r"[-+*/(). 0-9]*")

# Metadata keys under which families without an "answer" keep a correct one.
_ANSWER_KEYS = ("example_correct_answer", "example_answer", "possible_answer")


def families() -> list[str]:
    """Returns every task family of the installed version."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - set(NOT_TASKS))


def fault(family: str, params: dict[str, Any]) -> list[Any]:
    """Returns [] if the parameters can be used, else [what is wrong, the unknown parameter or null, the known ones]."""
    from reasoning_gym.factory import DATASETS

    config_class = DATASETS[family][1]
    known = sorted({field.name for field in dataclasses.fields(config_class)} - {"seed", "size"})
    for key in params:
        if key not in known:
            return [f"has no parameter '{key}'", key, known]
    try:
        config = config_class(**params)
        if hasattr(config, "validate"):
            config.validate()
    except (AssertionError, TypeError, ValueError) as error:  # raised by the families' own checks
        return [f"refuses its parameters: {error}", None, known]
    return []


def curriculum(family: str, levels: int | dict[str, int], mode: str) -> Any:
    """Returns the parameters of the family's curriculum at these levels, or a sentence on why there are none.

    levels  level of every attribute (limited to each one's highest, as in the library), or attribute -> level
    mode    what a range of the library becomes: "inclusive", from its lowest level up; "upper_bound", that level alone
    """
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import create_curriculum, has_curriculum

    if not has_curriculum(family):
        return "has no curriculum in this version of reasoning-gym"
    plan = create_curriculum(family)
    if isinstance(levels, int):
        highest = max(len(attribute.levels) for attribute in plan.attributes.values()) - 1
        if not 0 <= levels <= highest:
            return f"has levels 0 to {highest}, not {levels}"
        plan.set_global_level(levels)
    else:
        for name, level in levels.items():
            if name not in plan.attributes:
                return f"has no attribute '{name}' in its curriculum, only {', '.join(plan.attributes)}"
            highest = len(plan.attributes[name].levels) - 1
            if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= highest:
                return f"has levels 0 to {highest} of {name}, not {level!r}"
            plan.set_attr_level(name, level)
    config = plan.generate_configuration(context=DefaultCurriculumContext(RangeAttributeMode(mode)))
    fields: set[str] = set()
    for attribute in plan.attributes.values():
        names = ("field_name", "lower_field_name", "upper_field_name")
        fields.update(getattr(attribute, name) for name in names if hasattr(attribute, name))
    return {field: getattr(config, field) for field in sorted(fields)}


def draw(family: str, params: str, seed: int, split: Split, index: int) -> dict[str, Any] | None:
    """Returns the index-th item of a split: its question, a correct answer (or null) and its number; null if there is none.

    The question's text decides the split, see tasks.held_out: items of different seeds may ask the same.
    """
    for plane in range(PLANES):
        for number in range(index * TRIES, (index + 1) * TRIES):
            try:
                entry = _item(family, params, seed, plane, number)
            except IndexError:
                # word_ladder raises "exhausted" and shortens the dataset, so later items would depend on this one.
                _dataset.cache_clear()
                continue
            if in_split(entry["question"], split):
                return {
                    "question": entry["question"],
                    "answer": _answer(family, params, seed, plane, entry),
                    "item": [plane, number],
                }
    return None


def prepare(family: str, params: str, seed: int, item: list[int]) -> None:
    """Makes the item in advance, so that `score` spends its time limit on scoring alone."""
    _item(family, params, seed, *item)


def score(family: str, params: str, seed: int, item: list[int], texts: list[str]) -> list[Any]:
    """Returns [best score of the texts, the text that earned it]. The first that scores 1.0 wins."""
    dataset, entry = _dataset(family, params, seed, item[0], item[1] // CHUNK), _item(family, params, seed, *item)
    best: list[Any] = [0.0, ""]
    for text in texts:
        if not refused(family, text):
            value = float(dataset.score_answer(text, entry))
            if value > best[0]:
                best = [min(value, 1.0), text]
        if best[0] >= 1.0:
            break
    return best


def refused(family: str, text: str) -> bool:
    """Returns whether the text must not reach a scorer that evaluates it."""
    if family in EVALUATE:
        return "(" in text or "{" in text or "__" in text
    if family in GAMES:
        return "**" in text or not _SUM.fullmatch(text)
    return family in PARSE and any(mark in text for mark in ("__", '"', "'", "`", "\\", "lambda", "[", "{"))


@lru_cache(maxsize=256)
def _dataset(family: str, params: str, seed: int, plane: int, chunk: int) -> Any:
    from reasoning_gym import create_dataset

    own_seed = stable_hash(f"{seed}/{family}/{plane}/{chunk}") % 2**31  # numpy takes 32 bits
    return create_dataset(family, seed=own_seed, size=CHUNK, **json.loads(params))


@lru_cache(maxsize=1024)
def _item(family: str, params: str, seed: int, plane: int, number: int) -> Any:
    chunk, position = divmod(number, CHUNK)
    return _dataset(family, params, seed, plane, chunk)[position]


def _answer(family: str, params: str, seed: int, plane: int, entry: dict[str, Any]) -> str | None:
    if isinstance(entry["answer"], str):
        return entry["answer"]
    for key in _ANSWER_KEYS:
        value = entry["metadata"].get(key)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            if _dataset(family, params, seed, plane, 0).score_answer(text, entry) == 1.0:
                return text
    return None
