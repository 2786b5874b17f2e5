"""Puts words around the prompts of any environment, for a pretrained model that does not know the task's own notation.

Every environment takes these parameters, beside those of its constructor; where a constructor has one of the same name, that one
is meant.

system    text of a system message before the prompt
template  text around the prompt's last message: "Compute {prompt} and answer with the number alone."
shots     how many solved examples go before the prompt, as turns of the conversation: tasks of the train split, with the
          environment's own demonstrations, the same for every prompt
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from envs.base import Demonstrates, Environment
from envs.quoting import quoted
from envs.types import Message, Prompt, Split

PARAMETERS = ("system", "template", "shots")
MAX_SHOTS = 64
FIRST_SHOT = 1_000_000_007  # far from where a run's prompts begin; in a finite split, modulo its size


def frame(name: str, environment: Environment, given: Mapping[str, Any]) -> Environment:
    """Returns the environment with `given`, some of PARAMETERS, around its prompts. Raises ValueError for what cannot work."""
    system, template, shots = given.get("system", ""), given.get("template", "{prompt}"), given.get("shots", 0)
    if not isinstance(system, str):
        raise ValueError(f"environment '{name}': system is {quoted(system)}, it must be text")
    if not isinstance(template, str) or "{prompt}" not in template:
        raise ValueError(
            f"environment '{name}': template is {quoted(template)}, it must be text with the prompt in it, as {{prompt}}"
        )
    if isinstance(shots, bool) or not isinstance(shots, int) or not 0 <= shots <= MAX_SHOTS:
        raise ValueError(
            f"environment '{name}': shots is {quoted(shots)}, it must be a whole number from 0 to {MAX_SHOTS}"
        )
    if shots and not isinstance(environment, Demonstrates):
        raise ValueError(
            f"environment '{name}' has no demonstrations of one response, so no examples can be shown: leave shots out"
        )
    # On the instance, so that everything else about it, what it demonstrates and its form, stays what it is.
    framed: Any = environment
    framed.prompt = _Framed(environment.prompt, environment, system, template, shots)
    if isinstance(environment, Demonstrates):
        own, words = environment.alphabet, system + template.replace("{prompt}", "")
        framed.alphabet = lambda: sorted({*own(), *words})
    return framed


class _Framed:
    """Stands in for an environment's method `prompt`."""

    def __init__(
        self, own: Callable[[Split, int], Prompt], environment: Any, system: str, template: str, shots: int
    ) -> None:
        self._own, self._template = own, template
        self._before: tuple[Message, ...] = (Message("system", system),) if system else ()
        for i in range(shots):
            prompt = own("train", FIRST_SHOT + i)
            response = environment.demonstration(prompt, random.Random(i))
            self._before += (*self._around(prompt), Message("assistant", response))

    def __call__(self, split: Split, index: int) -> Prompt:
        prompt = self._own(split, index)
        return replace(prompt, messages=(*self._before, *self._around(prompt)))

    def _around(self, prompt: Prompt) -> tuple[Message, ...]:
        *before, last = prompt.messages
        return (*before, replace(last, content=self._template.replace("{prompt}", last.content)))
