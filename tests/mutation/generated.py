"""Generates mutations of the formula modules from their syntax trees: `python tests/mutation/runner.py --only generated --list`.

Four kinds, each the smallest change that makes another formula of the same shape:

    sign      a + b -> a - b, -a -> a, and += beside -=
    operands  a - b -> b - a, a / b -> b / a, and a ** b -> b ** a
    compare   < beside >, <= beside >=, == beside !=
    bound     min beside max, minimum beside maximum, clamp(min=...) beside clamp(max=...)

A mutation's name is file, function, kind and the number of the site among those of that kind in the function, so that lines added
elsewhere do not rename it. A run takes seconds for each, so the choice is bounded, and always the same: every site of the modules
in `ALL_SITES`, and of the others the first site of each kind in a function. Left out are code outside functions, error messages and
the conditions that lead to them, signed constants (axes, indices), sums of strings and tuples, and the functions in `EXCLUDED`,
which check and do not compute. `EQUIVALENT` lists by name the mutations that no test can notice, each with the reason.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutation.entries import Span

ROOT = Path(__file__).parents[2]

_T = "tests/learner/"
CONTROLLERS = f"{_T}entropy/test_references_control.py {_T}entropy/test_controllers.py {_T}entropy/test_steering.py"
# The tests that have to notice a change of the module.
TESTS = {
    "learner/objective.py": f"{_T}test_objective.py {_T}test_references.py {_T}test_tabular.py "
    f"{_T}entropy/test_references_methods.py",
    "learner/advantages.py": f"{_T}test_advantages.py {_T}test_references.py -k advantage or grpo or reinforce or whitening or "
    "earned or turn",
    "learner/ledger/tally.py": f"{_T}ledger/test_ledger.py",
    "learner/ledger/predicted.py": f"{_T}ledger/test_ledger.py {_T}test_tabular.py",
    "learner/ledger/history.py": f"{_T}ledger/test_ledger.py {_T}entropy/test_controllers.py {_T}entropy/test_steering.py",
    "learner/logprobs.py": f"{_T}test_logprobs.py {_T}head/test_kernels.py -k not kernels_",
    "learner/head/logits.py": f"{_T}test_logprobs.py",
    "learner/head/moments.py": f"{_T}test_logprobs.py",
    "learner/head/blocks.py": f"{_T}test_logprobs.py",
    "learner/schedule.py": f"{_T}test_schedule.py",
    "learner/entropy/repo.py": f"{_T}entropy/test_references_methods.py -k repo",
    "learner/entropy/covariance.py": f"{_T}entropy/test_references_methods.py -k cov or order or share",
    "learner/entropy/clip.py": f"{_T}entropy/test_methods.py -k clip or no_control",
    "learner/entropy/bonus.py": f"{_T}entropy/test_methods.py -k bonus or oriented",
    "learner/entropy/controllers.py": CONTROLLERS,
    "learner/entropy/isentropic.py": CONTROLLERS,
    "learner/entropy/target.py": CONTROLLERS,
    "envs/reward_terms/length.py": "tests/envs/reward_terms/test_length.py",
    "orchestration/stats.py": "tests/orchestration/test_stats.py",
}

ALL_SITES = frozenset({"learner/objective.py"})
EXCLUDED = frozenset(
    {
        "learner/entropy/controllers.py:Range.over",
        "learner/entropy/controllers.py:Base.load_state_dict",
        "learner/entropy/target.py:TargetSettings._possible",
    }
)
EQUIVALENT: dict[str, str] = {}

_SIGNS: dict[type[ast.AST], str] = {ast.Add: "-"}
_STEPS: dict[type[ast.AST], str] = {ast.Add: "-", ast.Sub: "+"}
_SWAPPED: dict[type[ast.AST], str] = {ast.Sub: "-", ast.Div: "/", ast.Pow: "**"}
_COMPARE: dict[type[ast.AST], str] = {
    ast.Lt: ">",
    ast.Gt: "<",
    ast.LtE: ">=",
    ast.GtE: "<=",
    ast.Eq: "!=",
    ast.NotEq: "==",
}
_SYMBOL: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Lt: "<",
    ast.Gt: ">",
    ast.LtE: "<=",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_BOUND = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True, slots=True)
class _Edit:
    kind: str
    start: int
    stop: int
    text: str


class _Source:
    """Translates syntax-tree positions, which count bytes of a line, into offsets of the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.expr) -> int:
        return self.offset(node.lineno, node.col_offset)

    def stop(self, node: ast.expr) -> int:
        return self.offset(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def between(self, left: ast.expr, right: ast.expr, symbol: str) -> int:
        """Finds the operator between two operands: parentheses and blanks may stand there too."""
        return self.text.index(symbol, self.stop(left), self.start(right))


def _edits(node: ast.AST, source: _Source) -> Iterator[_Edit]:
    """Yields what may be changed at this node itself."""
    match node:
        case ast.BinOp(left, op, right) if not _is_sequence(left) and not _is_sequence(right):
            if type(op) in _SIGNS:
                at = source.between(left, right, _SYMBOL[type(op)])
                yield _Edit("sign", at, at + 1, _SIGNS[type(op)])
            if type(op) in _SWAPPED:
                start, stop = source.start(node), source.stop(node)
                code = f"({ast.unparse(right)}) {_SWAPPED[type(op)]} ({ast.unparse(left)})"
                yield _Edit("operands", start, stop, f"({code})")
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            at = source.start(node)
            yield _Edit("sign", at, at + 1, "")
        case ast.AugAssign(target, op, value) if type(op) in _STEPS:
            at = source.between(target, value, _SYMBOL[type(op)])
            yield _Edit("sign", at, at + 1, _STEPS[type(op)])
        case ast.Compare(left, operators, comparators):
            for one, op, other in zip([left, *comparators], operators, comparators, strict=False):
                if type(op) in _COMPARE:
                    symbol = _SYMBOL[type(op)]
                    at = source.between(one, other, symbol)
                    yield _Edit("compare", at, at + len(symbol), _COMPARE[type(op)])
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name), _, keywords):
            function = node.func
            if name in _BOUND:
                stop = source.stop(function)
                yield _Edit("bound", stop - len(name), stop, _BOUND[name])
            elif name == "clamp" and len(keywords) == 1 and keywords[0].arg in _BOUND:
                at = source.offset(keywords[0].lineno, keywords[0].col_offset)
                yield _Edit("bound", at, at + len(keywords[0].arg), _BOUND[keywords[0].arg])
        case _:
            pass


def _is_sequence(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr | ast.Tuple | ast.List | ast.Dict) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _in_order(node: ast.AST, source: _Source) -> Iterator[_Edit]:
    """Yields the edits of a function in the order of its text; nested functions have their own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Raise | ast.JoinedStr | ast.Assert):
            continue
        if isinstance(child, ast.If) and all(isinstance(s, ast.Raise) for s in child.body):
            continue
        yield from _edits(child, source)
        yield from _in_order(child, source)


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def generate(file: str, tests: str) -> Iterator[Span]:
    """Yields every mutation of one file, those in `EQUIVALENT` included, in the order of its functions."""
    text = (ROOT / file).read_text("utf-8")
    source = _Source(text)
    for function, node in _functions(ast.parse(text)):
        if f"{file}:{function}" in EXCLUDED:
            continue
        numbers: Counter[str] = Counter()
        for edit in _in_order(node, source):
            numbers[edit.kind] += 1
            if numbers[edit.kind] > 1 and file not in ALL_SITES:
                continue
            name = f"generated: {file}:{function}: {edit.kind} {numbers[edit.kind]}"
            yield Span(name, file, edit.start, edit.stop, edit.text, tests)


EVERY: tuple[Span, ...] = tuple(m for file, tests in TESTS.items() for m in generate(file, tests))
GENERATED: tuple[Span, ...] = tuple(m for m in EVERY if m.name not in EQUIVALENT)
