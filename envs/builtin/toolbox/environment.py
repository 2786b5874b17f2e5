"""Toolbox: small apps behind a text interface, several turns, scored by the state they are left in.

    prompt  pay ann 30        response  bank.pay(ann,30)      observation  ok        response  finish()
    prompt  phone of ann?     response  contacts.phone(ann)   observation  417       response  answer(417)

One call a turn; `finish()` or `answer(text)` ends the episode. It is correct when the state is exactly the one that the task's
own calls lead to, nothing else touched, and the answer, where one is asked for, is right. How the state was reached does not
matter. envs/builtin/toolbox/world.py has the apps, envs/builtin/toolbox/tasks.py the tasks.
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
from envs.catalog import nearest
from envs.tasks import check_index, in_split, task_random
from envs.types import Message, Observation, Prompt, Split, Verdict

MAX_CALLS = {1: 6, 2: 10, 3: 20}  # of an episode, by level
NEEDED = {1: 3, 2: 4, 3: 7}  # calls that the longest task of a level takes, the last one included
DRAWS = 2_000  # of a world and a task in it, until the parameters are called impossible


class Toolbox:
    """Small apps called by text over several turns; the final state is scored.

    level      1: one call or two; 2: look up, then act; 3: several apps and a loop or a condition
    apps       templates that need no other app than these; all of them by default
    templates  names out of envs/builtin/toolbox/tasks.py; all of the level by default
    max_calls  of an episode, the last one included; by default 6, 10 or 20, by level
    partial    reward an unfinished state with the share of its changes that are right, if nothing else was touched
    name       what metrics are kept under
    system     text of a system message; {manual} in it stands for the apps' documentation; none by default
    Raises ValueError for a name that is not there, with the nearest one, and for parameters that no task meets.
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
        if level not in MAX_CALLS:
            raise ValueError(f"toolbox: level is {level}, it must be 1, 2 or 3")
        max_calls = MAX_CALLS[level] if max_calls is None else max_calls
        if not NEEDED[level] <= max_calls <= 100:
            raise ValueError(f"toolbox: max_calls is {max_calls}, it must be {NEEDED[level]} to 100 at level {level}")
        of_level = [key for key, template in TEMPLATES.items() if template.level == level]
        self._apps = frozenset(_known("app", apps, APPS))
        self._templates = [key for key in _known("template", templates, of_level) if TEMPLATES[key].apps <= self._apps]
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
        """A template, a world and slots are drawn until they make a task of the split, which its text alone decides."""
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
        """Draws uniformly among the orders of the look-ups and of the actions, and among the ways to look each up."""
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
    """One episode. Calls that fail are observed and count; after the verdict every response is given the verdict again."""

    def __init__(self, world: World, task: Task, max_calls: int, partial: bool) -> None:
        self._world, self._task = world, task
        self._max_calls, self._partial = max_calls, partial
        self._before = copy(world)
        self._done: list[Call] = []  # those that were understood
        self._calls = 0
        self._verdict: Verdict | None = None

    def reply(self, text: str) -> Observation | Verdict:
        if self._verdict is None:
            seen = self._take(text)
            if self._verdict is None:
                return Observation((Message("tool", seen),))
        return self._verdict

    def _take(self, text: str) -> str:
        self._calls += 1
        try:
            call = parse(text)
            if call.function in ("finish", "answer"):
                self._end(call)
                return ""
            seen = help_on(call.arguments) if call.function == "help" else run(self._world, call)
            self._done.append(call)
        except CallError as error:
            seen = f"error: {error}"
        if self._calls >= self._max_calls:
            self._verdict = Verdict(0.0, detail=f"max_calls = {self._max_calls} calls and no finish()")
        return seen

    def _end(self, call: Call) -> None:
        if len(call.arguments) != (call.function == "answer"):
            raise CallError("end with finish() or answer(text)")
        answer = call.arguments[0] if call.arguments else None
        self._verdict = _judge(self._before, self._world, self._task, answer, self._partial)
        if self._verdict.correct:
            solution = "; ".join(map(str, (*self._done, call)))
            self._verdict = Verdict(1.0, correct=True, solution=solution)


class ToolboxExpert:
    """Makes the calls of a plan, one a turn, whatever they answer: the plan was made from the world itself."""

    def __init__(self, plan: list[str]) -> None:
        self._plan = iter(plan)

    def act(self, observation: Observation | None) -> str:
        return next(self._plan)


def _judge(before: World, after: World, task: Task, answer: str | None, partial: bool) -> Verdict:
    """By the difference of two states: what was to change, and what did."""
    wanted = difference(before, _after(before, task))
    made = difference(before, after)
    right = sum(made.get(entry) == change for entry, change in wanted.items()) + (answer == task.answer)
    extra = [entry for entry in made if entry not in wanted]
    total = len(wanted) + 1
    if right == total and not extra:
        return Verdict(1.0, correct=True)
    missing = [entry for entry, change in wanted.items() if made.get(entry) != change]
    faults = [f"{what} {', '.join(found[:3])}" for what, found in (("not done", missing), ("touched", extra)) if found]
    if answer != task.answer:
        faults.append("no answer was asked for" if task.answer is None else f"the answer is {task.answer}")
    # An episode that did nothing and ended well is no part of a success: the end alone earns nothing.
    share = (right / total if right > (answer == task.answer) else 0.0) if partial and not extra else 0.0
    return Verdict(share, detail="; ".join(faults))


def _after(world: World, task: Task) -> World:
    """The state the task's own calls lead to. CallError where one of them cannot be made, Impossible where it changes nothing."""
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
    found = prompt.task
    lookups = tuple(tuple(ways) for ways in found["lookups"])
    return Task(found["text"], tuple(found["actions"]), lookups, found["answer"])


def _known(what: str, chosen: list | None, known: Iterable[str]) -> list[str]:
    known = list(known)
    for word in chosen or ():
        if word not in known:
            raise ValueError(
                f"toolbox: there is no {what} '{word}'{nearest(str(word), known) or '.'} Known are {', '.join(known)}"
            )
    return known if chosen is None else list(dict.fromkeys(chosen))
