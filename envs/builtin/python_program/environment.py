"""Programs: write f(x) so that it passes tests that are not shown.

    prompt   f(x)=x*3+2        response        def f(x): return x*3+2
             f(1)=5            observation  f(4) gave 15, not 14
             f(4)=14           verdict      1.0 once the hidden tests pass too

A response runs in envs/isolation/sandbox.py, first with the examples of the prompt, and only if these pass with the hidden
tests, so that nothing a program prints or raises can carry hidden arguments into an observation.

Why a program cannot talk its way to a reward: what is expected never enters the sandbox. A program is handed arguments and
has to give values back; they are compared here, as JSON texts. Results come after a nonce of the run, so that what a program
prints by itself is no result; one that found the nonce in memory would still have to know the values.
"""

from __future__ import annotations

import ast
import json
import random
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envs.answers import extract
from envs.builtin.python_program.templates import LEVELS, TEMPLATES
from envs.isolation import sandbox as untrusted
from envs.tasks import check_index, in_split, task_random
from envs.types import Message, Observation, Prompt, Split, Verdict

MAX_PROGRAM = 4_000  # characters of a response that is scored
MAX_OBSERVATION = 400  # characters
MAX_VALUE = 60  # characters of a value or an error in an observation
MAX_TURNS = 16
DRAWS = 5_000
_READABLE = "\n" + "".join(map(chr, range(32, 127)))  # what an observation is written in

# Runs in the sandbox. Its own names are taken before the program can replace them, and each result is out before the
# next call begins. A thread or an exit handler of the program cannot outlive the last line.
_HARNESS = """
import json, os, sys
def run(exec=exec, compile=compile, dumps=json.dumps, write=os.write, leave=os._exit, kind=type, string=str, Any=BaseException):
    request = json.load(sys.stdin)
    nonce = request["nonce"]
    def say(answer):
        data = ("\\n" + nonce + answer + "\\n").encode()
        while data:
            data = data[write(1, data):]
    names = {"__name__": "program"}
    def why(error):
        try:
            return kind(error).__name__ + ": " + string(error)
        except Any:
            return "an error"
    try:
        exec(compile(request["program"], "program", "exec"), names)
        f = names["f"]
    except Any as error:
        say(dumps({"error": "no f: " + why(error)[:200]}))
        leave(0)
    for arguments in request["calls"]:
        try:
            answer = dumps({"value": f(*arguments)})
        except Any as error:
            answer = dumps({"error": why(error)[:200]})
        say(answer)
    leave(0)
run()
"""


class PythonProgram:
    """Write a Python function; examples are shown, hidden tests decide, several tries.

    level      difficulty, 1 to 4: arithmetic, conditions, lists and words, loops; `mixed` adds the easier ones
    turns      responses that a trajectory may have, 1 to 16
    examples   tests in the prompt; hidden: tests that decide
    cpu_s      seconds of processor time for one run of a response, which may take 4 times as long by the clock; a response has
               up to two runs, and verifiers.timeout_s has to be longer than both
    isolation  the weakest level of isolation that is accepted, see envs/isolation/sandbox.py
    name       what metrics are kept under
    Raises ValueError for what cannot be, a machine without that isolation among it.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        level: int = 1,
        mixed: bool = False,
        turns: int = 3,
        examples: int = 2,
        hidden: int = 6,
        cpu_s: int = 1,
        isolation: str = "seccomp",
        name: str = "python_program",
    ) -> None:
        for what, value, high in (
            ("level", level, LEVELS),
            ("turns", turns, MAX_TURNS),
            ("examples", examples, 8),
            ("hidden", hidden, 50),
            ("cpu_s", cpu_s, 60),
        ):
            if not 1 <= value <= high:
                raise ValueError(f"python_program: {what} is {value}, it must be 1 to {high}")
        _check_isolation(isolation)
        self._seed, self._turns, self._name = seed, turns, name
        self._templates = [i for i, t in enumerate(TEMPLATES) if t.level == level or (mixed and t.level < level)]
        self._examples, self._hidden = examples, hidden
        self._limits = untrusted.Limits(wall_s=4.0 * cpu_s, cpu_s=cpu_s)

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Which function is asked for decides the split; the examples do not, or a function could be in both."""
        check_index(split, index)
        rng = task_random(self._seed, split, index)
        for _ in range(DRAWS):
            chosen = rng.choice(self._templates)
            template = TEMPLATES[chosen]
            numbers = {"a": rng.randint(2, 9), "b": rng.randint(2, 9)}
            asks = template.asks.format(**numbers)
            if in_split(asks, split):
                break
        else:
            raise RuntimeError(f"python_program: {DRAWS} draws gave no {split} task")
        f = template.reference(numbers)
        calls = [template.draw(rng) for _ in range(self._examples + self._hidden)]
        tests = [[list(call), f(*call)] for call in calls]
        parameters = "x,y" if len(calls[0]) == 2 else "x"
        lines = [f"f({parameters})={asks}", *(f"{_call(a)}={value!r}" for a, value in tests[: self._examples])]
        task = {
            "template": chosen,
            "numbers": numbers,
            "visible": tests[: self._examples],
            "hidden": tests[self._examples :],
        }
        return Prompt(self._name, split, index, (Message("user", "\n".join(lines)),), task)

    def open(self, prompt: Prompt) -> ProgramSession:
        return ProgramSession(prompt.task, self._turns, self._limits)

    def solutions(self, prompt: Prompt) -> tuple[str, ...]:
        """The ways to write it that are known here; there are others without end."""
        return tuple(way.format(**prompt.task["numbers"]) for way in TEMPLATES[prompt.task["template"]].ways)

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Uniform over `solutions(prompt)`."""
        return rng.choice(self.solutions(prompt))

    def expert(self, prompt: Prompt, rng: random.Random) -> ProgramExpert:
        return ProgramExpert(self.demonstration(prompt, rng))

    def alphabet(self) -> Iterable[str]:
        """An observation can quote any error, so: all that is printed in ASCII."""
        return sorted(_READABLE)


@dataclass(frozen=True, slots=True)
class ProgramExpert:
    """Knows the program, and is therefore done in one turn whatever it is told."""

    program: str

    def act(self, observation: Observation | None) -> str:
        return self.program


@dataclass(slots=True)
class ProgramSession:
    """One trajectory: up to `turns` programs."""

    task: Mapping[str, Any]
    turns: int
    limits: untrusted.Limits
    used: int = field(default=0, init=False)

    def reply(self, text: str) -> Observation | Verdict:
        self.used += 1
        program = extract.program(text) if len(text) <= MAX_PROGRAM else ""
        no_program = f"a program has 1 to {MAX_PROGRAM} characters, this response has {len(text)}"
        wrong = self._wrong(program) if program else no_program
        if not wrong:
            return Verdict(1.0, correct=True, solution=canonical(program))
        if self.used >= self.turns:
            return Verdict(0.0, detail=wrong)
        return Observation((Message("user", wrong),))

    def _wrong(self, program: str) -> str:
        """What is wrong with the program, as the model may read it; '' when nothing is."""
        lines = [
            line
            for test, answer in zip(self.task["visible"], self._run(program, self.task["visible"]), strict=True)
            if (line := _complaint(test, answer))
        ]
        if lines:
            return _readable("\n".join(dict.fromkeys(lines)), MAX_OBSERVATION)
        hidden = zip(self.task["hidden"], self._run(program, self.task["hidden"]), strict=True)
        failed = sum(bool(_complaint(test, answer)) for test, answer in hidden)
        return f"{failed} of {len(self.task['hidden'])} hidden tests fail" if failed else ""

    def _run(self, program: str, tests: list[Any]) -> list[dict[str, Any]]:
        """For each test what the call came to: {"value": ..} or {"error": ..}."""
        nonce = secrets.token_hex(16)
        request = {"program": program, "calls": [arguments for arguments, _ in tests], "nonce": nonce}
        outcome = untrusted.run_python(_HARNESS, json.dumps(request), self.limits)
        answers = [_read(line[len(nonce) :]) for line in outcome.stdout.split("\n") if line.startswith(nonce)]
        endings = {"timeout": "takes too long", "output": "prints too much", "memory": "takes too much memory"}
        ending = {"error": endings.get(outcome.status, "the program ended before it answered")}
        if len(answers) == 1 and str(answers[0].get("error")).startswith("no f: "):
            ending = {"error": answers.pop()["error"].removeprefix("no f: ")}
        return [*answers, *[ending] * len(tests)][: len(tests)]


def canonical(program: str) -> str:
    """The program without what does not matter: layout, comments, docstrings, annotations, the names of parameters and
    variables. Equal for programs that differ in nothing else. For programs that ran: others may be too deep to read.
    """
    try:
        return ast.unparse(_Plain().visit(ast.parse(program)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " ".join(program.split())


class _Plain(ast.NodeTransformer):
    """Names that the program binds become v0, v1, .. in the order in which they are met; f and built-ins stay."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def visit_Module(self, node: ast.Module) -> ast.AST:
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        # A name that is given to a call as a keyword has to stay what it is.
        bound -= {n.arg for n in ast.walk(node) if isinstance(n, ast.keyword) and n.arg}
        for found in ast.walk(node):
            name = found.arg if isinstance(found, ast.arg) else found.id if isinstance(found, ast.Name) else ""
            if name in bound and name != "f":
                self._names.setdefault(name, f"v{len(self._names)}")
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._names.get(node.id, node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._names.get(node.arg, node.arg))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if len(node.body) > 1 and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        node.returns = None
        return self.generic_visit(node)


def _check_isolation(wanted: str) -> None:
    names = list(untrusted.LEVELS)
    if wanted not in names:
        raise ValueError(f"python_program: isolation is {wanted!r}, it must be one of {', '.join(names)}")
    try:
        active = untrusted.active().name
    except untrusted.IsolationError as error:
        raise ValueError(f"python_program: {error}") from None
    if names.index(active) > names.index(wanted):
        raise ValueError(
            f"python_program: this machine isolates untrusted programs by {active!r}, which is weaker than "
            f"isolation={wanted!r}: {untrusted.active().sentence}"
        )


def _read(line: str) -> dict[str, Any]:
    """One answer. A program that found the nonce can write anything here."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):  # numbers too long to convert are a ValueError
        return {"error": "an answer that cannot be read"}
    return answer if isinstance(answer, dict) else {}


def _complaint(test: list[Any], answer: dict[str, Any]) -> str:
    """'' if the answer is the expected one. As JSON texts: True is not 1, and 1.0 is not 1."""
    arguments, expected = test
    if "value" not in answer:
        return f"{_call(arguments)}: {_readable(str(answer.get('error')), MAX_VALUE)}"
    try:
        if json.dumps(answer["value"]) == json.dumps(expected):
            return ""
        shown = repr(answer["value"])
    except (ValueError, RecursionError):
        shown = "something too large"
    return f"{_call(arguments)} gave {_readable(shown, MAX_VALUE)}, not {expected!r}"


def _call(arguments: Iterable[Any]) -> str:
    return f"f({','.join(map(repr, arguments))})"


def _readable(text: str, longest: int) -> str:
    text = "".join(c if c in _READABLE else "?" for c in text)
    return text if len(text) <= longest else text[: longest - 2] + ".."
