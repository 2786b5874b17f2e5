"""What is trained against what the model computes, on real tiny models, some of them broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from learner.families.logit_scale import LogitScale
from learner.microbatches import packed_attention
from learner.model_check import LENGTH, SEQUENCES, check_model, cut, sequence_logprobs
from learner.policy import Policy
from learner.types import MicroBatch, ModelCheck

SIZE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SEQUENCES_OF_IDS = [[(7 * i * i + 3 * k * i + k) % 64 for i in range(20 + k)] for k in range(4)]


def policy_of(kind: str, dtype: torch.dtype = torch.float32, fp32_head: bool = False, **more: Any) -> Policy:
    """Returns a random model far from uniform, so that a wrong logit or position is whole tenths of a nat."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SIZE, **more)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return Policy(model, fp32_head=fp32_head).cast(dtype)


def checked(
    policy: Policy, packing: bool = True, sequences: list[list[int]] = SEQUENCES_OF_IDS, sharing: bool = True
) -> ModelCheck:
    def forward(micro: MicroBatch) -> torch.Tensor:
        arrays = (micro.tokens, micro.positions, micro.predict, micro.targets)
        return policy(*map(torch.tensor, arrays), 1.0)[0]

    return check_model(policy, policy, forward, torch.device("cpu"), sequences, packing, sharing)


def gap(a: list[list[float]], b: list[list[float]]) -> float:
    assert [len(x) for x in a] == [len(x) for x in b]
    return max(abs(p - q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True))


def expected(policy: Policy, ids: tuple[int, ...]) -> list[float]:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        model: Any = policy.model
        table = model(input_ids=tokens).logits.float().log_softmax(-1)[0]
    return [float(table[i, t]) for i, t in enumerate(ids[1:])]


def test_a_model_that_is_computed_right_agrees_everywhere() -> None:
    policy = policy_of("qwen3", head_dim=16)
    check = checked(policy)
    assert check.packed is not None
    assert [len(x) + 1 for x in check.alone] == [len(x) for x in cut(SEQUENCES_OF_IDS)]
    for other in (check.padded, check.packed, check.head, check.plain):
        assert gap(check.alone, other) < 2e-5
    assert gap(check.plain, [expected(policy, ids) for ids in cut(SEQUENCES_OF_IDS)]) < 2e-5
    assert check.shared is not None and gap(*check.shared) < 2e-5


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_prompts_are_shared_by_two_sequences_at_least(count: int) -> None:
    policy, rows = policy_of("qwen3", head_dim=16), list[list[int]]()
    forward = policy.forward

    def followed(tokens: torch.Tensor, positions: torch.Tensor, *more: Any) -> Any:
        rows.extend(positions.tolist())
        return forward(tokens, positions, *more)

    policy.forward = followed  # type: ignore[method-assign]
    check = checked(policy, sequences=SEQUENCES_OF_IDS[:count])
    assert check.shared is not None
    alone, shared = check.shared
    assert [len(x) for x in alone] == [len(x) for x in shared] and len(alone) == max(2, count)
    branches = [sum(b not in (0, a + 1) for a, b in pairwise(row)) for row in rows]
    assert sorted(branches)[-2:] == [0, max(2, count) - (2 if count > 3 else 1)]


def test_prompts_are_not_shared_where_training_does_not() -> None:
    assert checked(policy_of("qwen3", head_dim=16), packing=False).shared is None
    assert checked(policy_of("qwen3", head_dim=16), sharing=False).shared is None


def test_a_mask_that_says_more_refuses_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("qwen3", head_dim=16)
    monkeypatch.setattr(packed_attention, "_packed_row", lambda *_: None)
    check = checked(policy)
    assert check.packed is not None and gap(check.alone, check.packed) < 2e-5  # with transformers' mask
    assert check.shared is None


def test_rows_are_not_packed_where_training_does_not_pack() -> None:
    assert checked(policy_of("qwen3", head_dim=16), packing=False).packed is None


def cap_what_is_not_capped(policy: Policy) -> None:
    policy.logits = LogitScale(softcap=2.0)


def scale_the_models_own_logits(policy: Policy) -> None:
    """Does what families do whose scale nobody has told the trainer of."""
    model: Any = policy.model
    forward = model.forward

    def scaled(*args: Any, **more: Any) -> Any:
        out = forward(*args, **more)
        out.logits = out.logits / 1.1
        return out

    model.forward = scaled


@pytest.mark.parametrize("broken", [cap_what_is_not_capped, scale_the_models_own_logits])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_head_that_is_not_the_models_is_far_from_plain(dtype: torch.dtype, broken: Callable[[Policy], None]) -> None:
    policy = policy_of("qwen3", dtype, head_dim=16)
    right = checked(policy)
    assert gap(right.head, right.plain) < 1e-4
    broken(policy)
    wrong = checked(policy)
    assert gap(wrong.head, wrong.plain) > 0.1
    if (
        broken is scale_the_models_own_logits
    ):  # the trainer's own is untouched, so that no comparison of its own could tell
        assert gap(wrong.head, right.head) == 0


def test_a_scale_does_not_hide_behind_the_rounding_of_bf16() -> None:
    """In bf16 alone and head differ by rounding; head and plain, both with float32 logits, by less than any fp32 limit."""
    policy = policy_of("qwen3", torch.bfloat16, head_dim=16)
    check = checked(policy)
    assert gap(check.alone, check.head) > 1e-3
    assert gap(check.head, check.plain) < 1e-4
    assert not policy.fp32_head


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            "qwen3_next",
            {
                "head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "num_experts": 0,
                "mlp_only_layers": [0, 1],
            },
        ),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_a_leak_over_the_borders_of_packed_rows_is_seen_right_behind_them(kind: str, more: dict[str, Any]) -> None:
    """These layers have no borders when positions alone are passed, as here."""
    check = checked(policy_of(kind, **more))
    assert check.packed is not None
    assert gap(check.alone, check.padded) < 2e-5
    first = [gap([a[:4]], [p[:4]]) for a, p in zip(check.alone, check.packed, strict=True)]
    assert max(first) > 0.1
    assert check.shared is None or gap(*check.shared) > 0.1


def test_padding_that_reaches_a_sequence_is_seen() -> None:
    policy = policy_of("qwen3", head_dim=16)
    forward = policy.forward

    def both_ways(tokens: torch.Tensor, *more: Any) -> Any:
        return forward(tokens + (tokens[:, -1:] == 0).long() * 1 % 64, *more)  # a pad token at the end changes the row

    policy.forward = both_ways  # type: ignore[method-assign]
    check = checked(policy, sequences=[[i % 63 + 1 for i in range(20 + k)] for k in range(3)])
    assert gap(check.alone, check.padded) > 0.1


def test_the_model_is_left_as_it_was() -> None:
    policy = policy_of("qwen3", head_dim=16)
    head, before = policy.head, dict(policy.head.__dict__)
    checked(policy)
    assert head.__dict__["forward"] == before["forward"]
    assert "forward" not in policy.__dict__
    assert gap(checked(policy).alone, checked(policy).alone) == 0


def test_sequences_are_cut_short_to_different_lengths_and_are_two_at_least() -> None:
    cuts = cut([list(range(200))] * 20)
    assert len(cuts) == SEQUENCES
    assert max(map(len, cuts)) == LENGTH
    assert len({len(ids) for ids in cuts}) == SEQUENCES
    assert cut([[5], [1, 2, 3], [9]]) == [(1, 2, 3), (1, 2, 3)]
    assert cut([[5]]) == []


def test_nothing_is_compared_where_no_sequence_has_a_second_token() -> None:
    check = checked(policy_of("qwen3", head_dim=16), sequences=[[5], [9]])
    assert check == ModelCheck([], [], None, [], [])


@pytest.mark.parametrize(("slots", "shapes"), [(0, 4), (45, 3), (60, 2), (100, 1)])
def test_sequences_that_are_scored_together_have_the_log_probs_of_each_alone(slots: int, shapes: int) -> None:
    policy = policy_of("qwen3", head_dim=16)
    sequences, seen = [SEQUENCES_OF_IDS[0], SEQUENCES_OF_IDS[1][:5], [9], SEQUENCES_OF_IDS[3]], list[tuple[int, ...]]()

    def engine(tokens: torch.Tensor, *more: Any) -> Any:
        seen.append(tuple(tokens.shape))
        return policy(tokens, *more)

    found = sequence_logprobs(engine, torch.device("cpu"), sequences, slots)
    assert gap(found, [expected(policy, tuple(ids)) for ids in sequences]) < 2e-5
    assert len(seen) == shapes
    assert all(rows == 1 or rows * width <= slots for rows, width in seen)


def test_no_sequence_has_no_log_probs() -> None:
    assert sequence_logprobs(policy_of("qwen3", head_dim=16), torch.device("cpu"), [], 64) == []
