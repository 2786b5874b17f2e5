"""Statistics of groups: one mean reward for the curriculum and the row, and what distinct solutions are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_group, make_trajectory
from support.fakes import Numbered

from envs.types import Group, Status, Trajectory
from orchestration.config.sections import AdvanceSection
from orchestration.group_stats import by_env, distinct_solutions, mean_reward
from orchestration.sampling.curriculum import Curriculum, Stage
from orchestration.telemetry.rollout_metrics import describe

MEMBERS = st.lists(
    st.lists(st.tuples(st.floats(-2, 2), st.sampled_from([Status.OK, Status.TURNS, Status.ERROR])), min_size=1),
    min_size=1,
    max_size=5,
)


@given(MEMBERS)
def test_the_reward_that_stages_advance_by_is_the_rows_to_the_bit(members: list[list[tuple[float, Status]]]) -> None:
    groups = []
    for k, responses in enumerate(members):
        made = [make_trajectory(reward=r if s.scored else 0.0, status=s, index=k) for r, s in responses]
        groups.append(Group(made[0].prompt, tuple(made)))
    curriculum = Curriculum([Numbered("e", None)], [Stage("a", (1.0,), 9, AdvanceSection(reward=1.0, window=1))], 0)
    curriculum.observe(groups)
    assert curriculum.rewards == [describe(groups)["reward/mean"]] == [mean_reward(groups)]


def test_responses_that_were_not_scored_are_left_out_of_the_mean() -> None:
    group = make_group([1.0, 0.5])
    lost = make_trajectory(status=Status.ERROR)
    assert mean_reward([Group(group.prompt, (*group.trajectories, lost))]) == 0.75
    assert mean_reward([Group(group.prompt, (lost,))]) == 0.0


def test_groups_by_environment_keep_their_order() -> None:
    groups = [make_group([1.0], index=i) for i in range(4)]
    named = [replace(g, prompt=replace(g.prompt, env="ba"[i % 2])) for i, g in enumerate(groups)]
    assert list(by_env(named)) == ["b", "a"]
    assert by_env(named)["a"] == [named[1], named[3]]


def test_a_solution_is_its_canonical_form_or_else_the_last_text() -> None:
    def response(text: str, correct: bool, solution: str | None = None) -> Trajectory:
        t = make_trajectory(reward=float(correct))
        return replace(t, texts=("first", text), verdict=replace(t.verdict, solution=solution))

    made = [response("a", True), response(" a", True), response("b", True), response("c", False)]
    assert distinct_solutions(Group(made[0].prompt, tuple(made))) == 2
    made = [response("a", True, "s"), response("b", True, "s"), response("c", True, "t")]
    assert distinct_solutions(Group(made[0].prompt, tuple(made))) == 2
