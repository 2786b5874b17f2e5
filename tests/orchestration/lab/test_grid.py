"""Grids: every cell is a configuration or says why it cannot run; a file that cannot be read is one sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from support.builders import config_data

from orchestration.errors import ConfigError, NumericsError
from orchestration.lab import runner
from orchestration.lab.grid import GRIDS, cells, load_grid, notes, to_yaml, warm_start


def grid_file(folder: Path, **changes: Any) -> str:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config_data()))
    data: dict[str, Any] = {
        "name": "g",
        "recipe": str(recipe),
        "seeds": [0, 1],
        "arms": {"a": {}, "b": {"learner.lr": 0.5}},
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}, sort_keys=False))
    return str(path)


def test_arms_times_settings_times_seeds_seed_by_seed(tmp_path: Path) -> None:
    arms = {"a": {"note": "plain"}, "b": {"learner.lr": 0.5, "seeds": [1]}, "c": None}
    settings = {"short": {}, "long": {"run.iterations": 9, "learner.lr": 0.1}}
    grid = load_grid(grid_file(tmp_path, arms=arms, settings=settings, overrides={"batch.responses": 8}))
    grid_cells = cells(grid, tmp_path / "arms", "some/model")
    assert [c.name for c in grid_cells] == [
        *("a.short-s0", "a.long-s0", "c.short-s0", "c.long-s0"),
        *("a.short-s1", "a.long-s1", "b.short-s1", "b.long-s1", "c.short-s1", "c.long-s1"),
    ]
    by_name = {c.name: c.config for c in grid_cells}
    one = by_name["b.long-s1"]
    assert one is not None
    assert (one.run.iterations, one.learner.lr, one.batch.responses) == (9, 0.5, 8)  # the arm's word is the last
    assert (one.run.seed, one.run.sinks, one.model.path) == (1, ["jsonl"], "some/model")
    assert one.folder == tmp_path / "arms" / "b.long-s1"
    assert notes(grid)["a.long"] == "plain"


def test_an_arm_that_cannot_run_says_so_and_the_others_stand(tmp_path: Path) -> None:
    grid = load_grid(grid_file(tmp_path, arms={"a": {}, "b": {"learner.lrr": 1.0}}))
    grid_cells = {c.name: c for c in cells(grid, tmp_path, None)}
    assert grid_cells["a-s0"].config is not None
    assert grid_cells["b-s0"].config is None
    assert grid_cells["b-s0"].problem == "unknown key learner.lrr: did you mean 'lr'?"
    assert "b-s1: CANNOT RUN: unknown key learner.lrr" in runner.describe(grid, list(grid_cells.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"armz": {}}, "unknown key armz: did you mean 'arms'"),
        ({"arms": {}}, "arms"),
        ({"seeds": []}, "seeds"),
        ({"arms": {"a": {"seeds": [0, 0]}}}, r"arms\.a\.seeds \[0, 0\] has a seed twice"),
        ({"arms": {"a": {"seeds": ["x"]}}}, r"arms\.a\.seeds is \['x'\]: give a list of whole numbers"),
        ({"lanes": 0}, "lanes"),
        ({"workers": 0}, "workers"),
    ],
)
def test_a_grid_that_cannot_be_is_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_grid(grid_file(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_workers_may_go_by_their_earlier_name(tmp_path: Path) -> None:
    assert load_grid(grid_file(tmp_path, lanes=3)).workers == 3
    assert load_grid(grid_file(tmp_path, workers=2)).workers == 2
    assert "workers: 1" in to_yaml(load_grid(grid_file(tmp_path)))


def test_the_nearest_shipped_grid_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no grid file 'entropi'.*did you mean 'entropy'\?"):
        load_grid("entropi")


@pytest.mark.parametrize("name", sorted(p.stem for p in GRIDS.glob("*.yaml")))
def test_every_shipped_grid_loads_and_all_its_arms_can_run(name: str, tmp_path: Path) -> None:
    grid = load_grid(name)
    assert (GRIDS / f"{name}.yaml").read_text().startswith("#"), "a grid begins with what it is for"
    assert [c.problem for c in cells(grid, tmp_path, "models/some")] == [""] * len(cells(grid, tmp_path, "models/some"))


def test_a_grid_of_which_nothing_can_run_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    path = grid_file(tmp_path, arms={"a": {"learner.lrr": 1.0}})
    with pytest.raises(ConfigError, match="no run of the grid g can start: a-s0: unknown key"):
        runner.run(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error", [NumericsError("the loss is nan"), RuntimeError("a library's own\nfailure")])
def test_a_run_that_fails_in_any_way_costs_itself_alone_and_its_actors(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = load_grid(grid_file(tmp_path, seeds=[0], arms={"a": {}, "b": {}, "c": {}}))
    events: list[str] = []

    class Actors:
        def __init__(self, config: Any, say: Any) -> None:
            self.config = config
            events.append("made")

        async def close(self) -> None:
            events.append("closed")

    async def conduct(job: Any, *rest: Any) -> None:
        events.append(job.config.run.name)
        if job.config.run.name == "b-s0":
            raise error

    class Silent:
        async def watch(self, on_lost: Any) -> None:
            await asyncio.Event().wait()  # nothing is lost

    monkeypatch.setattr("orchestration.cluster.cluster.Cluster", Actors)
    monkeypatch.setattr(runner, "conduct", conduct)
    monkeypatch.setattr("orchestration.sampling.codec.load_codecs", lambda config: None)
    monkeypatch.setattr(runner, "_outcome", lambda cell: "")
    progress = runner.Progress(3, lambda text: None)
    todo = [(c, runner.Job(c.config)) for c in cells(grid, tmp_path, None) if c.config is not None]
    asyncio.run(runner._work(todo, 1, progress, cast("Any", Silent())))
    assert [c.name for c in progress.done] == ["a-s0", "c-s0"]
    ((cell, reason),) = progress.failed
    assert cell.name == "b-s0"
    assert "\n" not in reason
    assert events == ["made", "a-s0", "b-s0", "closed", "made", "c-s0", "closed"]


def test_a_warm_start_demonstrates_the_runs_environments_unless_it_has_its_own(tmp_path: Path) -> None:
    (cell, *_) = cells(load_grid(grid_file(tmp_path)), tmp_path / "arms", None)
    assert cell.config is not None
    made = warm_start({"steps": 3}, cell.config)
    assert made["steps"] == 3
    assert made["environments"] == [{"name": e.name, "params": e.params} for e in cell.config.all_environments]
    own = [{"name": "countdown", "params": {"abstain": 0.3}}]
    assert warm_start({"environments": own}, cell.config) == {"environments": own}
