"""Shaping of rewards, the reward function and the reward-hacking monitor, broken one at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation

LENGTH = "tests/envs/reward_terms/test_length.py"
REWARD_FUNCTION = "tests/actors/rewards/test_composite.py"
REWARD_HACKING = "tests/orchestration/telemetry/test_reward_hacking.py"
JUDGE = "tests/actors/rewards/test_judge.py"
GENERATORS = "tests/actors/rewards/test_judge_generators.py"
CONTROL = "tests/orchestration/analysis/test_control.py tests/orchestration/analysis/test_run_summary.py"
RETENTION = "tests/orchestration/analysis/test_retention.py"
MODEL = "tests/actors/rewards/test_reward_model.py"
DIVERSITY = "tests/learner/diversity/test_rewards.py"
DIVERSITY_CONTROL = "tests/learner/diversity/test_control.py"
DIVERSITY_LOOP = "tests/orchestration/run/test_loop_diversity.py"


def _entries(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    name = file.rpartition("/")[2]
    return [Mutation(f"{name}: {what}", f"{file}.py", text, new, tests) for what, text, new in changes]


REWARD_MUTATIONS: tuple[Mutation, ...] = (
    *_entries(
        "envs/reward_terms/length",
        LENGTH,
        ("progress from 0", "(tokens - free) / (full - free)", "tokens / (full - free)"),
        ("progress over full", "(tokens - free) / (full - free)", "(tokens - free) / full"),
        (
            "progress below 0",
            "min(max((tokens - free) / (full - free), 0.0), 1.0)",
            "min((tokens - free) / (full - free), 1.0)",
        ),
        (
            "progress over 1",
            "min(max((tokens - free) / (full - free), 0.0), 1.0)",
            "max((tokens - free) / (full - free), 0.0)",
        ),
        ("the line from its end", "start + (end - start) * share", "end + (start - end) * share"),
        ("the cosine from its end", "return end + (start - end) * (1.0", "return start + (end - start) * (1.0"),
        ("a sine", "math.cos(math.pi * share)", "math.sin(math.pi * share)"),
        ("half the cosine's way", "math.cos(math.pi * share)", "math.cos(0.5 * math.pi * share)"),
        (
            "the buffer behind the limit",
            "progress(tokens, limit - buffer, limit)",
            "progress(tokens, limit, limit + buffer)",
        ),
        ("no buffer", "progress(tokens, limit - buffer, limit)", "progress(tokens, 0, limit)"),
        ("shifted before scaled", "scale * score + shift, low", "scale * (score + shift), low"),
        ("no upper cut", "min(max(scale * score + shift, low), high)", "max(scale * score + shift, low)"),
        ("no lower cut", "min(max(scale * score + shift, low), high)", "min(scale * score + shift, high)"),
        ("rescaled from 0", "(score - low) / (high - low)", "score / (high - low)"),
        ("rescaled to the highest", "(score - low) / (high - low)", "(score - low) / high"),
        ("any score is within", "if not low <= score <= high:", "if not low <= score:"),
    ),
    *_entries(
        "actors/rewards/composite",
        REWARD_FUNCTION,
        ("the verdict without its weight", "self.verdict_weight * own.reward", "own.reward"),
        ("terms without weights", "t.weight * values[t.name]", "values[t.name]"),
        ("an error is scored", "if not own.status.scored:", "if False:"),
        ("a failure is a zero", "if failed:", "if False:"),
        (
            "a failure keeps its reward",
            "replace(own, reward=0.0, status=Status.ERROR",
            "replace(own, status=Status.ERROR",
        ),
        ("not finite is a value", "if math.isfinite(value) else TermFailed", "if True else TermFailed"),
        ("wrong is correct", "s.correct if trajectory.verdict.correct else s.wrong", "s.correct"),
        ("free is not", "progress(trajectory.response_tokens, s.free, ", "progress(trajectory.response_tokens, 0, "),
        ("the shortest response", "longest = max(len(", "longest = min(len("),
        ("no value is one", "if not answer.status.scored:", "if False:"),
        ("the response is in the prompt", "messages=finished.conversation[:-1]", "messages=finished.conversation"),
    ),
    *_entries(
        "orchestration/telemetry/reward_hacking",
        REWARD_HACKING,
        ("any gain is a rise", "reward.gain > RISEN * reward.error", "reward.gain > 0"),
        ("a fall is a rise", "reward.gain > RISEN * reward.error", "abs(reward.gain) > RISEN * reward.error"),
        ("a check that rises", "check.gain <= STAYED * check.error", "check.gain >= STAYED * check.error"),
        ("no check is one", "gamed = self._checked and", "gamed = True and"),
        ("held out rises", "< -EVAL_NOISE", "> EVAL_NOISE"),
        ("all that is held out", '[env for env in self._now if f"reward/{env}" in row]', "[env for env in self._now]"),
        ("length in tokens", "length.gain / length.start if", "length.gain if"),
        ("longer alone", 'abs(out["drift/length"]) > LONGER', 'out["drift/length"] > LONGER'),
        ("longer without reward", "float(risen and abs(", "float(abs("),
        ("hacking without reward", "float(risen and gamed)", "float(gamed)"),
        (
            "a stage keeps its start",
            "self._series, self._checked = {name: _Series() for name in SERIES}, False",
            "pass",
        ),
        ("the variance twice", "variance = self._squares / (2 * max", "variance = self._squares / (max"),
        ("the error of one mean", "math.sqrt(2 * variance / WINDOW)", "math.sqrt(variance / WINDOW)"),
        ("the last value alone", "return mean(self._last) - self.start", "return self._last[-1] - self.start"),
        ("correct where there are terms", 'row.get("term/verdict", row["correct/mean"])', 'row["correct/mean"]'),
    ),
    *_entries(
        "actors/rewards/judge",
        JUDGE,
        ("the same marks for everybody", "hexdigest()[:16]", 'hexdigest() and "0000000000000000"'),
        ("a score that is cut", "and not answer.truncated", "and True"),
        ("the marks are in the question", 'source, self._body(texts, "")', "source, self._body(texts, str(id(texts)))"),
        ("how it is read is not", 'self._body(texts, ""), s.score, s.low, s.high]', 'self._body(texts, "")]'),
        ("the first score", "float(scores[-1])", "float(scores[0])"),
        ("asked twice", "self._under_way[identity] = task", "pass"),
        ("who gives up ends it", "await asyncio.shield(task)", "await task"),
        ("a cache without bounds", "while len(self._scores) > self._entries:", "while False:"),
        ("the latest goes first", "self._scores.popitem(last=False)", "self._scores.popitem(last=True)"),
        ("reading is no use", "self._scores.move_to_end(key)\n        return", "pass\n        return"),
        ("scores beyond 1", "isinstance(score, float | int) and 0.0 <= score <= 1.0", "isinstance(score, float | int)"),
    ),
    *_entries(
        "actors/rewards/endpoint",
        JUDGE,
        ("a refusal is an answer", 'if refusal or finish == "content_filter":', "if False:"),
        ("a refused request is made again", "if response.status_code not in RETRIED:", "if False:"),
        ("never again", "range(s.retries + 1)", "range(1)"),
        ("it never waits longer", "s.backoff_s * 2**attempt", "s.backoff_s * 0"),
        ("nobody is asked to wait", "max(wait, _asked_to_wait(response))", "wait"),
        ("no time-out", "asyncio.wait_for(self._post(body), s.timeout_s)", "self._post(body)"),
        ("the key is quoted", 'return text.replace(self._key, "***") if self._key else text', "return text"),
        ("all at once", "async with self._free:", "if True:"),
    ),
    *_entries(
        "actors/rewards/judge_generators",
        GENERATORS,
        ("a response ends its turn", "return self._codec.defuse(text)", "return text"),
        ("one seed for all", "response_seed(0, json.dumps(body, sort_keys=True))", "0"),
        ("a seed by order", "response_seed(0, json.dumps(body, sort_keys=True))", "next(self._numbers)"),
        ("no room for the answer", "len(ids) + max_tokens > self._max_model_len", "len(ids) > self._max_model_len"),
        ("the end is not told", 'done.finish == "length"', "False"),
        ("no system message is lost", "if not self._has_system:", "if False:"),
        ("every model of a folder is one", "files = sorted(", "files = 0 and sorted("),
    ),
    *_entries(
        "learner/chat",
        GENERATORS,
        ("added tokens are forgotten", "{*tokenizer.all_special_tokens, *added}", "{tokenizer.eos_token}"),
    ),
    *_entries(
        "orchestration/analysis/retention",
        RETENTION,
        ("entropy from one iteration", "mean(entropy[:START_ROWS])", "entropy[0]"),
        ("entropy to one iteration", "mean(entropy[-END_ROWS:])", "entropy[-1]"),
        (
            "a stage late",
            "retention.at(stage, env) for env",
            "retention.at(stage - 1 if stage > 0 else stage, env) for env",
        ),
    ),
    *_entries(
        "orchestration/analysis/control",
        CONTROL,
        (
            "all responses stand in for the correct ones",
            'if "entropy/controlled" in run.metric_keys() else',
            "if False else",
        ),
        ("a release is no end", "if target and not released > 0.0 else", "if target else"),
        ("equal bounds steer", "any(low < high for", "any(low <= high for"),
        ("a fixed controller steers", 'run.setting("entropy.controller.kind") == "fixed"', "False"),
        ("saturated on target", "return is_off_target(run) and mean(late)", "return mean(late)"),
        ("too few tokens on target", "return too_few and is_off_target(run)", "return too_few"),
    ),
    *_entries(
        "orchestration/thresholds",
        CONTROL,
        ("few tokens without exception", "method not in FEW_BY_DESIGN and affected", "affected"),
        ("few tokens whatever they do", " and not effect >= NO_EFFECT", ""),
    ),
    *_entries(
        "learner/diversity/rewards",
        DIVERSITY,
        ("a response among its own others", "(count[s] - 1) / (len(solutions) - 1)", "count[s] / len(solutions)"),
        ("a share of all", "(count[s] - 1) / (len(solutions) - 1)", "(count[s] - 1) / len(solutions)"),
        ("common is worth more", "factor, relative = 1 - coefficient", "factor, relative = 1 + coefficient"),
        ("the sum shrinks", "factor * (relative.sum() / (relative @ factor)) - 1", "factor - 1"),
        ("the mean of the factors", "relative.sum() / (relative @ factor)", "len(factor) / factor.sum()"),
        ("the whole reward is multiplied", "return rewards + margins * (", "return rewards + rewards * ("),
        ("no floor", "v.reward for v in others), default=0.0", "0.0 for v in others), default=0.0"),
        ("the floor is the worst", "max((v.reward for v in others)", "min((v.reward for v in others)"),
        ("below the floor too", "np.maximum(before - floor, 0.0)", "before - floor"),
        ("equal factors are divided", "if np.ptp(share[margins > 0]) == 0:", "if False:"),
        ("shares of those without a margin", "np.ptp(share[margins > 0])", "np.ptp(share)"),
        ("what failed is counted", "if not (verdict.status.scored and verdict.correct):", "if not verdict.correct:"),
        (
            "what is wrong is counted",
            "if not (verdict.status.scored and verdict.correct):",
            "if not verdict.status.scored:",
        ),
        (
            "a failure is the floor",
            "if t.verdict.status.scored and not t.verdict.correct)",
            "if not t.verdict.correct)",
        ),
        ("texts with their case", "texts[-1].casefold().split()", "texts[-1].split()"),
        ("the first text", "texts[-1].casefold()", "texts[0].casefold()"),
        ("texts before solutions", "verdict.solution is None and compare_texts", "compare_texts"),
        ("groups of one", "if len(solutions) >= 2:", "if len(solutions) >= 3:"),
        ("more than there are pairs", "else float(pairs), sum(shared)", "else math.inf, sum(shared)"),
        ("the collision probability itself", "1 / mean if mean > 0", "mean if mean > 0"),
        ("shared by all", "(share > 0).tolist()", "(share == 1).tolist()"),
    ),
    *_entries(
        "learner/diversity/control",
        DIVERSITY_CONTROL,
        ("moves without an update", "trained=trained)", "trained=True)"),
        ("a longer memory", "MEMORY * self._weight +", "self._weight +"),
        ("no memory of collisions", "MEMORY * self._collision +", "0 * self._collision +"),
        ("a mean of numbers", "(1 - MEMORY) / found.effective", "(1 - MEMORY) * found.effective"),
        ("the mean is not saved", 'state["mean"]["collision"], state["mean"]["weight"]', "0.0, 0.0"),
        ("a reset keeps", 'if controller == "reset":', "if False:"),
        ("an anchor of before", 'elif controller == "reanchor":', "elif False:"),
        ("a coefficient of its own", "diversified(group, self.coefficient,", "diversified(group, 0.8,"),
    ),
    *_entries(
        "learner/diversity/settings",
        DIVERSITY_CONTROL,
        ("any coefficient", "if not 0 <= low <= high < 1:", "if not 0 <= low <= high:"),
        ("a target without control", 'HELD if "target" in parts else {"kind": "fixed"}', '{"kind": "fixed"}'),
    ),
    *_entries(
        "orchestration/run/loop",
        DIVERSITY_LOOP,
        ("rewards as given", "groups = control.apply(groups)", "pass"),
        (
            "observes what is trained on",
            "control.observe(sampled.groups, bool(groups))",
            "control.observe(groups, bool(groups))",
        ),
        ("no boundary", "self.state.diversity.begin_stage(self.config.stages[curriculum.index].controller)", "pass"),
        ("no start before training", "            diversity.set_start(groups)\n", "            pass\n"),
    ),
    *_entries(
        "orchestration/sampling/asynchronous",
        DIVERSITY_LOOP,
        ("diversity is no signal beside training", "config.dynamic_by, config.diversity)", "config.dynamic_by)"),
    ),
    *_entries(
        "orchestration/run/state",
        DIVERSITY_LOOP,
        ("a fresh control", 'self.diversity.load_state_dict(state["diversity"])', "pass"),
    ),
    *_entries(
        "orchestration/telemetry/rollout_metrics",
        DIVERSITY_LOOP,
        (
            "no signal without diversity",
            '"groups/no_signal": float(no_signal(groups, diversity))',
            '"groups/no_signal": float(no_signal(groups))',
        ),
    ),
    *_entries(
        "learner/batching",
        f"{DIVERSITY} {DIVERSITY_LOOP}",
        ("diversity is no signal", "if diversity is not None and tells_apart", "if False and tells_apart"),
    ),
    *_entries(
        "actors/rewards/reward_model",
        MODEL,
        ("padding is read", "mask[row, : len(ids)] = 1", "mask[row, :] = 1"),
        ("padding on the left", "tokens[row, : len(ids)] =", "tokens[row, width - len(ids) :] ="),
        ("another label", "logits.softmax(-1)[:, label]", "logits.softmax(-1)[:, 0]"),
        ("a logit is a probability", "logits.softmax(-1)[:, label]", "logits[:, label]"),
        ("any length", "if not 0 < len(ids) <= self._longest:", "if not 0 < len(ids):"),
        ("a score that is not finite", "if not math.isfinite(score):", "if False:"),
        (
            "a random head",
            "output_loading_info=True)\n",
            "output_loading_info=True)\n    info = {'missing_keys': (), 'mismatched_keys': ()}\n",
        ),
        ("batches too large", "width * (len(batch) + 1) > most", "width * len(batch) > most"),
    ),
)
