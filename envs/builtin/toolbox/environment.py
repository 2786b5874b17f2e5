"""Provides Toolbox: small apps behind a text interface, several turns, scored by the final state.

    prompt  pay ann 30        response  bank.pay(ann,30)      observation  ok        response  finish()
    prompt  phone of ann?     response  contacts.phone(ann)   observation  417       response  answer(417)

One call a turn; `finish()` or `answer(text)` ends the episode. It is correct when the state is exactly the one that the task's
own calls lead to, nothing else was changed, and the answer, where one is asked for, is right. How the state was reached does
not matter. world.py has the apps, tasks.py the tasks.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable

from envs.builtin.toolbox.tasks import TEMPLATES, Impossible, Task
from envs.builtin.toolbox.world import (
    APPS,
    Call,
    CallError,
    World,
    copy,
    difference,
    generate,
    help_on,
    manual,
    parse,
    run,
)
from envs.checks import check_range
from envs.suggest import did_you_mean
from envs.tasks import check_index, in_split, task_random
from envs.types import Message, Observation, Prompt, Split, Verdict

MAX_CALLS = {1: 6, 2: 10, 3: 20}  # default limit of an episode, by level
NEEDED = {1: 3, 2: 4, 3: 7}  # calls of the longest task of a level, finish() or answer() included
DRAWS = 2_000  # of a world and a task in it, before the parameters are reported as impossible


class Toolbox:
    """Offers small apps, called by text over several turns; the final state is scored.

    level      1: one call or two; 2: look up, then act; 3: several apps and a loop or a condition
    apps       apps that tasks may need; all by default
    templates  names from tasks.py; by default all of the level
    max_calls  limit of an episode, the last call included; by default 6, 10 or 20, by level
    partial    reward an unfinished state with the share of the wanted changes that were made, if nothing else was changed
    name       name of its metrics
    system     text of a system message, none by default; {manual} in it is replaced by the apps' documentation
    Raises ValueError for an unknown name, with the nearest one, and for parameters that allow no task.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        level: int = 1,
        apps: list | None = None,
        templates: list | None = None,
        max_calls: int | None = None,
        partial: bool = False,
        name: str = "toolbox",
        system: str = "",
    ) -> None:
        check_range("toolbox", "level", level, 1, max(MAX_CALLS))
        max_calls = MAX_CALLS[level] if max_calls is None else max_calls
        if not NEEDED[level] <= max_calls <= 100:
            raise ValueError(f"toolbox: max_calls is {max_calls}, it must be {NEEDED[level]} to 100 at level {level}")
        of_level = [key for key, template in TEMPLATES.items() if template.level == level]
        self._apps = frozenset(_check_names("app", apps, APPS))
        self._templates = [
            key for key in _check_names("template", templates, of_level) if TEMPLATES[key].apps <= self._apps
        ]
        if not self._templates:
            raise ValueError(
                f"toolbox: no template of level {level} needs only the apps {' '.join(sorted(self._apps))}"
            )
        self._seed = seed
        self._max_calls, self._partial = max_calls, partial
        self._name = name
        self._system = system.replace("{manual}", manual())
        for split in ("train", "eval"):
            self.prompt(split, 0)

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Draws a template, a world and the template's slots until they make a task of the split, which the task's text decides."""
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for draw in range(DRAWS):
            world_seed = f"{self._seed}/{split}/{index}/{draw}"
            world = generate(world_seed)
            try:
                task = TEMPLATES[rng.choice(self._templates)].make(rng, world)
                _after(world, task)
            except (Impossible, CallError):
                continue
            if in_split(task.text, split):
                return self._write(split, index, world_seed, task)
        raise ValueError(f"toolbox: {DRAWS} draws of {', '.join(self._templates)} gave no {split} task")

    def open(self, prompt: Prompt) -> ToolboxSession:
        return ToolboxSession(generate(prompt.task["world"]), _task(prompt), self._max_calls, self._partial)

    def expert(self, prompt: Prompt, rng: random.Random) -> ToolboxExpert:
        """Returns an expert with a random plan: uniform over orders of look-ups, orders of actions, and calls for each look-up."""
        return ToolboxExpert(_plan(_task(prompt), rng))

    def alphabet(self) -> Iterable[str]:
        return sorted(set(string.ascii_lowercase + string.digits + " .,():;?\n") | set(self._system))

    def _write(self, split: Split, index: int, world: str, task: Task) -> Prompt:
        system = (Message("system", self._system),) if self._system else ()
        content = {"actions": list(task.actions), "lookups": [list(ways) for ways in task.lookups]}
        return Prompt(
            self._name,
            split,
            index,
            (*system, Message("user", task.text)),
            {"world": world, "text": task.text, "answer": task.answer, **content},
        )


class ToolboxSession:
    """Runs one episode. A failed call is an observation and counts; after the verdict every response gets that verdict again."""

    def __init__(self, world: World, task: Task, max_calls: int, partial: bool) -> None:
        self._world, self._task = world, task
        self._max_calls, self._partial = max_calls, partial
        self._before = copy(world)
        self._done: list[Call] = []  # without the calls that failed
        self._calls = 0
        self._verdict: Verdict | None = None

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            observation = self._take(text)
            if self._verdict is None:
                return Observation((Message("tool", observation),))
        return self._verdict

    def _take(self, text: str) -> str:
        self._calls += 1
        try:
            call = parse(text)
            if call.function in ("finish", "answer"):
                self._end(call)
                return ""
            observation = help_on(call.arguments) if call.function == "help" else run(self._world, call)
            self._done.append(call)
        except CallError as error:
            observation = f"error: {error}"
        if self._calls >= self._max_calls:
            self._verdict = Verdict(0.0, detail=f"max_calls = {self._max_calls} calls and no finish()")
        return observation

    def _end(self, call: Call) -> None:
        if len(call.arguments) != (call.function == "answer"):
            raise CallError("end with finish() or answer(text)")
        answer = call.arguments[0] if call.arguments else None
        self._verdict = _score(self._before, self._world, self._task, answer, self._partial)
        if self._verdict.correct:
            solution = "; ".join(map(str, (*self._done, call)))
            self._verdict = Verdict(1.0, correct=True, solution=solution)


class ToolboxExpert:
    """Makes the calls of a plan, one a turn, without reading the answers: the plan was made from the world itself."""

    def __init__(self, plan: list[str]) -> None:
        self._plan = iter(plan)

    def act(self, observation: Observation | None) -> str:
        return next(self._plan)


def _score(before: World, after: World, task: Task, answer: str | None, partial: bool) -> Verdict:
    """Scores by comparing the changes of the state with the changes that the task's own calls make."""
    expected = difference(before, _after(before, task))
    actual = difference(before, after)
    correct = sum(actual.get(entry) == change for entry, change in expected.items()) + (answer == task.answer)
    extra = [entry for entry in actual if entry not in expected]
    total = len(expected) + 1
    if correct == total and not extra:
        return Verdict(1.0, correct=True)
    missing = [entry for entry, change in expected.items() if actual.get(entry) != change]
    faults = [
        f"{what} {', '.join(entries[:3])}" for what, entries in (("not done", missing), ("touched", extra)) if entries
    ]
    if answer != task.answer:
        faults.append("no answer was asked for" if task.answer is None else f"the answer is {task.answer}")
    # The right ending alone earns nothing: an episode that changed nothing made no progress.
    share = (correct / total if correct > (answer == task.answer) else 0.0) if partial and not extra else 0.0
    return Verdict(share, detail="; ".join(faults))


def _after(world: World, task: Task) -> World:
    """Returns the state that the task's own calls lead to.

    Raises CallError where one of them fails, Impossible where one changes nothing.
    """
    changed = copy(world)
    for text in task.actions:
        last = copy(changed)
        run(changed, parse(text))
        if last == changed:
            raise Impossible
    return changed


def _plan(task: Task, rng: random.Random) -> list[str]:
    lookups = [rng.choice(ways) for ways in rng.sample(task.lookups, len(task.lookups))]
    actions = rng.sample(task.actions, len(task.actions))
    return [*lookups, *actions, "finish()" if task.answer is None else f"answer({task.answer})"]


def _task(prompt: Prompt) -> Task:
    task = prompt.task
    lookups = tuple(tuple(ways) for ways in task["lookups"])
    return Task(task["text"], tuple(task["actions"]), lookups, task["answer"])


def _check_names(what: str, chosen: list | None, known: Iterable[str]) -> list[str]:
    known = list(known)
    for word in chosen or ():
        if word not in known:
            raise ValueError(
                f"toolbox: unknown {what} '{word}': {did_you_mean(str(word), known)}known are {', '.join(known)}"
            )
    return known if chosen is None else list(dict.fromkeys(chosen))
