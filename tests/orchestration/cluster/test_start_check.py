"""The comparison before anything is trained: which part is named where something disagrees, on scores that are made up.

The same verdicts on real models and engines: tests/integration/test_start_check.py.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from learner.types import ModelCheck
from learner.weights.protocol import WeightSyncError
from orchestration.cluster.start_check import StartCheck, StartRules
from orchestration.errors import ModelRefused, NumericsError

RIGHT = [[-1.0] * 20, [-2.0] * 20]
EXACT = StartRules("models/m", trainer="fp32", exact=True, precision="fp32", max_gap=None, packing=True)
HALF = StartRules("models/m", trainer="bf16", exact=False, precision="bf16", max_gap=None, packing=True)
CHECK = ModelCheck(alone=RIGHT, padded=RIGHT, packed=RIGHT, head=RIGHT, plain=RIGHT, shared=(RIGHT, RIGHT))


def shifted(by: float) -> list[list[float]]:
    return [[x + by for x in row] for row in RIGHT]


def scaled(rows: list[list[float]], by: float) -> list[list[float]]:
    return [[x * by for x in row] for row in rows]


class Trainer:
    def __init__(self, check: ModelCheck = CHECK) -> None:
        self.check, self.scale = check, 1.0
        self.scales: list[float] = []  # of the weights, at every transfer

    async def check_model(self, sequences: Sequence[Sequence[int]]) -> ModelCheck:
        return self.check

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return scaled(RIGHT, self.scale)

    async def scale_weights(self, factor: float) -> None:
        self.scale *= factor


class Engine:
    """Is `before` nats from the trainer until its transfer, and `after` from then on."""

    def __init__(self, name: str, before: float, after: float, stale: bool = False) -> None:
        self.name, self.off, self.after, self.stale, self.scale = name, before, after, stale, 1.0

    def receive(self, scale: float) -> None:
        """Takes weights of this scale over; not where stale."""
        self.scale = self.scale if self.stale else scale
        self.off = self.after

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[x * self.scale + self.off for x in row] for row in RIGHT]


def check(
    *engines: Engine,
    trainer: Trainer | None = None,
    rules: StartRules = EXACT,
    untouched: bool = True,
    broken: Exception | None = None,
    replaced: Sequence[Engine] = (),
) -> list[str]:
    """Runs a check. replaced: takes the place of the engines in the transfer."""
    present, learner = list(engines), trainer or Trainer()

    async def transfer() -> None:
        learner.scales.append(learner.scale)
        if broken is not None:
            raise broken
        if replaced and learner.scale == 1:
            present[:] = replaced
        for engine in present:
            engine.receive(learner.scale)

    start = StartCheck(learner, lambda: present, transfer, [[1] * 21] * 2, rules)
    try:
        return asyncio.run(start.run(untouched)).remarks
    finally:
        assert learner.scale == 1  # whatever happened, it trains the weights that it was given


def refusal(*engines: Engine, trainer: Trainer | None = None, rules: StartRules = EXACT, untouched: bool = True) -> str:
    with pytest.raises(ModelRefused) as raised:
        check(*engines, trainer=trainer, rules=rules, untouched=untouched)
    assert raised.value.exit_code == NumericsError.exit_code == 4
    text = str(raised.value)
    assert "models/m" in text and "\n" not in text and not text.endswith(".")
    return text


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_what_agrees_passes(rules: StartRules) -> None:
    trainer = Trainer()
    assert check(Engine("g0", 1e-5, 1e-5), Engine("g1", 0.0, 2e-5), trainer=trainer, rules=rules) == []
    assert trainer.scales == [0.5, 1.0]


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_a_head_that_is_not_the_models_comes_first_and_blames_no_precision(rules: StartRules) -> None:
    wrong = replace(CHECK, plain=shifted(0.002), packed=shifted(2.0))
    text = refusal(Engine("g0", 2.0, 2.0), trainer=Trainer(wrong), rules=rules)
    assert text.startswith("logit scale or head: ")
    assert "by 0.002 nats in one token, more than 0.001" in text
    assert "precision" not in text and "bf16" not in text


def test_packing_borders_are_named_before_any_engine() -> None:
    wrong = replace(CHECK, packed=[[-1.0] * 20, [-2.3, *RIGHT[1][1:]]])
    text = refusal(Engine("g0", 2.0, 2.0), trainer=Trainer(wrong))
    assert text.startswith("packing borders: ")
    assert "by 0.3 nats in one token" in text
    assert text.endswith("set learner.packing=false")


def layout(found: ModelCheck, rules: StartRules) -> str:
    async def transfer() -> None: ...

    start = StartCheck(Trainer(found), list, transfer, [[1] * 21] * 2, rules)
    return asyncio.run(start.run(untouched=False)).layout


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_prompts_are_shared_where_that_is_the_same(rules: StartRules) -> None:
    far = replace(CHECK, shared=(RIGHT, shifted(0.3)))
    for packing in (True, None):
        left_open, asked = (replace(rules, packing=packing, sharing=sharing) for sharing in (None, True))
        assert layout(CHECK, left_open) == layout(CHECK, asked) == "shared"
        assert layout(far, left_open) == layout(replace(CHECK, shared=None), left_open) == "packed"
        with pytest.raises(ModelRefused, match=r"^prefix sharing: log-probs .* by 0\.3\d* nats"):
            layout(far, asked)
        with pytest.raises(
            ModelRefused, match=r"^prefix sharing: models/m cannot be given .* set learner\.prefix_sharing=false$"
        ):
            layout(replace(CHECK, shared=None), asked)
    # agreement within a shared row says nothing of rows that are padded
    with pytest.raises(ModelRefused, match="prefix sharing: models/m cannot"):
        layout(replace(CHECK, packed=None), replace(rules, packing=None, sharing=True))


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_where_nobody_asked_for_packing_batches_are_packed_if_the_borders_are_seen(rules: StartRules) -> None:
    open_rules = replace(rules, packing=None)
    assert layout(replace(CHECK, shared=None), open_rules) == "packed"
    # nothing is refused: rows are padded instead
    assert layout(replace(CHECK, packed=shifted(0.3)), open_rules) == "padded"
    assert layout(replace(CHECK, packed=None), open_rules) == "padded"
    with pytest.raises(ModelRefused, match="padding: "):  # which is then measured
        layout(replace(CHECK, packed=shifted(0.3), padded=shifted(0.2)), open_rules)


def test_in_bf16_the_mean_behind_the_borders_counts() -> None:
    """0.8 nats in each sequence's first two tokens: .1 of 16, and the tokens after them do not dilute it."""
    rows = [[x + 0.8 * (i < 2) for i, x in enumerate(row)] for row in RIGHT]
    text = refusal(Engine("g0", 0.0, 0.0), trainer=Trainer(replace(CHECK, packed=rows)), rules=HALF)
    assert "by 0.1 nats in the mean of 32 tokens, more than 0.05" in text
    rounding = [[x + 0.3 * (i < 2) for i, x in enumerate(row)] for row in RIGHT]
    assert check(Engine("g0", 0.0, 0.0), trainer=Trainer(replace(CHECK, packed=rounding)), rules=HALF) == []


def test_padding_counts_where_rows_are_not_packed() -> None:
    wrong = replace(CHECK, padded=shifted(0.2))
    assert check(Engine("g0", 0.0, 0.0), trainer=Trainer(wrong)) == []  # packed: no row is padded
    text = refusal(Engine("g0", 0.0, 0.0), trainer=Trainer(replace(wrong, packed=None)))
    assert text.startswith("padding: ") and "learner.micro_batch_tokens=1" in text


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_an_engine_that_agreed_before_the_transfer_and_not_after_it_is_the_transfers_fault(rules: StartRules) -> None:
    text = refusal(Engine("generator 0", 0.0, 0.0), Engine("generator 1", 1e-6, 1.14), rules=rules)
    assert text.startswith("weight transfer: ")
    assert "generator 1 for models/m were 1e-06 nats in the mean token" in text and "are 1.14 nats" in text
    assert "generator 0" not in text and "precision" not in text


def test_in_bf16_a_transfer_that_moves_an_engine_by_less_than_rounding_is_told_all_the_same() -> None:
    """The same engine computes the same tokens from the same weights: what rounding hides between engine and trainer shows."""
    text = refusal(Engine("generator 0", 0.06, 0.11), rules=HALF)
    assert text.startswith("weight transfer: ")
    assert check(Engine("generator 0", 0.06, 0.07), rules=HALF) == []
    assert check(Engine("generator 0", 0.11, 0.06), rules=HALF) == []  # it came nearer


@pytest.mark.parametrize("rules", [EXACT, HALF])
def test_a_copy_that_stays_as_it_was_is_found_though_the_same_weights_agree(rules: StartRules) -> None:
    text = refusal(Engine("generator 0", 0.0, 0.0), Engine("generator 1", 0.0, 0.0, stale=True), rules=rules)
    assert text.startswith("weight transfer: log-probs of generator 1 ")
    assert "are 0.75 nats in the mean token" in text and "all of them halved" in text and "precision" not in text


def test_other_weights_are_sent_where_halving_loses_no_bit_and_to_engines_that_were_just_started() -> None:
    stale = Engine("generator 0", 0.0, 0.0, stale=True)
    trainer = Trainer()
    assert check(stale, trainer=trainer, rules=replace(HALF, trainer="fp16")) == []
    assert check(stale, trainer=trainer, untouched=False) == []
    assert trainer.scales == [1.0, 1.0]


def test_an_engine_that_never_agreed_computes_another_model() -> None:
    for off in (0.01, 1.0):
        text = refusal(Engine("generator 0", off, off))
        assert text.startswith("implementation: ")
        assert text.endswith("try model.attention=eager") and "precision" not in text
    text = refusal(Engine("generator 0", 1.0, 1.0), rules=HALF)
    assert "rounding in bf16 does not explain as much" in text and "precision=fp32" not in text


def test_only_what_rounding_could_be_is_said_to_be_rounding_perhaps() -> None:
    text = refusal(Engine("generator 0", 0.3, 0.3), rules=HALF)
    assert text.startswith("implementation: ")
    assert "by 0.3 nats in the mean of 40 tokens, more than 0.2" in text
    assert "precision=fp32" in text and "raise weights.max_logprob_gap" in text


def test_one_member_of_many_is_refused_and_named_in_bf16() -> None:
    engines = [Engine(f"generator {i}", 0.7 * (i == 5), 0.7 * (i == 5)) for i in range(16)]
    assert "generator 5" in refusal(*engines, rules=HALF)


def test_a_limit_of_the_users_bounds_engines_and_neither_head_nor_packing() -> None:
    wide = replace(EXACT, max_gap=3.0)
    assert check(Engine("g0", 1.0, 1.0), rules=wide) == []
    assert refusal(trainer=Trainer(replace(CHECK, plain=shifted(1.0))), rules=wide).startswith("logit scale")
    assert refusal(trainer=Trainer(replace(CHECK, packed=shifted(1.0))), rules=wide).startswith("packing")


def test_engines_that_held_another_runs_weights_are_not_measured_before() -> None:
    assert check(Engine("g0", 5.0, 0.0), untouched=False) == []
    text = refusal(Engine("g0", 0.0, 1.0), untouched=False)
    assert text.startswith("weight transfer or implementation: ") and "start this run by itself" in text


def test_an_engine_that_the_transfer_sets_right_is_an_event() -> None:
    (remark,) = check(Engine("g0", 1.0, 0.0), Engine("g1", 0.0, 0.0))
    assert remark.startswith("g0 was 1 nats in the mean token")


def test_a_replacement_that_came_in_the_transfer_is_compared_too() -> None:
    with pytest.raises(ModelRefused, match="generator 1"):
        check(Engine("generator 0", 0.0, 0.0), replaced=[Engine("generator 1", 1.0, 1.0)])


def test_names_that_the_engine_does_not_know_are_a_refusal_and_a_broken_channel_is_not() -> None:
    unknown = WeightSyncError("generator 0", "load of version 0", "the manifest has nothing for experts.w13_weight")
    with pytest.raises(
        ModelRefused, match=r"^weight names: generator 0 .* models/m: .*experts\.w13_weight; vLLM's names"
    ):
        check(Engine("g0", 0.0, 0.0), broken=unknown)
    lost = WeightSyncError("generator 0", "start of version 0", "no answer within 5 s")
    with pytest.raises(WeightSyncError) as raised:
        check(Engine("g0", 0.0, 0.0), broken=lost)
    assert raised.value is lost


def test_nan_is_refused() -> None:
    assert refusal(Engine("g0", 0.0, math.nan)).startswith("weight transfer: ")
    assert refusal(Engine("g0", math.nan, math.nan), rules=HALF).startswith("implementation: ")
    wrong = replace(CHECK, plain=[RIGHT[0], [*RIGHT[1][:-1], math.nan]])
    assert refusal(trainer=Trainer(wrong)).startswith("logit scale")
