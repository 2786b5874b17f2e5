"""What a run's learner may compute with."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import config_data

from orchestration.cluster import placement
from orchestration.cluster.placement import learner_threads
from orchestration.config.run_config import validate
from orchestration.errors import ConfigError, PlacementError


@pytest.mark.parametrize(
    ("learner", "generators", "threads"),
    [
        ({}, {}, 2),  # one CPU each
        ({"cpus": 0.6}, {"cpus": 0.6, "count": 2}, 1),
        ({"cpus": 1, "ranks": 2}, {"cpus": 3, "count": 2}, 4),
        ({"cpus": 0.3}, {"cpus": 0.3}, 1),
        ({"threads": 7}, {}, 7),
        ({"gpus": 1}, {"gpus": 1}, None),
    ],
)
def test_a_rank_has_the_threads_that_generators_leave_idle(
    learner: dict[str, Any], generators: dict[str, Any], threads: int | None
) -> None:
    assert learner_threads(validate(config_data(learner=learner, generators=generators))) == threads


def colocated(ranks: int, **learner: Any) -> list[placement.Slot]:
    generators = {"gpus": 1, "colocated": True, "count": ranks, "cpus": 2}
    return placement.plan(validate(config_data(learner={"gpus": 1, "ranks": ranks, **learner}, generators=generators)))


def test_a_colocated_generator_is_in_the_bundle_of_its_rank() -> None:
    slots = colocated(2)
    reserved, at = placement.bundles(slots)
    assert reserved == [{"CPU": 3, "GPU": 1.0}, {"CPU": 3, "GPU": 1.0}, {"CPU": 0.1}]
    assert at == {"learner rank 0": 0, "learner rank 1": 1, "generator 0": 0, "generator 1": 1, "verifier 0": 2}
    assert placement.totals(slots) == {"CPU": 6.1, "GPU": 2.0}
    apart, one_by_one = placement.bundles(placement.plan(validate(config_data())))
    assert len(apart) == len(one_by_one) == 3


def test_what_is_reserved_together_has_to_fit_one_node_also_for_runs_side_by_side() -> None:
    slots = colocated(1)
    placement.check(slots * 3, {"CPU": 100, "GPU": 3}, [{"CPU": 4, "GPU": 1}] * 3)
    with pytest.raises(
        PlacementError, match="learner rank 0 and generator 0 asks for 3 CPU on one node and the largest node has 2"
    ):
        placement.check(slots * 3, {"CPU": 100, "GPU": 3}, [{"CPU": 2, "GPU": 1}] * 3)
    with pytest.raises(PlacementError, match=r"the run asks for 2 GPU \(2 learner 1, 2 generators 1\)"):
        placement.check(colocated(2), {"CPU": 100, "GPU": 1}, [{"CPU": 100, "GPU": 1}])


def on_nodes(**nodes: str) -> list[placement.Slot]:
    data = config_data(cluster={"node_resources": nodes}, generators={"count": 2}, verifiers={"count": 1})
    return placement.plan(validate(data))


def test_actors_ask_for_the_resource_of_their_nodes() -> None:
    slots = on_nodes(learner="learner_node", generators="generator_node")
    asked = {slot.role: set(slot.bundle) - {"CPU"} for slot in slots}
    assert asked["learner rank 0"] == {"learner_node"}
    assert asked["generator 0"] == asked["generator 1"] == {"generator_node"}
    assert asked["verifier 0"] == set()
    assert all(slot.bundle.get("generator_node", 0) * 1000 <= 1 for slot in slots)  # a thousand of them on a node


def test_a_resource_that_no_node_has_is_refused() -> None:
    slots = on_nodes(learner="learner_node")
    node = {"CPU": 8.0, "learner_node": 1.0}
    placement.check(slots, node, [node])
    with pytest.raises(PlacementError, match=r"learner rank 0 .*resource learner_node .*ray start --resources"):
        placement.check(slots, {"CPU": 8.0}, [{"CPU": 8.0}])


@pytest.mark.parametrize("name", ["CPU", "a b", "", "x:y"])
def test_a_resource_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="resource of your own"):
        on_nodes(learner=name)


def test_a_colocated_generator_has_no_nodes_of_its_own() -> None:
    data = config_data(
        cluster={"node_resources": {"generators": "generator_node"}},
        generators={"gpus": 1, "colocated": True},
        learner={"gpus": 1},
    )
    with pytest.raises(ConfigError, match="leave generators out of"):
        validate(data)
