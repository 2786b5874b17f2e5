"""Calls a reward function of the user's, written for TRL or for verl, on one response at a time.

Which of the two it is follows from the names of its parameters:

TRL     reward_func(prompts, completions, **kwargs) -> list[float]: it has `completions`. It is given lists of one; `prompts`, and
        the columns of the data, which are the keys of the prompt's task, where it has parameters of these names or **kwargs
verl    compute_score(data_source, solution_str, ground_truth, extra_info) -> float, or a mapping with "score": it has
        `solution_str`. data_source is the environment's name, ground_truth one key of the prompt's task, extra_info the whole task

As an environment it runs in a verifier's killable subprocess, with the verifier's time limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from envs import catalog
from envs.quoting import quoted, shortened
from envs.tasks import OneReply
from envs.types import Prompt, Split, Verdict

Signature = Literal["trl", "verl"]
NO_LIMIT = 2**31  # characters: the function decides about long responses


def find_function(name: str) -> tuple[Callable[..., Any], Signature]:
    """Returns the function that "my.py:score" or "package.module:score" names, and how it wants to be called.

    The module is looked up as an environment's is: on the Python path, in the current directory, beside the recipe. Raises
    ValueError in one sentence for a name without a function, and for parameters that are neither TRL's nor verl's.
    """
    path, colon, function = name.rpartition(":")
    module = path.removesuffix(".py").replace("/", ".")
    if not colon or not function or not module or module.startswith("."):
        raise ValueError(f"{quoted(name)} names no function: write my.py:score, with my.py beside the recipe")
    try:
        target = catalog.find(f"{module}:{function}")
    except ValueError as error:
        raise ValueError(
            f"the function cannot be had: {error}".replace(f"environment '{module}:{function}': ", "")
        ) from None
    return target, signature_of(name, target)


def signature_of(name: str, function: Callable[..., Any]) -> Signature:
    """Returns whose signature a function has. Raises ValueError for another."""
    parameters = inspect.signature(function).parameters
    if inspect.iscoroutinefunction(function):
        raise ValueError(
            f"{name} is a coroutine: make it a plain function, since responses are scored side by side anyway"
        )
    for signature, word in MARK.items():
        if word in parameters:
            known = KNOWN[signature]
            needed = [
                key
                for key, parameter in parameters.items()
                if parameter.default is parameter.empty
                and parameter.kind
                in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                and key not in known
            ]
            if signature == "verl" and needed:
                raise ValueError(f"{name} needs the parameter '{needed[0]}', and verl's are {', '.join(known)}")
            return signature
    raise ValueError(
        f"{name} takes {', '.join(parameters) or 'nothing'}: it should have TRL's parameters (prompts, completions, **kwargs) or "
        "verl's (data_source, solution_str, ground_truth, extra_info)"
    )


MARK: dict[Signature, str] = {"trl": "completions", "verl": "solution_str"}  # the parameter that tells it
KNOWN: dict[Signature, tuple[str, ...]] = {
    "trl": ("prompts", "completions"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
}


class OwnFunction:
    """Scores responses of other environments' prompts with a function of the user's.

    The task of a prompt is {"function": name, "reference": key, "chat": bool, "task": the environment's task}. With chat, prompts
    and completions are lists of messages, as TRL gives them for conversational data; else they are text.
    """

    def __init__(self, seed: int = 0) -> None:
        del seed  # nothing is random here
        self._found: dict[str, tuple[Callable[..., Any], Signature]] = {}

    def size(self, split: Split) -> int | None:
        """Returns 0: this environment has no prompts of its own."""
        return 0

    def prompt(self, split: Split, index: int) -> Prompt:
        raise ValueError("OwnFunction scores responses to other environments' prompts and has no prompts of its own")

    def open(self, prompt: Prompt) -> OneReply:
        name = str(prompt.task["function"])
        if name not in self._found:
            self._found[name] = find_function(name)
        function, signature = self._found[name]
        call = _call_trl if signature == "trl" else _call_verl
        return OneReply(lambda text: Verdict(call(name, function, prompt, text)), limit=NO_LIMIT)


def _call_trl(name: str, function: Callable[..., Any], prompt: Prompt, text: str) -> float:
    task: Mapping[str, Any] = prompt.task["task"]
    asked: Any = "\n".join(message.content for message in prompt.messages)
    completion: Any = text
    if prompt.task["chat"]:
        asked = [{"role": message.role, "content": message.content} for message in prompt.messages]
        completion = [{"role": "assistant", "content": text}]
    offered: dict[str, Any] = {key: [value] for key, value in task.items()}
    offered |= {"prompts": [asked], "completions": [completion]}
    rewards = function(**_accepted(function, offered))
    if isinstance(rewards, str | bytes | Mapping) or not isinstance(rewards, Iterable):
        raise ValueError(f"{name} returned {shortened(repr(rewards))}, it should be a list of numbers")
    rewards = list(rewards)  # of a list, an array or a tensor
    if len(rewards) != 1:
        raise ValueError(
            f"{name} returned {len(rewards)} numbers for one completion: it should be a list of one number"
        )
    return 0.0 if rewards[0] is None else float(rewards[0])  # None, in TRL: this function has nothing to say of it


def _call_verl(name: str, function: Callable[..., Any], prompt: Prompt, text: str) -> float:
    task: Mapping[str, Any] = prompt.task["task"]
    offered = {
        "data_source": prompt.env,
        "solution_str": text,
        "ground_truth": task.get(prompt.task["reference"]),
        "extra_info": dict(task),
    }
    result = function(**_accepted(function, offered))
    if isinstance(result, Mapping):
        if "score" not in result:
            raise ValueError(f"{name} returned a mapping of {', '.join(map(str, result))}: it should have 'score'")
        result = result["score"]
    return float(result)


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those arguments that the function has parameters for; all of them with **kwargs."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {key: value for key, value in offered.items() if key in parameters}
