"""Breaks advantages, the batch plan and the loss one formula at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation, entries

_AT = "tests/learner/"
ADVANTAGES = f"{_AT}test_references.py {_AT}test_advantages.py -k advantage or grpo or reinforce or whitening"
VERDICTS = f"{_AT}test_batching.py -k verdict"
SURROGATE = f"{_AT}test_references.py -k surrogate or gspo or cispo"
IMPORTANCE = f"{_AT}test_references.py -k correction"
PENALTY = f"{_AT}test_references.py {_AT}test_tabular.py -k reference or estimator or k2"
PULL = "tests/learner/test_tabular.py -k predicted_change_counts"
METHODS = f"{_AT}entropy/test_references_methods.py"
CLIPS = f"{_AT}test_references.py -k clip_range"
OLD_POLICY = f"{METHODS} -k kl_cov"
GRADIENT = f"{_AT}test_references.py -k gradient_weight"
LOSS = f"{_AT}test_objective.py -k golden or diagnostics or decided or replaces or penalty or infinity"
FORGONE = f"{_AT}test_objective.py {_AT}test_tabular.py -k forgone or diagnostics"
WEIGHTS = f"{_AT}test_batching.py {_AT}test_references.py -k weights or ppo"
BATCHES = f"{_AT}test_batching.py -k trained or observations"

LOSS_MUTATIONS: tuple[Mutation, ...] = (
    *entries(
        "advantages",
        ADVANTAGES,
        ("grpo multiplies", "centred(rewards) / (rewards.std() +", "centred(rewards) * (rewards.std() +"),
        ("grpo with the sample std", "rewards.std() +", "rewards.std(ddof=1) +"),
        ("the mean is added", "return rewards - (rewards[0]", "return rewards + (rewards[0]"),
        ("leave one in", "(len(rewards) / (len(rewards) - 1))", "(len(rewards) / len(rewards))"),
        ("whitened over responses", "mean = np.average(advantages, weights=lengths)", "mean = np.average(advantages)"),
        (
            "variance over responses",
            "np.average((advantages - mean) ** 2, weights=lengths)",
            "np.average((advantages - mean) ** 2)",
        ),
        ("whitened without the root", "(advantages - mean) / np.sqrt(", "(advantages - mean) / ("),
        ("reinforce++ not whitened", "Advantage(plain, compared=1, whiten=True)", "Advantage(plain, compared=1)"),
        ("reinforce++ in groups alone", "Advantage(plain, compared=1,", "Advantage(plain, compared=2,"),
        (
            "a group of one is compared",
            "compared: int = 2",
            "compared: int = 1",
        ),
        ("turns of other groups alone", "if len(reached) >= advantage.compared:", "if len(reached) > 1:"),
        ("reinforce++ baseline not whitened", "Advantage(centred, whiten=True)", "Advantage(centred)"),
        ("reinforce++ without its baseline", "Advantage(centred, whiten=True)", "Advantage(plain, whiten=True)"),
        ("dr grpo divides", '"dr_grpo": Advantage(centred)', '"dr_grpo": Advantage(grpo)'),
        ("loop is grpo", '"loop": Advantage(leave_one_out)', '"loop": Advantage(grpo)'),
    ),
    *entries(
        "batching",
        VERDICTS,
        (
            "failed responses in the baseline",
            "t.verdict.status.scored for t",
            "t.verdict.status != 'timeout' for t",
        ),
        ("a lone response is scored", "if scored.sum() >= advantage.compared:", "if scored.sum() > 0:"),
        ("a lone response is left out", "if scored.sum() >= advantage.compared:", "if scored.sum() > 1:"),
    ),
    *entries(
        "batching",
        WEIGHTS,
        ("sequence weights without the length", "per_update * trajectories[i].response_tokens)", "per_update)"),
        (
            "tokens of the first trajectory alone",
            'scale = {"token": tokens,',
            'scale = {"token": sum(trajectories[i].response_tokens for i in members[:1]),',
        ),
        ("constant without the length", '"constant": per_update * length_scale}', '"constant": per_update}'),
        (
            "context counts as tokens",
            "tokens = sum(trajectories[i].response_tokens for i in members)",
            "tokens = sum(len(trajectories[i].token_ids) for i in members)",
        ),
    ),
    *entries(
        "batching",
        BATCHES,
        (
            "context is taken for the response",
            "range(len(ids), len(ids) + len(turn.response_ids))",
            "range(1, 1 + len(turn.response_ids))",
        ),
        ("predicted by itself", "predict=at - 1,", "predict=at,"),
        ("another's engine log-probs", "(row.engine for row in rows)", "(row.engine for row in rows[::-1])"),
        ("another's advantage", "advantages[np.array(chosen)]", "advantages[np.array(chosen) * 0]"),
    ),
    *entries(
        "objective",
        SURROGATE,
        (
            "policy gradient without its ratio",
            "return -advantages * (logp - logp.detach()).exp()",
            "return -advantages + 0 * logp",
        ),
        ("ppo not clipped", "clip.apply(ratio) * advantages)", "ratio * advantages)"),
        ("cispo not detached", "clip.apply(log_ratio.exp()).detach() *", "clip.apply(log_ratio.exp()) *"),
        ("cispo not clipped", "-clip.apply(log_ratio.exp()).detach()", "-log_ratio.exp().detach()"),
        (
            "the bounds swapped",
            "torch.minimum(torch.maximum(ratio, 1.0 - low), 1.0 + high)",
            "torch.minimum(torch.maximum(ratio, 1.0 - high), 1.0 + low)",
        ),
        ("the lower bound above", "torch.maximum(ratio, 1.0 - low)", "torch.maximum(ratio, 1.0 + low)"),
        (
            "gspo sums log ratios",
            "(logp - old_logp).detach(), trajectory, mean=True)",
            "(logp - old_logp).detach(), trajectory, mean=False)",
        ),
        ("gspo not detached", "per_trajectory((logp - old_logp).detach(),", "per_trajectory((logp - old_logp),"),
        ("gspo without a gradient", "mean=True) + (logp - logp.detach())", "mean=True) + 0 * logp"),
        ("gspo a token", 'SEQUENCE_RATIO = frozenset({"gspo"})', 'SEQUENCE_RATIO = frozenset({""})'),
        ("the bonus's sign", "per_token - shaping.bonus * entropy", "per_token + shaping.bonus * entropy"),
        ("not weighted", "(data.weight * per_token).sum()", "per_token.sum()"),
        ("a mean of the micro-batch", "(data.weight * per_token).sum()", "(data.weight * per_token).mean()"),
    ),
    *entries(
        "settings",
        CLIPS,
        ("gspo's upper clip below", '"gspo": (3e-4, 4e-4)', '"gspo": (4e-4, 3e-4)'),
        ("gspo at ppo's clip", '"gspo": (3e-4, 4e-4)', '"gspo": (0.2, 0.2)'),
        ("cispo with a lower bound", '"cispo": (1.0, 4.0)', '"cispo": (0.8, 4.0)'),
        ("cispo's weight to 6", '"cispo": (1.0, 4.0)', '"cispo": (1.0, 5.0)'),
        ("ppo's clip", '"ppo": (0.2, 0.2)', '"ppo": (0.2, 0.28)'),
        ("a clip range that was given loses", "return low if self.clip_low is None else self.clip_low,", "return low,"),
        ("an upper one too", "high if self.clip_high is None else self.clip_high", "high"),
    ),
    *entries(
        "objective",
        OLD_POLICY,
        ("k3 of samples of pi", "else k3(log_ratio)", "else k3(-log_ratio)"),
        ("the two forms exchanged", 'log_ratio.abs() if form == "abs"', 'log_ratio.abs() if form == "kl"'),
        ("a log ratio with its sign", "return log_ratio.abs() if form", "return log_ratio if form"),
    ),
    *entries(
        "objective",
        GRADIENT,
        ("of the shaped clip", "clip_range(objective, Shaping())", "clip_range(objective, Shaping(clip_high=9.0))"),
        (
            "a policy gradient with its ratio",
            "kept if objective.surrogate in CLIPPED else torch.ones_like(kept)",
            "kept",
        ),
        (
            "without the loss weight",
            "return data.weight * kept if importance is None",
            "return kept if importance is None",
        ),
        ("without the correction", "data.weight * importance * kept", "data.weight * kept"),
        ("the ratio unclipped", "torch.where(high | low, bound, ratio)", "torch.where(high | low, ratio, ratio)"),
        ("a token's own ratio for gspo", "if objective.surrogate in SEQUENCE_RATIO:", "if False:"),
    ),
    *entries(
        "objective",
        IMPORTANCE,
        ("masked the others", "torch.where(out, torch.zeros_like(w), w)", "torch.where(out, w, torch.zeros_like(w))"),
        ("importance without a floor", "(w > importance.cap) | (w < importance.floor)", "(w > importance.cap)"),
        ("importance without a cap", "(w > importance.cap) | (w < importance.floor)", "(w < importance.floor)"),
        (
            "importance outside both bounds at once",
            "(w > importance.cap) | (w < importance.floor)",
            "(w > importance.cap) & (w < importance.floor)",
        ),
        (
            "importance a mean over the sequence",
            "per_trajectory(log_ratio, trajectory, mean=False)",
            "per_trajectory(log_ratio, trajectory, mean=True)",
        ),
        (
            "importance levels swapped",
            'if importance.level == "sequence" else log_ratio',
            'if importance.level == "token" else log_ratio',
        ),
        (
            "importance on the bonus too",
            "per_token = per_token - shaping.bonus * entropy",
            "per_token = per_token - importance * shaping.bonus * entropy",
        ),
        (
            "importance on the reference penalty too",
            "per_token + objective.kl.coefficient * penalty",
            "per_token + importance * objective.kl.coefficient * penalty",
        ),
    ),
    *entries(
        "objective",
        PENALTY,
        ("k1 as a loss", "return torch.zeros_like(logp)\n", "return -difference\n"),
        ("k2 without the half", "return 0.5 * difference**2", "return difference**2"),
        ("k3 without the log", "return difference.exp() - difference - 1.0", "return difference.exp() - 1.0"),
        ("k3's log added", "return difference.exp() - difference - 1.0", "return difference.exp() + difference - 1.0"),
        (
            "k1's sign",
            "return advantages - objective.kl.coefficient * (old_logp - reference)",
            "return advantages + objective.kl.coefficient * (old_logp - reference)",
        ),
        ("k1 for every estimator", 'objective.kl.estimator != "k1" or', 'objective.kl.estimator == "" or'),
    ),
    *entries(
        "objective",
        PULL,
        ("the pull without its coefficient", "return objective.kl.coefficient * (apart if", "return (apart if"),
        ("k3's pull of k2", "else torch.expm1(apart))", "else apart)"),
    ),
    *entries(
        "objective",
        LOSS,
        (
            "the shaped advantage is ignored",
            "data.advantages if shaping.advantages is None else shaping.advantages",
            "data.advantages",
        ),
        (
            "the shaped clip is ignored",
            "high if shaping.clip_high is None else shaping.clip_high",
            "high",
        ),
        ("the token weight is ignored", "per_token = per_token * shaping.weight\n", "per_token = per_token * 1.0\n"),
        (
            "the shaped lower clip is ignored",
            "low if shaping.clip_low is None else shaping.clip_low",
            "low",
        ),
        ("clipped high of any sign", "((advantages > 0) | any_sign) & clips", "((advantages > -9) | any_sign) & clips"),
        ("clipped low of any sign", "((advantages < 0) | any_sign) & clips", "((advantages < 9) | any_sign) & clips"),
        ("the kl upside down", '"kl": k3(log_ratio)', '"kl": k3(-log_ratio)'),
    ),
    *entries(
        "objective",
        FORGONE,
        ("cispo's clip is on one side", 'objective.surrogate == "cispo", dtype', 'objective.surrogate == "", dtype'),
        (
            "reinforce is clipped",
            'frozenset({"ppo", "gspo", "cispo"})',
            'frozenset({"ppo", "gspo", "cispo", "policy_gradient"})',
        ),
        ("all of cispo is withheld", "importance * (ratio - kept)", "importance * ratio"),
        ("without the importance", "importance * (ratio - kept)", "(ratio - kept)"),
        ("what is left is all", "torch.where(high | low, bound, ratio)", "torch.where(high | low, ratio, ratio)"),
    ),
)
