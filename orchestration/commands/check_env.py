"""Implements `isentrope check-env NAME`: tries an environment as a run would use it, and says what a run would stumble on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.verifier import EnvSpec, ScoreRequest, Verifier
from envs import catalog
from envs.base import HasForm, demonstrate, demonstrates
from envs.types import Observation, Prompt, Split, Verdict
from orchestration.config.loader import parse_overrides
from orchestration.errors import ConfigError
from orchestration.text import one_line

PROMPTS = 50
ODD = ("", " ", "\n", "0", "no idea", "\\boxed{", "}", "<answer>", "\ud800", "\x00", "9" * 5000, "a " * 5000)
SLOW_S = 1.0


def check(name: str, arguments: Sequence[str], seed: int, say: Callable[[str], None]) -> None:
    """Checks prompts, splits, demonstrations, and scores in a verifier's subprocess. Raises the first fault as one sentence."""
    params = dict(parse_overrides(arguments))
    try:
        environment = catalog.load(name, params, seed=seed)
        catalog.try_out(name, environment)
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    sizes = {split: environment.size(split) for split in ("train", "eval")}
    say(f"loads: train has {_size(sizes['train'])}, eval {_size(sizes['eval'])}")
    try:
        prompts = {split: _prompts(name, environment, split) for split in ("train", "eval")}
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"environment '{name}': {catalog.error_in_one_line(error)}") from error
    _check_splits(name, prompts)
    say(f"prompts: {sum(map(len, prompts.values()))} tried, each the same when asked again, none in both splits")
    spec = EnvSpec(name, params, seed, catalog.module_path())
    verifier = Verifier([spec], timeout_s=30)
    try:
        begin = time.monotonic()
        count = _odd_responses(name, verifier, prompts["train"])
        seconds = (time.monotonic() - begin) / count
        say(f"scores: {count} odd responses, {1000 * seconds:.1f} ms each" + (" (slow)" if seconds > SLOW_S else ""))
        if demonstrates(environment):
            _demonstrations(name, environment, verifier, prompts)
            say("demonstrations: each earns the verdict correct, in characters of its alphabet")
        else:
            say("demonstrations: none, so init-model cannot teach a tiny model with it")
    finally:
        verifier.close()
    if not isinstance(environment, HasForm):
        say("form: none, so rewards.format needs a pattern")


def _size(size: int | None) -> str:
    return "prompts without end" if size is None else f"{size} prompts"


def _prompts(name: str, environment: Any, split: Split) -> list[Prompt]:
    size = environment.size(split)
    count = PROMPTS if size is None else min(PROMPTS, size)
    forwards = [environment.prompt(split, i) for i in range(count)]
    backwards = [environment.prompt(split, i) for i in reversed(range(count))][::-1]
    for i, (one, other) in enumerate(zip(forwards, backwards, strict=True)):
        if one != other:
            raise ConfigError(
                f"environment '{name}': prompt('{split}', {i}) is another one after others were asked for: take all randomness "
                "from envs.tasks.task_random(seed, split, index)"
            )
        if not one.messages or not all(message.content for message in one.messages):
            raise ConfigError(f"environment '{name}': prompt('{split}', {i}) has an empty message, or none")
    return forwards


def _check_splits(name: str, prompts: dict[str, list[Prompt]]) -> None:
    asked = {prompt.messages: prompt.index for prompt in prompts["train"]}
    for prompt in prompts["eval"]:
        if prompt.messages in asked:
            raise ConfigError(
                f"environment '{name}': prompt('eval', {prompt.index}) asks what prompt('train', {asked[prompt.messages]}) asks: "
                "divide the tasks with envs.tasks.in_split"
            )


def _odd_responses(name: str, verifier: Verifier, prompts: list[Prompt]) -> int:
    """Has odd responses scored, twice; returns how many."""
    count = 0
    for i, text in enumerate(ODD):
        prompt = prompts[i % len(prompts)]
        answers = [verifier.score([ScoreRequest(f"check {i}/{k}", prompt, (text,))])[0] for k in range(2)]
        count += 2
        for answer in answers:
            if isinstance(answer, Verdict) and not answer.status.scored:
                raise ConfigError(
                    f"environment '{name}': the response {text[:20]!r} is not scored but ends with {answer.status}: "
                    f"{one_line(answer.detail)[:400]}; return Verdict(0.0) for a response that is merely wrong"
                )
        if answers[0] != answers[1]:
            raise ConfigError(
                f"environment '{name}': two sessions score the response {text[:20]!r} differently: {answers}"
            )
    return count


def _demonstrations(name: str, environment: Any, verifier: Verifier, prompts: dict[str, list[Prompt]]) -> None:
    alphabet = set(environment.alphabet())
    for prompt in (*prompts["train"], *prompts["eval"]):
        try:
            played = demonstrate(environment, prompt, random.Random(prompt.index))
        except Exception as error:
            raise ConfigError(f"environment '{name}', its demonstration: {catalog.error_in_one_line(error)}") from error
        where = f"environment '{name}': the demonstration of prompt('{prompt.split}', {prompt.index})"
        answer: Observation | Verdict = Verdict(0.0)
        for n in range(1, len(played.responses) + 1):
            session = f"shown {prompt.split} {prompt.index}"
            answer = verifier.score([ScoreRequest(session, prompt, played.responses[:n])])[0]
        if not isinstance(answer, Verdict) or not answer.correct:
            raise ConfigError(
                f"{where} is not correct: {' | '.join(played.responses)[:200]!r} is answered with {answer}"
            )
        texts = (*(m.content for m in prompt.messages), *played.responses)
        if missing := sorted(set("".join(texts)) - alphabet):
            raise ConfigError(f"{where} has {missing[0]!r}, which its alphabet() lacks")
