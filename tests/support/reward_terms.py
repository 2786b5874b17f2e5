"""Makes sections `rewards` of a configuration, and says how one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from actors.inference import Completion
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError
from support.builders import config_data

URL = "http://localhost:8000/v1"


def refused(**rewards: Any) -> str:
    """Returns the one sentence that refuses a section."""
    with pytest.raises(ConfigError) as caught:
        validate(config_data(rewards=rewards))
    text = str(caught.value)
    assert "\n" not in text
    return text


def judge(**values: Any) -> dict[str, Any]:
    return {"judge": {"weight": 1.0, "url": URL, "model": "m", **values}}


def model(**values: Any) -> dict[str, Any]:
    return {"model": {"weight": 1.0, "path": "some/model", **values}}


async def nobody(requests: object) -> list[Completion]:
    """Answers no request: a test with it asks nobody."""
    raise AssertionError("nobody was to be asked")
