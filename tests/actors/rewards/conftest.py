"""Gives the tests of judges an endpoint on a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.judge_endpoint import FakeEndpoint


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    made = FakeEndpoint()
    yield made
    made.close()
