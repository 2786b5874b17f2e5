"""Writes a folder that appears complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(target: Path, is_there: Callable[[], bool]) -> Generator[Path, None, None]:
    """Yields a folder beside `target` that takes its name at the end, and vanishes when anything goes wrong.

    is_there: asked at the end, whether another process was faster and wrote the same; `target` is then left as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    folder.chmod(0o755)  # mkdtemp makes it private; a cluster's other users load the model too
    try:
        yield folder
        if is_there():
            return
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def no_progress_bars() -> Generator[None, None, None]:
    """Hides the bars that transformers draws on stderr while it reads and writes; what users see comes from us alone."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
