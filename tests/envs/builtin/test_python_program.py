"""Tests that experts are right, wrong programs get a reason, and no program can fake a reward."""

from __future__ import annotations

import ast
import json
import random
from typing import Any

import pytest
from fuzz.responses import assert_plain, fuzzed

from envs.answers import extract
from envs.base import demonstrate
from envs.builtin.python_program.environment import MAX_OBSERVATION, ProgramSession, PythonProgram, canonical
from envs.builtin.python_program.templates import TEMPLATES
from envs.isolation import sandbox
from envs.isolation.killable import KillableProcess
from envs.isolation.sandbox import run_python
from envs.isolation.watch import Status
from envs.types import Observation, Prompt, Verdict


@pytest.fixture(scope="module")
def tasks() -> PythonProgram:
    return PythonProgram(5, turns=2)


def first(tasks: PythonProgram, prompt: Prompt, text: str) -> Observation | Verdict:
    return tasks.open(prompt).reply(text)


def text_of(answer: Observation | Verdict) -> str:
    assert isinstance(answer, Observation), answer
    return answer.messages[0].content


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
def test_every_way_of_every_template_is_right(number: int) -> None:
    template, numbers = TEMPLATES[number], {"a": 3, "b": 7}
    rng = random.Random(number)
    right = template.reference(numbers)
    calls = [list(template.draw(rng)) for _ in range(25)]
    tests = [[call, right(*json.loads(json.dumps(call)))] for call in calls]
    assert len({json.dumps(value) for _, value in tests}) > 2  # no constant passes
    task = {"visible": tests[:5], "hidden": tests[5:]}
    solutions = set()
    for way in template.ways:
        session = ProgramSession(task, 1, sandbox.Limits(wall_s=60.0))
        verdict = session.reply(way.format(**numbers))
        assert isinstance(verdict, Verdict) and verdict.correct, (way, verdict)
        solutions.add(verdict.solution)
    assert len(solutions) == len(template.ways) >= 2


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_expert_earns_it_in_one_turn(level: int) -> None:
    tasks = PythonProgram(1, level=level)
    for index in range(3):
        prompt = tasks.prompt("eval", index)
        assert PythonProgram(1, level=level).prompt("eval", index) == prompt
        played = demonstrate(tasks, prompt, random.Random(index))
        assert played.verdict and (played.verdict.reward, played.verdict.correct) == (1.0, True)
        assert played.observations == () and played.responses[0] in tasks.solutions(prompt)


def test_levels_are_templates_and_the_first_is_short() -> None:
    drawn = {level: _templates(PythonProgram(0, level=level)) for level in (1, 2, 3, 4)}
    assert all({TEMPLATES[i].level for i in indices} == {level} for level, indices in drawn.items())
    assert {TEMPLATES[i].level for i in _templates(PythonProgram(0, level=3, mixed=True))} == {1, 2, 3}
    easy = PythonProgram(0)
    prompts = [easy.prompt("train", i) for i in range(100)]
    assert max(len(p.messages[0].content) for p in prompts) < 60
    assert max(len(s) for p in prompts for s in easy.solutions(p)) < 40


def _templates(tasks: PythonProgram) -> set[int]:
    return {tasks.prompt("train", i).task["template"] for i in range(150)}


def test_turns_end_with_a_verdict_and_observations_say_what_is_wrong(tasks: PythonProgram) -> None:
    prompt = tasks.prompt("train", 0)
    (arguments, value), *_ = prompt.task["visible"]
    session = tasks.open(prompt)
    assert f"f({arguments[0]}) gave 'no', not {value}" in text_of(session.reply("def f(x): return 'no'"))
    verdict = session.reply("def f(x): return 'no'")
    assert isinstance(verdict, Verdict) and verdict.reward == 0.0 and "gave 'no'" in verdict.detail
    session = tasks.open(prompt)
    session.reply("nonsense")
    verdict = session.reply(f"Here:\n```python\n{tasks.solutions(prompt)[0]}\n```\nDone.")
    assert isinstance(verdict, Verdict) and verdict.correct


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("def f(x): return", "gave None, not"),
        ("def f(x): return 1/0", "ZeroDivisionError: division by zero"),
        ("def g(x): return 1", "KeyError: 'f'"),
        ("def f(x: return 1", "SyntaxError: "),
        ("f=3", "TypeError: 'int' object is not callable"),
        ("def f(x): return {1}", "TypeError: Object of type set is not JSON serializable"),
        ("def f(x):\n while 1: pass", "takes too long"),
        ("def f(x):\n while 1: print('a' * 1000)", "prints too much"),
        ("def f(x): return 'é\\n\\x00' * 500", "gave"),
        ("def f(x): return 10**10**4", "f("),
        ("def f(x): return eval('[' * 90 + ']' * 90)", "gave"),
        ("def f(x): raise ValueError('é' * 10**6)", "ValueError: ???"),
        ("   ", "a program has 1 to 4000 characters, this response has 3"),
        ("x" * 4001, "this response has 4001"),
        ("\ud800", "UnicodeEncodeError"),
        ("def f(x): return float('nan')", "gave nan"),
    ],
    ids=range(16),
)
def test_observations_of_wrong_programs(tasks: PythonProgram, program: str, words: str) -> None:
    text = text_of(first(tasks, tasks.prompt("train", 0), program))
    assert words in text
    assert len(text) <= MAX_OBSERVATION and set(text) <= set(tasks.alphabet())


# Programs that try to be taken for right ones; RIGHT is put in for the values of the examples, in order.
CHEATS = {
    "prints the answers": "print(*RIGHT, sep='\\n')\ndef f(x): return 0",
    "prints answers in the form of the harness": (
        "import json\nfor v in RIGHT: print(json.dumps({'value': v}))\ndef f(x): return 0"
    ),
    "leaves with success": "import os\nos._exit(0)",
    "leaves from the function": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "raises SystemExit in the function": "def f(x): raise SystemExit(0)",
    "patches json": "import json\njson.dumps = lambda *a, **k: '{}'\ndef f(x): return 0",
    "patches the built-ins": "import builtins\nbuiltins.print = builtins.len = builtins.str = None\ndef f(x): return 0",
    "patches os.write": "import os\nos.write = lambda d, data: len(data)\ndef f(x): return 0",
    "closes stdout": "import os\nos.close(1)\ndef f(x): return 0",
    "equal to everything": (
        "class E(int):\n def __eq__(s, o): return True\n def __repr__(s): return '1'\n __hash__ = None\n"
        "def f(x): return E(0)"
    ),
    "says nothing": "def f(x): pass",
    "forks": "import os\nos.fork()\ndef f(x): return 0",
    "finds the nonce and claims to be right": (
        "import json, os, sys\nframe = sys._getframe()\nwhile 'nonce' not in frame.f_locals: frame = frame.f_back\n"
        "n = frame.f_locals['nonce']\n"
        "for answer in ({'value': True}, {'correct': True}, {}, [], 1, None):\n"
        " os.write(1, ('\\n' + n + json.dumps(answer) + '\\n').encode())\n"
        "os._exit(0)"
    ),
    "finds the nonce and repeats the examples": (
        "import json, os, sys\nframe = sys._getframe()\nwhile 'nonce' not in frame.f_locals: frame = frame.f_back\n"
        "n = frame.f_locals['nonce']\n"
        "for v in RIGHT * 9: os.write(1, ('\\n' + n + json.dumps({'value': v}) + '\\n').encode())\n"
        "os._exit(0)"
    ),
    "knows the examples by heart": "seen = iter(RIGHT * 9)\ndef f(x): return next(seen)",
    "looks for what is expected": (
        "import gc\ndef f(x):\n for o in gc.get_objects():\n"
        "  if isinstance(o, dict) and ('hidden' in o or 'expected' in o or 'visible' in o): return o\n return 0"
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_talks_its_way_to_a_reward(tasks: PythonProgram, name: str) -> None:
    for index in (1, 2):
        prompt = tasks.prompt("train", index)
        right = repr([value for _, value in prompt.task["visible"]])
        session = tasks.open(prompt)
        session.reply(CHEATS[name].replace("RIGHT", right))
        verdict = session.reply(CHEATS[name].replace("RIGHT", right))
        assert isinstance(verdict, Verdict) and (verdict.reward, verdict.correct) == (0.0, False)


@pytest.mark.parametrize("name", ["finds the nonce and repeats the examples", "knows the examples by heart"])
def test_passing_the_examples_alone_is_not_enough_and_tells_nothing_hidden(tasks: PythonProgram, name: str) -> None:
    prompt = tasks.prompt("train", 1)
    right = repr([value for _, value in prompt.task["visible"]])
    text = text_of(first(tasks, prompt, CHEATS[name].replace("RIGHT", right)))
    assert text in {f"{n} of 6 hidden tests fail" for n in range(1, 7)}


def test_what_is_expected_and_what_is_hidden_stays_outside(
    tasks: PythonProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def listen(code: str, stdin: str, limits: sandbox.Limits) -> sandbox.Outcome:
        sent.append(json.loads(stdin))
        return run_python(code, stdin, limits)

    monkeypatch.setattr(sandbox, "run_python", listen)
    prompt = tasks.prompt("train", 0)
    first(tasks, prompt, "def f(x): return 0")
    first(tasks, prompt, tasks.solutions(prompt)[0])
    calls = [[arguments for arguments, _ in prompt.task[kind]] for kind in ("visible", "hidden")]
    assert [request["calls"] for request in sent] == [calls[0], calls[0], calls[1]]
    assert all(set(request) == {"program", "calls", "nonce"} for request in sent)
    assert len({request["nonce"] for request in sent}) == 3


@pytest.mark.parametrize(
    "response", ["", "\x00", "\ud800", "((((", "```python\n```", "é" * 100_000, "'" * 500, "(" * 3000]
)
def test_an_odd_response_gets_an_answer(tasks: PythonProgram, response: str) -> None:
    answer = first(tasks, tasks.prompt("train", 1), response)
    assert isinstance(answer, Observation) and answer.messages[0].content


# Programs that are hard on who reads them.
DEEP = (
    "-" * 3900 + "1",
    "x" + ".a" * 1900,
    "f" + "()" * 1900,
    "x" + "**x" * 1200,
    "a=" * 1900 + "1",
    "lambda:" * 550 + "1",
    "[" * 90 + "]" * 90,
    "{" * 1900,
    "0x" + "f" * 3900,  # more digits than Python would write
    "9" * 3990,
    "f'{" * 140 + "1" + "}'" * 140,
    "'\\N{no such thing}'",
    "'\\ud800'",
    "x\f\x0b\x1c+1",
    "match x:\n case {**k}: pass",
    "async def g(*, x=(yield)): await x",
    "def f(f): global f",
)


def fuzzed_program(rng: random.Random, right: tuple[str, ...]) -> str:
    """Returns any odd response, or one of Python's own: alone, as the body of a correct program, or between marks."""
    text = rng.choice([*[fuzzed(rng, right)] * 8, rng.choice(DEEP), rng.choice([*CHEATS.values()])])
    kind = rng.randrange(5)
    if kind == 0:
        return f"```python\n{text}\n```"
    if kind == 1:
        return f"<think>{text}</think>\n{rng.choice(right)}\n# {text}"
    if kind == 2:
        return f"{rng.choice(right)}\n{text}"
    return f"def f(x): return {text}" if kind == 3 else text


ODD_ANSWERS = (
    *("", "{", "null", "[]", "1", '"value"', "{}", '{"value": 1}', '{"value": NaN}', '{"value": 1e999}'),
    *('{"error": null}', '{"error": {"value": 1}}', '{"error": "no f: "}', '{"error": "\\ud800\\u0000"}'),
    *('{"value": "\\ud800"}', '{"value": ' + "9" * 5000 + "}", "\ufffd", "\x00"),
    *('{"value": ' + "[" * n + "]" * n + "}" for n in (50, 940, 5000)),
    *('{"error": ' + '{"a":' * n + "1" + "}" * n + "}" for n in (50, 940, 5000)),
)
STATUSES: tuple[Status, ...] = ("ok", "exit", "timeout", "memory", "output", "killed")


def answers_like(rng: random.Random, request: dict[str, Any], right: dict[str, Any]) -> str:
    """Returns what a run of the program could have printed: correct values, perhaps badly formatted, or anything else."""
    nonce, calls = request["nonce"], request["calls"]
    try:
        ast.parse(request["program"])
        kind = rng.randrange(4)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"\n{nonce}{json.dumps({'error': f'no f: {error!r}'})}\n"
    if kind:  # three times in four: a program that passes is read once more, for its canonical form
        return "".join(f"\n{nonce}{json.dumps({'value': right[json.dumps(call)]})}\n" for call in calls)
    said = [rng.choice(ODD_ANSWERS) for _ in range(rng.randrange(12))]
    return "".join(f"{rng.choice(['', '', 'x'])}{nonce if rng.random() < 0.9 else ''}{one}\n" for one in said)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of programs
def test_no_response_and_nothing_a_program_prints_makes_it_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives 10,000 verdicts. Running processes would take ten minutes, so their possible outputs are made up."""
    tasks, rng, right = PythonProgram(5, level=4, mixed=True, turns=1), random.Random(7), dict[str, Any]()

    def run(code: str, stdin: str, limits: sandbox.Limits) -> sandbox.Outcome:
        stdin.encode()  # as it goes to a process
        printed = answers_like(rng, json.loads(stdin), right)
        return sandbox.Outcome(rng.choice(STATUSES), printed, "", 0, 0.0)

    monkeypatch.setattr(sandbox, "run_python", run)
    passed = 0
    prompts = [tasks.prompt("train", index) for index in range(40)]
    for number in range(10_000):
        prompt = prompts[number % 40]
        right.clear()
        right.update((json.dumps(call), value) for call, value in prompt.task["visible"] + prompt.task["hidden"])
        answer = first(tasks, prompt, fuzzed_program(rng, tasks.solutions(prompt)))
        assert_plain(answer)
        assert isinstance(answer, Verdict)
        assert len(answer.detail) <= MAX_OBSERVATION and set(answer.detail) <= set(tasks.alphabet())
        passed += answer.correct
    assert passed > 2_000


@pytest.mark.slow
def test_no_program_that_is_run_makes_it_raise(tasks: PythonProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, ran = random.Random(7), 0

    def count(code: str, stdin: str, limits: sandbox.Limits) -> sandbox.Outcome:
        nonlocal ran
        ran += 1
        return run_python(code, stdin, limits)

    monkeypatch.setattr(sandbox, "run_python", count)
    while ran < 200:  # some 65 ms each
        prompt = tasks.prompt("train", ran % 40)
        session = tasks.open(prompt)
        answer: Observation | Verdict | None = None
        while not isinstance(answer, Verdict):
            answer = session.reply(fuzzed_program(rng, tasks.solutions(prompt)))
            assert_plain(answer)


def test_true_is_not_one() -> None:
    task = {"visible": [[[1], 1]], "hidden": [[[1], 1]]}
    for value, right in (("1", True), ("True", False), ("1.0", False), ("[1]", False)):
        session = ProgramSession(task, 1, sandbox.Limits(wall_s=60.0))
        verdict = session.reply(f"def f(x): return {value}")
        assert isinstance(verdict, Verdict) and verdict.correct is right, value


def test_equal_programs_have_one_form() -> None:
    one = canonical("def f(x): return x*3+2  # so")
    same = ["def f(y):\n  'Doc.'\n  return y*3+2", "def f(n: int) -> int:\n\n    return ((n*3)+2)"]
    assert [canonical(text) for text in same] == [one, one]
    different = ["def f(x): return 2+x*3", "def f(x): return x*3+3", "def f(x): return abs(x*3+2)"]
    assert len({one, *map(canonical, different)}) == 4
    # Names that are not the program's own, or that a call gives by name, stay.
    assert canonical("def f(x): return sorted(x,key=len)") == "def f(v0):\n    return sorted(v0, key=len)"
    assert "def g(k)" in canonical("def g(k): return k\ndef f(x): return g(k=x)")
    assert canonical("(" * 5000) == "(" * 5000


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("def f(x): return 1", "def f(x): return 1"),
        ("```python\na\n```\nand\n```\nb\n c\n```", "b\n c"),
        ("<think>```\na\n```</think>\nb\n", "b"),
        ("```python\na", "```python\na"),
        ("\n  x=1\n  y=2\n", "x=1\ny=2"),
        ("  def f(x):\n return x", "def f(x):\n return x"),
        (" \n", ""),
    ],
)
def test_the_program_in_a_response(text: str, program: str) -> None:
    assert extract.program(text) == program


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"level": 5}, "level is 5, it must be 1 to 4"),
        ({"turns": 0}, "turns is 0, it must be 1 to 16"),
        ({"hidden": 99}, "hidden is 99"),
        ({"isolation": "none"}, "isolation is 'none', it must be one of namespaces, bubblewrap"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PythonProgram(**params)


def test_a_machine_with_too_little_isolation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "active", lambda: sandbox.LEVELS["limits"])
    with pytest.raises(ValueError, match="'limits', which is weaker than isolation='seccomp'"):
        PythonProgram()
    assert PythonProgram(isolation="limits").prompt("train", 0)

    def none() -> Any:
        raise sandbox.IsolationError("no isolation here")

    monkeypatch.setattr(sandbox, "active", none)
    with pytest.raises(ValueError, match="no isolation here"):
        PythonProgram()


def test_it_works_inside_the_verifiers_subprocess() -> None:
    box = KillableProcess()
    try:
        code = (
            "from envs.builtin.python_program.environment import PythonProgram as P;"
            "from envs.isolation import sandbox; t = P(0);"
            "p = t.prompt('train', 0); r = t.open(p).reply(t.solutions(p)[0]); import builtins;"
            "builtins.outcome = [sandbox.active().name, r.reward]"
        )
        box.call("builtins:exec", [code], 60.0)
        assert box.call("builtins:eval", ["outcome"], 5.0) == [sandbox.active().name, 1.0]
    finally:
        box.close()
