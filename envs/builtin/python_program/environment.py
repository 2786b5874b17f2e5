"""Provides PythonProgram: write f(x) so that it passes tests that are not shown.

    prompt   f(x)=x*3+2        response        def f(x): return x*3+2
             f(1)=5            observation  f(4) gave 15, not 14
             f(4)=14           verdict      1.0 once the hidden tests pass too

A response runs in envs/isolation/sandbox.py, first with the examples of the prompt, and only if these pass with the hidden
tests, so that nothing a program prints or raises can carry hidden arguments into an observation.

Why a program cannot fake a reward: expected values never enter the sandbox. A program gets arguments and has to return
values, which are compared outside, as JSON texts. Each result follows a random nonce of the run, so that a program's own
output is not taken for a result; one that found the nonce in memory would still have to know the values.
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
from envs.checks import check_choice, check_range
from envs.isolation import sandbox
from envs.tasks import check_index, in_split, task_random
from envs.types import Message, Observation, Prompt, Split, Verdict

MAX_PROGRAM = 4_000  # characters; a longer response is wrong without being run
MAX_OBSERVATION = 400  # characters
MAX_VALUE = 60  # characters of a value or an error in an observation
MAX_TURNS = 16
DRAWS = 5_000
_READABLE = "\n" + "".join(map(chr, range(32, 127)))  # characters of observations

# Runs in the sandbox. The defaults of `run` bind its functions before the program can replace them, and each result is
# written before the next call begins. os._exit ends the program's threads and skips its exit handlers.
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
    """Asks for a Python function; examples are shown, hidden tests decide, several attempts.

    level      difficulty, 1 to 4: arithmetic, conditions, lists and words, loops; `mixed` adds the easier ones
    turns      responses of a trajectory, 1 to 16
    examples   number of tests in the prompt; hidden: number of hidden tests
    cpu_s      seconds of processor time for one run of a response, which may take 4 times as long by the clock; a response has
               up to two runs, and verifiers.timeout_s has to be longer than both
    isolation  weakest accepted level of isolation: namespaces, bubblewrap, seccomp or limits, see envs/isolation/sandbox.py
    name       name of its metrics
    Raises ValueError for values that cannot work, and on a machine without that isolation.
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
            check_range("python_program", what, value, 1, high)
        _check_isolation(isolation)
        self._seed, self._turns, self._name = seed, turns, name
        self._templates = [i for i, t in enumerate(TEMPLATES) if t.level == level or (mixed and t.level < level)]
        self._examples, self._hidden = examples, hidden
        self._limits = sandbox.Limits(wall_s=4.0 * cpu_s, cpu_s=cpu_s)

    def size(self, split: Split) -> int | None:
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns a prompt whose function, not its examples, decides the split: one function must not be in both."""
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
        """Returns the solutions of the task's template; there are infinitely many others."""
        return tuple(way.format(**prompt.task["numbers"]) for way in TEMPLATES[prompt.task["template"]].ways)

    def demonstration(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a solution drawn uniformly from `solutions(prompt)`."""
        return rng.choice(self.solutions(prompt))

    def expert(self, prompt: Prompt, rng: random.Random) -> ProgramExpert:
        return ProgramExpert(self.demonstration(prompt, rng))

    def alphabet(self) -> Iterable[str]:
        """Returns all printable ASCII, since an observation can quote any error message."""
        return sorted(_READABLE)


@dataclass(frozen=True, slots=True)
class ProgramExpert:
    """Gives the solution in its first turn."""

    program: str

    def act(self, observation: Observation | None) -> str:
        return self.program


@dataclass(slots=True)
class ProgramSession:
    """Runs one trajectory of up to `turns` programs."""

    task: Mapping[str, Any]
    turns: int
    limits: sandbox.Limits
    turns_taken: int = field(default=0, init=False)

    def reply(self, text: str) -> Observation | Verdict:
        self.turns_taken += 1
        program = extract.program(text) if len(text) <= MAX_PROGRAM else ""
        no_program = f"a program has 1 to {MAX_PROGRAM} characters, this response has {len(text)}"
        wrong = self._wrong(program) if program else no_program
        if not wrong:
            return Verdict(1.0, correct=True, solution=canonical(program))
        if self.turns_taken >= self.turns:
            return Verdict(0.0, detail=wrong)
        return Observation((Message("user", wrong),))

    def _wrong(self, program: str) -> str:
        """Returns what is wrong with the program, as the observation shows it; '' if nothing is."""
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
        """Returns for each test the result of its call: {"value": ..} or {"error": ..}."""
        nonce = secrets.token_hex(16)
        request = {"program": program, "calls": [arguments for arguments, _ in tests], "nonce": nonce}
        outcome = sandbox.run_python(_HARNESS, json.dumps(request), self.limits)
        answers = [_read(line[len(nonce) :]) for line in outcome.stdout.split("\n") if line.startswith(nonce)]
        endings = {"timeout": "takes too long", "output": "prints too much", "memory": "takes too much memory"}
        ending = {"error": endings.get(outcome.status, "the program ended before it answered")}
        if len(answers) == 1 and str(answers[0].get("error")).startswith("no f: "):
            ending = {"error": answers.pop()["error"].removeprefix("no f: ")}
        return [*answers, *[ending] * len(tests)][: len(tests)]


def canonical(program: str) -> str:
    """Returns the program in a form that is equal for programs that differ only in layout, docstrings, annotations and names.

    Names are those of parameters and variables. Meant for programs that ran: a program too deep to parse is only stripped of
    repeated spaces.
    """
    try:
        return ast.unparse(_Plain().visit(ast.parse(program)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " ".join(program.split())


class _Plain(ast.NodeTransformer):
    """Renames what the program binds to v0, v1, .. in the order of first use; f and built-ins keep their names."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def visit_Module(self, node: ast.Module) -> ast.AST:
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        # A name that a call uses as a keyword has to keep its name.
        bound -= {n.arg for n in ast.walk(node) if isinstance(n, ast.keyword) and n.arg}
        for child in ast.walk(node):
            name = child.arg if isinstance(child, ast.arg) else child.id if isinstance(child, ast.Name) else ""
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


def _check_isolation(weakest: str) -> None:
    names: list[str] = list(sandbox.LEVELS)
    check_choice("python_program", "isolation", weakest, names)
    try:
        active = sandbox.active().name
    except sandbox.IsolationError as error:
        raise ValueError(f"python_program: {error}") from None
    if names.index(active) > names.index(weakest):
        raise ValueError(
            f"python_program: this machine isolates untrusted programs by {active!r}, which is weaker than "
            f"isolation={weakest!r}: {sandbox.active().sentence}"
        )


def _read(line: str) -> dict[str, Any]:
    """Parses one result line. A program that found the nonce can write anything here."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):  # a number with too many digits to convert raises ValueError
        return {"error": "an answer that cannot be read"}
    return answer if isinstance(answer, dict) else {}


def _complaint(test: list[Any], answer: dict[str, Any]) -> str:
    """Returns '' if the answer is the expected one, compared as JSON texts: True is not 1, and 1.0 is not 1."""
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
