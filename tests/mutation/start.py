"""The comparison of engine, trainer and plain transformers, broken one at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation

_AT = "tests/orchestration/cluster/"


def _entries(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    name = file.rpartition("/")[2]
    return [Mutation(f"{name}: {what}", f"{file}.py", text, new, tests) for what, text, new in changes]


START_MUTATIONS: tuple[Mutation, ...] = (
    *_entries(
        "orchestration/cluster/logprob_check",
        f"{_AT}test_logprob_check.py {_AT}test_start_check.py",
        ("the mean bounded in fp32", "gap.largest if self.exact else gap.mean", "gap.mean"),
        ("one token bounded in bf16", "gap.largest if self.exact else gap.mean", "gap.largest"),
        ("nan is within the limit", "return not self.of(gap) <= self.nats", "return self.of(gap) > self.nats"),
        ("nan beside numbers is lost", "math.nan if any(map(math.isnan, gaps)) else max(", "max("),
        (
            "the first member alone",
            "beyond = [gap for gap in gaps if self",
            "beyond = [gap for gap in gaps[:1] if self",
        ),
        ("differences cancel out", "[abs(a - b) for x, y", "[a - b for x, y"),
        ("a sum for a mean", "sum(gaps) / max(1, len(gaps))", "sum(gaps)"),
        ("prompts bounded as responses", "MAX_MEAN_GAP_PROMPTS if prompts else MAX_MEAN_GAP", "MAX_MEAN_GAP"),
        ("the user's limit ignored", "Limit(max_gap or usual, exact)", "Limit(usual, exact)"),
        ("the metric of the last member", "sum(gap.mean * gap.tokens for gap in gaps)", "gaps[-1].mean * tokens"),
    ),
    *_entries(
        "orchestration/cluster/start_check",
        f"{_AT}test_start_check.py",
        ("the head is not compared", "if HEAD.exceeded(head):", "if False:"),
        ("the head bounded by its mean", "Limit(MAX_GAP_EXACT, exact=True)", "Limit(MAX_GAP_EXACT * 10, exact=False)"),
        ("packed rows are not compared", "if not limit.exceeded(packed):", "if True:"),
        ("nothing is packed unless asked for", 'else "packed"', 'else "padded"'),
        ("shared prompts are not compared", "if not limit.exceeded(gap):", "if True:"),
        ("shared prompts are never refused", "    if rules.sharing:\n        raise", "    if False:\n        raise"),
        (
            "what cannot be compared is shared",
            "        return False\n    alone, shared",
            "        return True\n    alone, shared",
        ),
        ("padded rows share", "_shares(replace(check, shared=None), rules, limit)", "_shares(check, rules, limit)"),
        (
            "borders diluted",
            'packed = gap_of("packed", start, [logp[:BORDER] for logp in check.packed])',
            'packed = gap_of("packed", check.alone, check.packed)',
        ),
        ("padding is not compared", "if limit.exceeded(padded):", "if False:"),
        (
            "fp32 bounded as bf16",
            'if rules.trainer == "fp32" else Limit(MAX_MEAN_GAP_BATCH, False)',
            "if False else Limit(MAX_MEAN_GAP_BATCH, False)",
        ),
        ("the same weights alone", "await self.trainer.scale_weights(0.5)", "await self.trainer.scale_weights(1.0)"),
        ("the weights stay halved", "await self.trainer.scale_weights(2.0)", "pass"),
        (
            "no transfer of the real weights",
            "        await self._transfer()\n        return Agreement",
            "        return Agreement",
        ),
        ("halved in fp16", 'if self.rules.trainer != "fp16":', "if True:"),
        ("a broken channel is the model's fault", 'if not error.phase.startswith("load of"):', "if False:"),
        (
            "an engine that never agreed is stale",
            "if gap.name not in before or not limit.exceeded(before[gap.name])]",
            "]",
        ),
        ("a change in bf16 is rounding", "min(limit.nats, MAX_MEAN_CHANGE)", "limit.nats"),
        ("a change for the better is refused", "if not limit.of(after[c.name]) <= limit.of(before[c.name])]", "]"),
        (
            "what never agreed is the transfer's fault",
            "[c for c in further if not limit.exceeded(before[c.name])]",
            "further",
        ),
        (
            "engines are not compared",
            "    if worst is not None:\n        raise ModelRefused(_disagreement",
            "    if False:\n        raise ModelRefused(_disagreement",
        ),
        ("rounding explains everything", "if limit.of(after) > ROUNDING:", "if False:"),
        ("fp32 is rounding", "    if rules.exact:\n        return text\n", ""),
    ),
    *_entries(
        "learner/model_check",
        "tests/learner/test_model_check.py",
        (
            "plain is the trainer's own head",
            "with _forward_of(policy, forward):\n        return engine(tokens)",
            "return policy(tokens, torch.arange(tokens.shape[1])[None], torch.arange(tokens.shape[1] - 1), tokens[0, 1:], 1.0)[0]",
        ),
        (
            "the model's head stays in its precision",
            "hidden.float(), head.weight.float(), _float(head.bias)",
            "hidden, head.weight, head.bias",
        ),
        (
            "the trainer's head stays in its precision",
            "fp32_head, policy.fp32_head = policy.fp32_head, True",
            "fp32_head = policy.fp32_head",
        ),
        ("the head's precision is not restored", "policy.fp32_head = fp32_head\n", "pass\n"),
        ("the head's forward is not restored", "if before is not None:", "if False:"),
        ("what is shared is not", "_micro_batch(made, True, prompts, skipped)", "_micro_batch(made, True, prompts)"),
        ("packed is padded", "_micro_batch(tokens, True)", "_micro_batch(tokens, False)"),
        ("nothing is padded", "SHORTER * i", "0 * i"),
        ("sequences in the batch's order", "logp[int(i)].append(value)", "logp[int(i) - 1].append(value)"),
        ("one sequence is enough", "usable if len(usable) > 1 else usable * 2", "usable"),
    ),
)
