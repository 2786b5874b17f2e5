"""Controllers, targets, draws, log-probs and the learner's collectives, broken one at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation, entries

_AT, _CLUSTER = "tests/learner/", "orchestration/cluster"
CONTROL = f"{_AT}entropy/test_references_control.py"
STEERING = (
    f"{_AT}entropy/test_controllers.py {_AT}entropy/test_steering.py "
    "-k dead or bound or own or release or observed or rate or successful or saturation"
)
LOGPROBS = f"{_AT}test_logprobs.py -k values or entropy_grad_sq or statistics or flat"
LEARNER = f"{_AT}test_learner.py -k change_no and (kl_cov or k1) or reference_is or predicted"
DROPPED = f"{_AT}test_learner.py -k measured or dropped or learning_rate"

CONTROL_MUTATIONS: tuple[Mutation, ...] = (
    *entries(
        "entropy/controllers",
        f"{_AT}entropy/test_controllers.py -k band",
        ("the band's other edge", "math.copysign(math.inf, error)", "math.copysign(math.inf, -error)"),
        ("no band", "self.coefficient_range.start if self.idle(error) else math", "math"),
    ),
    *entries(
        "entropy/target",
        f"{_AT}entropy/test_steering.py -k pair",
        ("it starts below", "points = ((1, 1.0),", "points = ((1, first),"),
    ),
    *(
        Mutation(
            f"actor_settings: {what}",
            f"{_CLUSTER}/actor_settings.py",
            text,
            new,
            f"tests/{_CLUSTER}/test_actor_settings.py",
        )
        for what, text, new in (
            ("a stage of its own though it keeps", 'if i and stage.controller != "keep"]', "if i]"),
            ("the whole run", "for stage in run.stages[first:after])", "for stage in run.stages)"),
        )
    ),
    *entries(
        "entropy/controllers",
        CONTROL,
        ("the error's sign", "return (target - entropy) / target", "return (entropy - target) / target"),
        ("the error relative to H", "return (target - entropy) / target", "return (target - entropy) / entropy"),
        (
            "doubling the wrong way",
            "(observed.entropy < target) == (sign > 0)",
            "(observed.entropy > target) == (sign > 0)",
        ),
        ("a negative coefficient grows", "(observed.entropy < target) == (sign > 0)", "(observed.entropy < target)"),
        ("halving is doubling", "(2.0 if grow else 0.5)", "(2.0 if grow else 2.0)"),
        ("no flip", "sign = -sign if self.negative or sign < 0 else sign", "sign = sign"),
        ("always a flip", "settings.allow_negative and self.coefficient_range.signed", "True"),
        ("proportional's sign", "self.move(self.gain * error)", "self.move(-self.gain * error)"),
        ("proportional without its gain", "self.move(self.gain * error)", "self.move(error)"),
        ("additive's sign", "self.step if error > 0 else -self.step", "-self.step if error > 0 else self.step"),
        ("the gate never shuts", "return self.value * self.gate", "return self.value"),
        ("additive keeps its low", '{"low": 0.0}), settings)', '{"low": bounds.low}), settings)'),
        ("pi without what was before", "self.gain * (error - self.before)", "self.gain * error"),
        ("pi without the integral", "+ self.integral * error\n", "+ 0 * error\n"),
        ("pi linear", "self.value * math.exp(min(max(change, -5.0), 5.0))", "self.value * (1 + change)"),
    ),
    *entries(
        "entropy/isentropic",
        CONTROL,
        ("isentropic's sign", "held = self.needed if", "held = -self.needed if"),
        ("feedback's sign", "wanted = held + unit * (s.gain", "wanted = held - unit * (s.gain"),
        ("feedback without the unit", "unit * (s.gain * max(", "(s.gain * max("),
        ("a push towards a distant target", "s.gain * max(ahead, -self.REACH)", "s.gain * ahead"),
        ("no push upwards", "s.gain * max(ahead, -self.REACH)", "s.gain * min(ahead, self.REACH)"),
        ("looking back", "error - s.lookahead * drift", "error + s.lookahead * drift"),
        ("a drift in nats", "drift = observed.step / target if", "drift = observed.step if"),
        ("a jump in any unit", "else self.settings.max_change * unit", "else self.settings.max_change"),
        (
            "the memory inverted",
            "s.memory * getattr(self, name) + (1 - s.memory) * value",
            "(1 - s.memory) * getattr(self, name) + s.memory * value",
        ),
        ("the mean, not its square", '("advantage", observed.advantage**2)', '("advantage", observed.advantage)'),
        ("no reach", "step = min(max(error, -self.REACH), self.REACH)", "step = error"),
        ("a reach on one side", "step = min(max(error, -self.REACH), self.REACH)", "step = min(error, self.REACH)"),
        ("winding up", "if self.lowest < wanted < highest or wanted * error < 0:", "if True:"),
        (
            "stuck at the bound",
            "< highest or wanted * error < 0:",
            "< highest:",
        ),
        (
            "units swapped",
            'self.coefficient_range.unit == "advantage" and',
            'self.coefficient_range.unit == "factor" and',
        ),
    ),
    *entries(
        "entropy/controllers",
        f"{_AT}entropy/test_controllers.py -k upper_bound or narrowed or published",
        ("a bound that was set follows", "and settings.high is None and", "and"),
        ("a bound that is lowered", "max(self._given_high, self.SPAN * self.needed)", "self.SPAN * self.needed"),
        ("a slope below 0", "if self.slope > 0 else math.nan", "if self.slope else math.nan"),
        (
            "a bound of the batches is not restored",
            "setattr(self, name, value)\n        self._widen()",
            "setattr(self, name, value)",
        ),
    ),
    *entries(
        "entropy/steering",
        f"{_AT}entropy/test_steering.py -k waits",
        ("a signed coefficient waits", "self.controller.lowest >= 0 and", ""),
        ("waiting above the start", "< self.entropy <= self.target.start", "< self.entropy"),
    ),
    *entries(
        "entropy/controllers",
        STEERING,
        ("no rate limit", "if self.max_change is not None:", "if self.max_change is None and False:"),
    ),
    *entries(
        "entropy/target",
        CONTROL,
        ("the start goes on", "if not math.isfinite(self.start):", "if True:"),
        ("no schedule", "return factor * self.settings.nats", "return self.settings.nats"),
        ("no fraction", "max(factor * fraction *", "max(factor *"),
        ("lines the wrong way", "y0 + (y1 - y0) *", "y1 + (y0 - y1) *"),
        ("released a step late", "self.iteration >= at", "self.iteration > at"),
    ),
    *entries(
        "entropy/target",
        f"{_AT}entropy/test_steering.py -k fraction",
        ("no start of an older checkpoint", 'state["total"] / state["count"] if', 'state["total"] if'),
        ("nan is a start", "if math.isfinite(entropy):", "if True:"),
    ),
    *entries(
        "entropy/steering",
        STEERING,
        (
            "a released loop moves",
            "math.isfinite(observed.entropy) and observed.trained and not self.target.released:",
            "math.isfinite(observed.entropy) and observed.trained:",
        ),
        (
            "the loop's error",
            "return (self.aim - self.entropy) / self.aim",
            "return (self.entropy - self.aim) / self.aim",
        ),
        ("one coefficient for all", "return table[tokens.env]", "return table[tokens.env * 0]"),
        ("not untouched when released", "if all(loop.target.released for", "if not all(loop.target.released for"),
    ),
    *entries(
        "microbatches/draws",
        CONTROL,
        ("without the step", "^ np.uint64(step)\n", "^ np.uint64(0)\n"),
        (
            "without the action's index",
            "^ action_index.astype(np.uint64))",
            "^ np.uint64(0) * action_index.astype(np.uint64))",
        ),
        ("without the trajectory", "^ trajectory.astype(np.uint64))", "^ np.uint64(0) * trajectory.astype(np.uint64))"),
        ("another multiplier", "0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5B7"),
        ("a half of the interval", "/ 2.0**24", "/ 2.0**25"),
    ),
    *entries(
        "logprobs",
        LOGPROBS,
        ("the gradient without scale and temperature", "grad_logp * head.slope", "grad_logp"),
        (
            "the gradient of H without scale and temperature",
            "-grad_entropy * head.slope / total",
            "-grad_entropy / total",
        ),
        ("the gradient of H about the reference", "constant = constant - linear * mean", "pass"),
    ),
    *entries(
        "head/logits",
        LOGPROBS,
        ("no temperature", "return self.scale / self.temperature", "return self.scale"),
        ("no logit scale", "return self.scale / self.temperature", "return 1.0 / self.temperature"),
        ("a soft cap without the temperature", "mul_(self.softcap / self.temperature)", "mul_(self.softcap)"),
    ),
    *entries(
        "head/moments",
        LOGPROBS,
        ("the entropy's sign", "entropy=(log_total - mean)", "entropy=(log_total + mean)"),
        ("kappa without H", "exact = t1 - mean * t0", "exact = t1"),
        ("the entropy_grad_sq not centred", "t2 - mean * (t1 + exact)", "t2 - mean * t1"),
        ("the sum of e^q q as it was", "moved = [s0, s1 - by * s0]", "moved = [s0, s1]"),
        ("the sum of e^2q q as it was", "t[1] - by * t[0],", "t[1],"),
        ("half of the cross term", "2 * by * t[1]", "by * t[1]"),
        ("the sums of e^2q moved as those of e^q", "once * once", "once"),
        ("a reference far below", "torch.where(top > mean + FAR, top, mean)", "mean"),
        (
            "a target of the last block alone",
            "torch.where((local >= 0) & (local < z.shape[1]), chosen, self._target)",
            "chosen",
        ),
    ),
    *entries(
        "head/blocks",
        LOGPROBS,
        ("the gradient of H's sign", ".mul_(self.linear[:, None]).add_", ".mul_(-self.linear[:, None]).add_"),
        ("a target in every block", "(self.at_target * inside)", "self.at_target"),
        ("the last rows' gradient of the weight", "beta=0.0 if rows.start == 0 else 1.0", "beta=0.0"),
        ("no gradient of the soft cap", "dz.mul_(cap_slope)", "pass"),
    ),
    *entries(
        "families/router_balance",
        f"{_AT}families/test_router_balance.py",
        ("all positions count", "layer.shape[-1])[rows]", "layer.shape[-1])"),
        ("the loss without the number of experts", "len(share) * (_prob", "(_prob"),
        ("one expert a token", "p.topk(top_k)", "p.topk(1)"),
    ),
    *entries(
        "policy",
        f"{_AT}families/test_router_balance.py",
        ("the routers' loss without its coefficient", "self._balance * (weight *", "(weight *"),
        (
            "the routers' loss without the tokens' weights",
            "(weight * self._router_losses).sum()",
            "self._router_losses.sum()",
        ),
        ("the share of one rank", "total(self._expert_counts).unbind()", "self._expert_counts.unbind()"),
        ("counts of the last micro-batch", "else self._expert_counts + counts", "else counts"),
        ("any model passes for a mixture", "if coefficient and not has_routers(self.model):", "if False:"),
    ),
    *entries(
        "learner",
        f"{_AT}families/test_router_balance.py -k divided",
        ("no routers' loss", "terms.loss + routers", "terms.loss"),
    ),
    *entries(
        "families/logit_scale",
        f"{_AT}families/test_logit_scale.py",
        ("a family that divides multiplies", "(DIVIDED, -1)", "(DIVIDED, 1)"),
        ("a family that multiplies divides", "(MULTIPLIED, 1)", "(MULTIPLIED, -1)"),
        ("no soft cap", "if cap is not None), None)", "if cap is None), None)"),
        ("a factor of 0 passes", "if value == 0:", "if value == -1:"),
    ),
    *entries("entropy/steering", DROPPED, ("a coefficient without an update moves", " and observed.trained", "")),
    *entries(
        "batching",
        f"{_AT}test_batching.py -k mixed",
        ("never mixed", "range(k, count, updates) if mixed else", "range(k, count, updates) if not mixed else"),
    ),
    *entries(
        "batching",
        f"{_AT}test_batching.py -k usual_size or informative",
        ("as many updates of what is left", "max(1, count * updates // full_batch)", "updates"),
        (
            "an error makes a group informative",
            "[t.verdict for t in group.trajectories if t.verdict.status.scored]",
            "[t.verdict for t in group.trajectories]",
        ),
    ),
    *entries(
        "batching",
        f"{_AT}test_batching.py -k terms_alone or partial_credit",
        ("terms make a difference by verdict", '"verdict": len(own) > 1', '"verdict": True'),
        ("by correctness is by verdict", "len({v.correct for v in verdicts}) > 1", "len(own) > 1"),
        ("a verdict without a difference in reward", "len({v.reward for v in verdicts}) > 1 and ", ""),
        ("partial credit without terms", 'v.terms.get("verdict", v.reward)', 'v.terms.get("verdict", 0.0)'),
    ),
    *entries(
        "advantages",
        f"{_AT}test_advantages.py -k earned or same_turn",
        ("turns without the discount", "rewards[k] + discount * after", "rewards[k] + after"),
        ("a turn alone is none", "if len(reached) >= advantage.compared:", "if len(reached) > 2:"),
    ),
    *entries(
        "batching",
        f"{_AT}test_advantages.py -k turn",
        ("the verdict is no turn's", "rewards[-1] += t.verdict.reward", "rewards[-1] += 0.0"),
        ("turns without a verdict are whitened", " & t.verdict.status.scored)", ")"),
    ),
    *entries(
        "learner",
        DROPPED,
        ("dropped responses are not measured", "(*batch.updates, batch.measured)", "batch.updates"),
        ("the schedule waits", "self.steps = max(self.steps, began + batch.steps)", "pass"),
        ("the schedule waits without updates", "self.steps = began + batch.steps", "pass"),
    ),
    *entries(
        "learner",
        LEARNER,
        (
            "batch scope on a rank's part",
            "parts = self.engine.all_gather(columns)",
            "parts = [columns] * (self.rank + 1)",
        ),
        ("another rank's part", "for p in parts[: self.rank])", "for p in parts[: 0])"),
        ("micro-batches share the start", "            start += len(stats.logp)\n", "            start += 0\n"),
        ("not reduced", "        self._reduce(measured)\n", ""),
        ("updates not reduced", "        self._reduce(updated)\n", ""),
        ("planned not reduced", "        self._reduce(planned)\n", ""),
        ("a step in the middle", "boundary(i == len(update) - 1)", "boundary(i == 0)"),
        (
            "the old policy is the current one",
            "token_loss(logp, entropy, passes.loss_data(micro, f),",
            "token_loss(logp, entropy, replace(passes.loss_data(micro, f), old_logp=logp.detach()),",
        ),
        (
            "the planned change of one update",
            "for update in batch.updates[:updates_per_pass]:",
            "for update in batch.updates[:1]:",
        ),
    ),
    *entries(
        "passes",
        LEARNER,
        (
            "the trajectory left out",
            "trajectory=self._tensor(micro.trajectory),",
            "trajectory=self._tensor(micro.trajectory * 0),",
        ),
        (
            "a micro-batch is weighted by itself",
            "weight, trajectory = self._tensor(micro.weight),",
            "weight, trajectory = self._tensor(micro.weight / (micro.weight.sum() or 1)),",
        ),
        (
            "k1 left out",
            "advantages = with_reference(advantages, logp,",
            "advantages, _ = advantages, (advantages, logp,",
        ),
    ),
    *entries(
        "passes",
        f"{_AT}test_passes.py",
        ("graphs beyond the budget", "room -= micro.tokens.size", "room -= 0"),
        ("statistics of the policy that was", "if not moved:", "if True:"),
    ),
)
