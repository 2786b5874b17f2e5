"""The plan of a batch: nothing lost, nothing twice, everything aligned, the same number of collectives everywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import alike, make_trajectory, trajectories

from envs.types import Group, Status, Trajectory, Verdict
from learner.advantages import ADVANTAGES, Advantage, leave_one_out
from learner.batching import build_batches, informative, trajectory_advantages
from learner.settings import BatchPlan
from learner.types import Aggregation, RankBatch


def build(responses: list[Trajectory], aggregation: Aggregation = "token", **plan: Any) -> list[RankBatch]:
    defaults: dict[str, Any] = {"updates": 1, "epochs": 1, "ranks": 1, "micro_batch_tokens": 30, "packing": False}
    advantages = np.arange(len(responses), dtype=np.float64) - len(responses) / 2
    return build_batches(
        responses, advantages, plan=BatchPlan(**{**defaults, **plan}), aggregation=aggregation, temperature=0.7
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Trajectory], dict[str, Any]]:
    responses = draw(trajectories())
    if sharing := draw(st.sampled_from([None, False, True])):
        responses = alike(responses, draw(st.integers(1, 6)))
    divisors = [k for k in range(1, len(responses) + 1) if len(responses) % k == 0]
    plan = {
        "updates": draw(st.sampled_from(divisors)),
        "epochs": draw(st.integers(1, 2)),
        "ranks": draw(st.integers(1, 4)),
        "micro_batch_tokens": draw(st.integers(1, 60)),
        "packing": draw(st.booleans()) or bool(sharing),
        "prefix_sharing": sharing,
        "mixed": draw(st.booleans()),
    }
    return responses, plan


def members_of(k: int, responses: list[Trajectory], plan: dict[str, Any]) -> list[int]:
    """Returns which responses an update has: every so manieth, or a part of them that stand together."""
    updates, each = plan["updates"], len(responses) // plan["updates"]
    return [i for i in range(len(responses)) if (i % updates if plan["mixed"] else i // each) == k]


def before(positions: Any, at: int) -> list[int]:
    """Returns where the token at a place of a row and those that it sees are: back to where positions restart and, where they do
    not restart at 0, as many tokens as are left out, from the last place that is at 0."""
    begin = at
    while begin and positions[begin] == positions[begin - 1] + 1:
        begin -= 1
    whole = max(i for i in range(begin + 1) if positions[i] == 0)
    return [*range(whole, whole + int(positions[begin])), *range(begin, at + 1)]


@given(cases(), st.sampled_from(["token", "sequence"]))
def test_every_action_token_is_trained_once_an_epoch_with_its_own_data(
    case: tuple[list[Trajectory], dict[str, Any]], aggregation: Aggregation
) -> None:
    responses, plan = case
    batches = build(responses, aggregation, **plan)
    assert len(batches) == plan["ranks"]
    for k in range(plan["updates"] * plan["epochs"]):
        actual: list[tuple[Any, ...]] = []
        for batch in batches:
            for micro in batch.updates[k]:
                tokens, positions = micro.tokens.ravel(), micro.positions.ravel()
                for n in range(micro.action_tokens):
                    i, at = int(micro.trajectory[n]), int(micro.predict[n])
                    actual.append((i, int(positions[at]) + 1, int(micro.targets[n])))
                    # what stands before the target, back to the start of its own trajectory, is what was sampled after
                    seen = before(positions, at)
                    assert tuple(tokens[seen]) == responses[i].token_ids[: positions[at] + 1]
                    assert list(positions[seen]) == list(range(positions[at] + 1))
                    assert micro.engine_logprobs[n] == np.float32(responses[i].engine_logprobs[positions[at] + 1])
                    assert micro.advantages[n] == np.float32(i - len(responses) / 2)
                    assert batch.envs[micro.env[n]] == responses[i].prompt.env
        expected = [
            (i, at, token)
            for i in members_of(k % plan["updates"], responses, plan)
            for at, (token, sampled) in enumerate(zip(responses[i].token_ids, responses[i].action_mask, strict=True))
            if sampled
        ]
        assert Counter(actual) == Counter(expected)


@given(cases(), st.sampled_from(["token", "sequence"]))
def test_weights_sum_to_one_and_follow_the_aggregation(
    case: tuple[list[Trajectory], dict[str, Any]], aggregation: Aggregation
) -> None:
    responses, plan = case
    batches = build(responses, aggregation, **plan)
    per_update = len(responses) // plan["updates"]
    for k in range(plan["updates"]):
        members = [responses[i] for i in members_of(k, responses, plan)]
        total = sum(t.response_tokens for t in members)
        weights = [(w, i) for b in batches for m in b.updates[k] for w, i in zip(m.weight, m.trajectory, strict=True)]
        assert sum(float(w) for w, _ in weights) == pytest.approx(1, abs=1e-6)
        for w, i in weights:
            share = 1 / total if aggregation == "token" else 1 / (per_update * responses[i].response_tokens)
            assert w == np.float32(share)


@given(cases())
def test_ranks_have_equally_many_micro_batches_within_the_token_budget(
    case: tuple[list[Trajectory], dict[str, Any]],
) -> None:
    responses, plan = case
    batches = build(responses, **plan)
    for k in range(plan["updates"] * plan["epochs"]):
        assert len({len(b.updates[k]) for b in batches}) == 1
        # told apart by identity, padding too: the learner's first pass goes over each micro-batch once, on every rank
        assert len({len({id(m) for m in b.updates[k]}) for b in batches}) == 1
        for micro in (m for b in batches for m in b.updates[k]):
            assert micro.tokens.shape == micro.positions.shape
            held = len(set(micro.trajectory.tolist()))
            assert micro.tokens.size <= plan["micro_batch_tokens"] or held == 1
            if plan["packing"]:
                assert len(micro.tokens) == 1
            if micro.action_tokens == 0:  # a filler: one forward pass that counts for nothing
                assert (micro.tokens.shape, micro.weight.shape) == ((1, 1), (0,))
    assert len({b.envs for b in batches}) == 1


def test_a_mixed_update_has_responses_of_every_prompt() -> None:
    responses = [make_trajectory([(3, 2)], index=i // 4) for i in range(24)]  # six prompts, four responses each

    def prompts(**plan: Any) -> list[set[int]]:
        (batch,) = build(responses, updates=2, **plan)
        return [{int(i) // 4 for m in update for i in m.trajectory} for update in batch.updates]

    assert prompts() == [set(range(6))] * 2
    assert prompts(mixed=False) == [{0, 1, 2}, {3, 4, 5}]


@given(cases())
def test_epochs_repeat_the_very_same_micro_batches(case: tuple[list[Trajectory], dict[str, Any]]) -> None:
    responses, plan = case
    for batch in build(responses, **{**plan, "epochs": 3}):
        once = plan["updates"]
        assert len(batch.updates) == 3 * once
        assert all(
            a is b for k in range(2 * once) for a, b in zip(batch.updates[k], batch.updates[k + once], strict=True)
        )


def test_a_packed_row_restarts_its_positions_and_a_padded_one_does_not() -> None:
    responses = [make_trajectory([(3, 2)], index=0), make_trajectory([(2, 1)], index=1)]
    (packed,) = build(responses, packing=True)[0].updates[0]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert packed.predict.tolist() == [2, 3, 6]
    (padded,) = build(responses, packing=False)[0].updates[0]
    assert padded.positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert padded.tokens[1, 3:].tolist() == [0, 0]
    assert padded.predict.tolist() == [2, 3, 6]


def test_observations_between_turns_are_context_and_not_trained() -> None:
    response = make_trajectory([(2, 2), (3, 1)])
    (micro,) = build([response])[0].updates[0]
    assert micro.predict.tolist() == [1, 2, 6]
    assert micro.targets.tolist() == [*response.turns[0].response_ids, *response.turns[1].response_ids]


def test_long_responses_are_spread_over_the_ranks() -> None:
    responses = [make_trajectory([(1, 40 if i < 2 else 4)], index=i) for i in range(6)]
    loads = [sum(m.action_tokens for m in b.updates[0]) for b in build(responses, ranks=2, micro_batch_tokens=100)]
    assert loads == [48, 48]


@pytest.mark.parametrize(
    ("responses", "plan", "message"),
    [
        (5, {"updates": 2}, "5 trajectories cannot be divided into 2 equal updates"),
        ([[(0, 2)]], {}, "trajectory toy/train/0 starts with a sampled token"),
        ([[(2, 2)], [(3, 0)]], {}, "trajectory toy/train/1 has no sampled token"),
    ],
)
def test_what_cannot_be_divided_is_one_sentence(responses: Any, plan: dict[str, Any], message: str) -> None:
    shapes = [[(2, 2)]] * responses if isinstance(responses, int) else responses
    with pytest.raises(ValueError, match=message):
        build([make_trajectory(turns, index=i) for i, turns in enumerate(shapes)], **plan)


def test_advantages_must_be_as_many_as_trajectories() -> None:
    plan = BatchPlan(updates=1, epochs=1, ranks=1, micro_batch_tokens=9, packing=False)
    with pytest.raises(ValueError, match="1 trajectories but 2 advantages"):
        build_batches([make_trajectory()], np.zeros(2), plan=plan, aggregation="token", temperature=1.0)


def test_a_trajectory_that_a_limit_ended_counts_as_a_failure() -> None:
    for status in (Status.TRUNCATED, Status.TURNS, Status.TOKENS, Status.SECONDS):
        members = [make_trajectory(reward=1.0, seed=0), make_trajectory(seed=1, status=status)]
        actual = trajectory_advantages([Group(members[0].prompt, tuple(members))], Advantage(leave_one_out))
        assert actual.tolist() == [1.0, -1.0], status


def test_responses_without_a_verdict_teach_nothing() -> None:
    members = [make_trajectory(reward=r, seed=i) for i, r in enumerate((1.0, 0.0, 1.0))]
    lost = [make_trajectory(seed=9, status=s) for s in (Status.ERROR, Status.TIMEOUT)]
    group = Group(members[0].prompt, (*members, *lost))
    actual = trajectory_advantages([group], Advantage(leave_one_out))
    assert actual[3:].tolist() == [0.0, 0.0]
    assert actual[:3].tolist() == leave_one_out(np.array([1.0, 0.0, 1.0])).tolist()
    assert actual[:3].any()
    alone = Group(members[0].prompt, (members[0], *lost))
    assert trajectory_advantages([alone], Advantage(leave_one_out)).tolist() == [0.0, 0.0, 0.0]
    # Under the batch's baseline it is compared with the responses to other prompts.
    failed = Group(members[0].prompt, (make_trajectory(seed=5), make_trajectory(seed=6)))
    actual = trajectory_advantages([alone, failed], ADVANTAGES["reinforce_pp"]).tolist()
    assert actual == pytest.approx([2**0.5, 0.0, 0.0, -(0.5**0.5), -(0.5**0.5)])


# --- dynamic sampling -----------------------------------------------------------------------------------------------------


@given(
    trajectories(min_size=2, max_size=12),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 60),
    st.sampled_from(["token", "sequence"]),
)
def test_what_was_dropped_is_measured_and_the_rest_is_divided_into_updates_of_the_usual_size(
    responses: list[Trajectory], kept: int, updates: int, ranks: int, tokens: int, aggregation: Aggregation
) -> None:
    kept = min(kept, len(responses))
    advantages = np.arange(kept, dtype=np.float64)
    batches = build_batches(
        responses[:kept],
        advantages,
        plan=BatchPlan(updates=updates, epochs=2, ranks=ranks, micro_batch_tokens=tokens, packing=False),
        aggregation=aggregation,
        temperature=1.0,
        measured=responses[kept:],
        full_batch=len(responses),
    )
    assert {b.steps for b in batches} == {2 * updates}
    assert len({b.envs for b in batches}) == 1
    count = len(batches[0].updates)
    assert count <= 2 * updates
    assert (count == 0) == (kept == 0)
    trained: list[set[int]] = []
    for k in range(count):
        micros = [m for b in batches for m in b.updates[k]]
        trained.append({int(i) for m in micros for i in m.trajectory})
        assert sum(m.weight.sum() for m in micros) == pytest.approx(1.0, rel=1e-5)
        assert len({len(b.updates[k]) for b in batches}) == 1
    once = trained[: count // 2]
    assert sorted(i for members in once for i in members) == list(range(kept))
    assert trained[count // 2 :] == once
    for members in once:  # never smaller than a part of the whole, unless nothing more is left
        assert len(members) >= min(len(responses) // updates, kept)
        assert len(members) <= 2 * (len(responses) / updates) + 1
    measured = [m for b in batches for m in b.measured]
    assert {int(i) for m in measured for i in m.trajectory} == set(range(kept, len(responses)))
    assert not any(m.weight.any() or m.advantages.any() for m in measured)
    assert sum(m.action_tokens for m in measured) == sum(t.response_tokens for t in responses[kept:])
    assert len({len(b.measured) for b in batches}) == 1


@given(st.lists(st.sampled_from([(1.0, Status.OK), (0.0, Status.OK), (0.0, Status.ERROR)]), min_size=2, max_size=6))
def test_a_group_is_informative_where_a_group_baseline_leaves_it_an_advantage(
    members: list[tuple[float, Status]],
) -> None:
    made = [make_trajectory(reward=r, status=s, seed=i) for i, (r, s) in enumerate(members)]
    group = Group(made[0].prompt, tuple(made))
    assert informative(group) == bool(trajectory_advantages([group], Advantage(leave_one_out)).any())


def shaped(*members: tuple[float, bool, float], status: Status = Status.OK) -> Group:
    """Returns a group of (the environment's reward, whether it is right, reward with terms)."""
    made = [make_trajectory(seed=i) for i in range(len(members))]
    return Group(
        made[0].prompt,
        tuple(
            replace(t, verdict=Verdict(reward, right, status=status, terms={"verdict": own, "length": reward - own}))
            for t, (own, right, reward) in zip(made, members, strict=True)
        ),
    )


@pytest.mark.parametrize(
    ("members", "by_reward", "by_verdict", "by_correct"),
    [
        (((1.0, True, 0.9), (1.0, True, 0.8)), True, False, False),  # all right, of different length
        (((0.0, False, -0.2), (0.0, False, -0.3)), True, False, False),  # all wrong
        (((0.2, False, 0.1), (0.7, False, 0.6)), True, True, False),  # partial credit, none right
        (((1.0, True, 0.9), (0.0, False, -0.1)), True, True, True),
        (((1.0, True, 0.5), (0.5, False, 0.5)), False, False, False),  # terms make up the difference: no advantage
    ],
)
def test_what_terms_alone_tell_apart_is_no_difference_by_verdict(
    members: tuple[tuple[float, bool, float], ...], by_reward: bool, by_verdict: bool, by_correct: bool
) -> None:
    group = shaped(*members)
    assert (informative(group), informative(group, "verdict"), informative(group, "correct")) == (
        by_reward,
        by_verdict,
        by_correct,
    )
    lost = shaped((9.0, not members[0][1], 9.0), status=Status.ERROR)  # what is not scored is no difference either
    assert informative(Group(group.prompt, group.trajectories + lost.trajectories), "verdict") == by_verdict
    assert informative(Group(group.prompt, group.trajectories + lost.trajectories), "correct") == by_correct


def test_partial_credit_teaches_where_nothing_shapes_the_reward() -> None:
    made = [make_trajectory(reward=r, seed=i) for i, r in enumerate((0.2, 0.7))]
    group = Group(made[0].prompt, tuple(replace(t, verdict=replace(t.verdict, correct=False)) for t in made))
    assert informative(group) and informative(group, "verdict") and not informative(group, "correct")


# --- turn-level advantages ---------------------------------------------------------------------------------------------------


@given(trajectories(), st.integers(1, 3), st.booleans())
def test_the_tokens_of_a_turn_share_its_advantage(responses: list[Trajectory], ranks: int, packing: bool) -> None:
    advantages = [np.array([10.0 * i + k for k in range(len(t.turns))]) for i, t in enumerate(responses)]
    plan = BatchPlan(updates=1, epochs=1, ranks=ranks, micro_batch_tokens=30, packing=packing)
    batches = build_batches(responses, advantages, plan=plan, aggregation="token", temperature=1.0)
    actual: dict[int, list[float]] = {}
    for micro in (m for b in batches for m in b.updates[0]):
        for i, value in zip(micro.trajectory.tolist(), micro.advantages.tolist(), strict=True):
            actual.setdefault(i, []).append(value)
    for i, t in enumerate(responses):
        assert actual[i] == [10.0 * i + k for k, turn in enumerate(t.turns) for _ in turn.response_ids]


def test_a_padded_micro_batch_is_made_of_similar_lengths() -> None:
    """What padding costs is weighed against what a micro-batch costs: learner/microbatches/partition.py."""
    lengths = [400, 390, 380, *(24 - i % 2 for i in range(61))]
    responses = [make_trajectory([(3, n - 3)], index=i) for i, n in enumerate(lengths)]
    (batch,) = build(responses, micro_batch_tokens=16_384)
    shapes = [m.tokens.shape for m in batch.updates[0]]
    assert shapes == [(3, 400), (61, 24)]
    few = [make_trajectory([(3, n)], index=i) for i, n in enumerate((30, 25, 20, 10))]
    assert len(build(few, micro_batch_tokens=16_384)[0].updates[0]) == 1  # nothing to gain


def test_ranks_share_what_attention_costs_and_not_tokens_alone() -> None:
    responses = [make_trajectory([(3, n - 3)], index=i) for i, n in enumerate((1200, *(100,) * 12))]
    first, second = build(responses, ranks=2, micro_batch_tokens=10_000)
    held = [{int(i) for m in batch.updates[0] for i in m.trajectory} for batch in (first, second)]
    assert held == [{0}, set(range(1, 13))]  # 1,200 tokens each: dealt by tokens it would be the same
    longer = [make_trajectory([(3, n - 3)], index=i) for i, n in enumerate((1200, *(100,) * 20))]
    first, second = build(longer, ranks=2, micro_batch_tokens=10_000)
    assert {int(i) for m in first.updates[0] for i in m.trajectory} == {0}  # by tokens it would have four more


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({}, None),
        ({"micro_batch_tokens": 512, "ledger_share": 0.4, "packing": True}, None),
        ({"micro_batch_tokens": 128}, "learner.micro_batch_tokens=128 is slow"),
        ({"micro_batch_tokens": 128, "gpus": 1.0}, None),  # what fits a GPU's memory was chosen by its user
        ({"ledger_share": 1.0}, "learner.ledger_share=1 is slow: it takes about 78% more time"),
    ],
)
def test_a_slow_plan_is_told(plan: dict[str, Any], sentence: str | None) -> None:
    said = BatchPlan(**plan).slow()
    assert said == [] if sentence is None else len(said) == 1 and said[0].startswith(sentence)
