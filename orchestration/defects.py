"""Reports an error that no code of ours expected: one sentence for the person, the traceback in a file for us."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.quoting import shortened
from orchestration.errors import IsentropeError
from orchestration.text import one_line

MARK = "this is a defect of ours"
SHOW = "ISENTROPE_TRACEBACK"  # environment variable: set to 1, the traceback is printed as well


class Defect(IsentropeError):
    """Reports an error that is not the user's, with the file that has its traceback."""


@contextmanager
def defects(folder: Path | None = None) -> Iterator[None]:
    """Turns any error but an IsentropeError into a Defect. The traceback goes to `folder`, or else to the temporary one."""
    try:
        yield
    except IsentropeError:
        raise
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        raise Defect(
            f"{MARK}: {type(error).__name__}: {shortened(one_line(error), 500)}; {_kept(text, folder)}: please report it"
        ) from error


def _kept(text: str, folder: Path | None) -> str:
    """Writes a traceback where only the user can read it, since it may show texts of the run; says where."""
    for place in (folder, None):
        try:
            number, name = tempfile.mkstemp(
                prefix="isentrope-traceback-", suffix=".txt", dir=place, text=True
            )  # mode 0600
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:  # no such folder, or a full disk
            continue
        return f"the traceback is in {name}"
    return f"the traceback can be written nowhere: set {SHOW}=1 to see it"
