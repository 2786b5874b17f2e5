"""Finds the answer, or the program, inside a response. Pure, linear in the length of the response, never raises."""

from __future__ import annotations

import re
import textwrap

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(r"\banswer(?:[ \t]+is[ \t]*:?|[ \t]*:)[ \t]*", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+(?!\w))?%?(?!\w)")
_SIGN = re.compile(r"(?:^|[^\w)\]\s-])\s*-\s*$|[^\d)\]\s]\s+-$")  # not between two terms: "= - 9", "makes -9"
_UNIT = re.compile(rf"(-?{_NUMBER.pattern})\s+[A-Za-z]{{3,}}(?:\s+[A-Za-z]+)*[.!]?")
_MARKS = "*_` \t\r\n"  # what Markdown puts around an answer


def extract(text: str) -> str:
    """Returns the final answer in a response, stripped; the last line that is not blank when nothing marks one.

    The first of these forms that occurs, and of several occurrences the last: <answer>..</answer>, \\boxed{..} with balanced
    braces, "#### ..", "answer is .." or "Answer: ..". Text before a final "</think>" is thinking and is ignored.
    """
    return _marked(text) or _last_line(text)


def last_number(text: str) -> str | None:
    """Returns the number that a response in words ends with; None without one.

    Where nothing marks an answer, it is the last number of the last line that is not blank: 'Max has 4 + 5 = 9 cookies.' -> '9'.
    It is one guess, as an answer is: a list of numbers does not earn more than its last one. Where something does, it is the number
    before a unit: 'Answer: 9 cookies' -> '9', while '\\boxed{9 + x}' has none. A minus sign belongs to the number unless it stands
    between two terms: 7 - 9 ends in 9.
    """
    marked = _marked(text)
    if marked:
        unit = _UNIT.fullmatch(marked)
        return unit.group(1) if unit else None
    line = _last_line(text).replace("\u2212", "-")
    matches = list(_NUMBER.finditer(line))
    if not matches:
        return None
    number, before = matches[-1].group(), line[: matches[-1].start()]
    return f"-{number}" if _SIGN.search(before) else number


def _marked(text: str) -> str | None:
    text = text.rpartition("</think>")[2]
    return next((answer for find in (tagged, boxed, _after_hashes, _after_phrase) if (answer := find(text))), None)


def _last_line(text: str) -> str:
    return text.rpartition("</think>")[2].strip().rpartition("\n")[2].strip()


def program(text: str) -> str:
    """Returns the program in a response: the last complete block between ``` lines, or the whole text when there is none.

    Thinking before a final "</think>" is ignored, as in `extract`. The first line's indentation is removed, from every line if
    all have it: no program can start with one.
    """
    text = text.rpartition("</think>")[2]
    blocks = _FENCE.findall(text)
    code = (blocks[-1] if blocks else text).strip("\r\n")
    dedented = textwrap.dedent(code)
    return (code if dedented[:1].isspace() else dedented).strip()


def tagged(text: str) -> str | None:
    """Returns the content of the last complete <answer>..</answer>; None without one."""
    before, closed, _ = text.rpartition("</answer>")
    if not closed:
        return None
    _, opened, answer = before.rpartition("<answer>")
    return answer.strip() if opened else None


def boxed(text: str) -> str | None:
    """Returns the content of the \\boxed{..} that opens last among those whose braces balance; None without one.

    '\\boxed{\\frac{1}{2}}' -> '\\frac{1}{2}'
    """
    opened: list[int | None] = []  # where the content starts; None for a brace without \boxed
    best: tuple[int, int] | None = None
    for token in _BOX.finditer(text):
        mark = token.group()
        if mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (best is None or start > best[0]):
                best = (start, token.start())
        elif mark == "{":
            opened.append(None)
        elif mark.endswith("{") and len(mark) > 2:  # not an escaped brace
            opened.append(token.end())
    return text[best[0] : best[1]].strip() if best else None


def _after_hashes(text: str) -> str | None:
    answers = _HASHES.findall(text)
    return answers[-1].strip() if answers else None


def _after_phrase(text: str) -> str | None:
    ends = [match.end() for match in _PHRASE.finditer(text)]
    if not ends:
        return None
    return text[ends[-1] :].lstrip(_MARKS).partition("\n")[0].rstrip(_MARKS).removesuffix(".").rstrip(_MARKS)
