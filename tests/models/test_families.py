"""Five families through trainer, real engine and 20 real transfers, and the page that lists all that `make models` measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.families import BY_NAME, FAMILIES, FEW
from models.table import PAGE, run, verdict


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FEW)
def test_engine_and_trainer_stay_the_same_policy_over_twenty_updates(name: str, tmp_path: Path) -> None:
    row = run(BY_NAME[name], tmp_path / "row.json")
    assert verdict(BY_NAME[name], row) == "", row


def test_the_page_has_a_row_for_every_family_and_none_that_does_not_pass() -> None:
    page = PAGE.read_text()
    names = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ") and "`" in line]
    assert names == [family.name for family in FAMILIES]
    assert "does not pass" not in page


def test_a_row_that_is_off_anywhere_does_not_pass() -> None:
    exact = dict.fromkeys(("plain", "padded", "packed", "before", "unchanged"), 1e-6)
    exact |= dict.fromkeys(("after", "padded_after", "packed_after", "plain_after"), 1e-6) | {"moved": 2.0}
    packs, leaks = BY_NAME["llama"], BY_NAME["opt"]
    assert verdict(packs, exact) == ""
    for key in exact.keys() - {"moved"}:
        assert key in verdict(packs, {**exact, key: 2e-4})
        assert key in verdict(packs, {**exact, key: float("nan")})
    assert "nothing was tested" in verdict(packs, {**exact, "moved": 0.0})
    assert "it could be packed" in verdict(leaks, exact)
    assert verdict(leaks, {**exact, "packed": 0.5, "packed_after": 0.5}) == ""
    assert verdict(packs, {**exact, "refused": "vLLM cannot serve it"}) == "vLLM cannot serve it"
    assert verdict(packs, {"failed": "not done"}) == "not done"
