"""Grades whether an answer equals the reference: as text, then as a number, then as mathematics.

exact     equal after normalisation: case, spaces, $..$, \\text{..}, trailing full stop
numeric   both are numbers: integers must be equal, otherwise |a - b| <= rel_tol * max(|a|, |b|). Understands 1,234,
          3/4, \\frac{3}{4}, 1e-3, 50% (which is 1/2), signs and a currency mark
symbolic  equal to math-verify, in a subprocess that is killed after `timeout_s`
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from envs.isolation import killable

How = Literal["exact", "numeric", "symbolic", "different", "too long", "timeout", "unreadable"]

REL_TOL = 1e-6
TIMEOUT_S = 5.0
MAX_EXACT = 20_000  # characters; a longer answer is not graded
MAX_NUMBER = 100  # characters; int() itself refuses more than 4,300 digits
MAX_SYMBOLIC = 300

_WRAPPERS = (re.compile(r"\$\$(.*)\$\$", re.DOTALL), re.compile(r"\$(.*)\$", re.DOTALL), re.compile(r"\\\((.*)\\\)"))
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"([+-]?)({_DECIMAL})(?:[eE]([+-]?[0-9]{{1,3}}))?(?:/({_DECIMAL}))?(%?)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_MATHS_WORD = re.compile(r"(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|inf|infty|max|min|mod", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grade:
    """Holds whether the answer is correct and how that was decided. Example: Grade(True, "numeric") for 0.5 and 1/2."""

    correct: bool
    how: How


def grade(answer: str, reference: str, *, symbolic: bool = True, timeout_s: float = TIMEOUT_S) -> Grade:
    """Compares the answer with the reference; never raises, whatever the answer is.

    symbolic: whether to try math-verify. timeout_s: seconds for it.
    """
    if len(answer) > MAX_EXACT:
        return Grade(False, "too long")
    answer, reference = _clean(answer), _clean(reference)  # keeps the case, since \mathbb{r} would not be parsed
    if not answer:
        return Grade(False, "different")
    if answer.casefold() == reference.casefold():
        return Grade(True, "exact")
    numbers = number(answer), number(reference)
    if numbers[0] is not None and numbers[1] is not None:
        return Grade(True, "numeric") if _close(numbers[0], numbers[1]) else Grade(False, "different")
    if not symbolic or not _is_maths(answer) or not _is_maths(reference):
        return Grade(False, "different")
    try:
        equal = killable.call(
            "envs.answers.grading:symbolically_equal", (answer, reference), timeout_s, preload=("math_verify",)
        )
    except killable.KillableTimeout:
        return Grade(False, "timeout")
    except killable.KillableError:
        return Grade(False, "unreadable")
    return Grade(True, "symbolic") if equal else Grade(False, "different")


def normalise(answer: str) -> str:
    """Returns the text that equal answers share: lower case, single spaces, no maths marks: '$\\text{Paris}.$' -> 'paris'."""
    return _clean(answer).casefold()


def _clean(answer: str) -> str:
    answer = answer.strip()
    for wrapper in _WRAPPERS:
        inside = wrapper.fullmatch(answer)
        if inside and "$" not in inside.group(1):
            answer = inside.group(1)
    answer = _SPACING.sub("", _TEXT.sub(r"\1", answer)).replace("\u2212", "-").replace("\\%", "%").replace("\\$", "$")
    answer = " ".join(answer.split())
    if answer.endswith(".") and not answer.endswith(".."):
        answer = answer[:-1].rstrip()
    return answer


def number(text: str) -> Fraction | None:
    """Returns the exact number that a text stands for; None when it is not a number or longer than MAX_NUMBER characters."""
    if len(text) > MAX_NUMBER:
        return None
    text = _FRACTION.sub(r"\1/\2", text).replace(" ", "").lstrip("$€£")
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    sign, whole, exponent, divisor, percent = match.groups()
    value = Fraction(whole.replace(",", "").rstrip(".")) * Fraction(10) ** int(exponent or 0)
    if divisor:
        below = Fraction(divisor.replace(",", "").rstrip("."))
        if below == 0:
            return None
        value /= below
    if percent:
        value /= 100
    return -value if sign == "-" else value


def _close(a: Fraction, b: Fraction) -> bool:
    if a == b:
        return True
    if a.denominator == b.denominator == 1:
        return False  # a tolerance would accept 1000000 for 1000001
    return abs(a - b) <= Fraction(REL_TOL) * max(abs(a), abs(b))


def _is_maths(text: str) -> bool:
    """Returns whether a text may be compared as mathematics.

    Words may not: to a computer algebra system 'eat' and 'tea' are the same product.
    """
    return len(text) <= MAX_SYMBOLIC and all(map(_MATHS_WORD.fullmatch, _WORD.findall(text)))


def symbolically_equal(answer: str, reference: str) -> bool:
    """Compares two answers with math-verify; runs in the killable subprocess.

    math-verify's own time-outs need SIGALRM and a main thread, so they are switched off.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn at every call that time-outs are off
    parsed_reference, parsed_answer = (parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))  # type: ignore[arg-type]
    return bool(parsed_reference and parsed_answer) and verify(parsed_reference, parsed_answer, timeout_seconds=None)
