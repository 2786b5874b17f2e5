"""Plays the short form of `make chaos` on the real stack: faults of every kind of actor in one run, its driver killed as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.harness import Failed, Lab
from chaos.scenarios import short

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close(keep=True)  # pytest keeps the last three


def test_a_run_survives_its_members_and_its_driver(lab: Lab) -> None:
    try:
        short(lab)
    except Failed as error:
        tails = "\n".join(run.tail() for run in lab.runs[-3:])
        pytest.fail(f"{error}\n{tails}", pytrace=False)
