"""The ledger and the methods of entropy control, broken one formula at a time (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation, entries

_AT = "tests/learner/"
REPO = f"{_AT}entropy/test_references_methods.py -k repo"
COVARIANCE = f"{_AT}entropy/test_references_methods.py -k cov or order or share"
CLIP = f"{_AT}entropy/test_methods.py -k clip_methods or no_control"
PREDICTED = f"{_AT}test_tabular.py -k predicted or bonus or drops"
FORGONE = f"{_AT}test_tabular.py -k forgone"
STEP = f"{_AT}ledger/test_step_effect.py"
LEDGER = f"{_AT}ledger/test_ledger.py -k row or regression or realised or touched or controller or tenth or peak"

ENTROPY_MUTATIONS: tuple[Mutation, ...] = (
    *entries(
        "ledger/predicted",
        FORGONE,
        ("the bonus is forgone", "predicted_dh(stats, replace(shaping, bonus=None))", "predicted_dh(stats, shaping)"),
        ("nothing is withheld", 'step * tokens["withheld"] *', "step *"),
        (
            "forgone of the wrong side",
            'forgone.where(tokens["clipped_low"], 0.0)',
            'forgone.where(tokens["clipped_high"], 0.0)',
        ),
    ),
    *entries(
        "ledger/predicted",
        PREDICTED,
        ("kappa added", "stats.centred - stats.kappa)", "stats.centred + stats.kappa)"),
        ("without kappa", "stats.centred - stats.kappa)", "stats.centred)"),
        ("without pi", "(stats.logp.exp() * stats.centred - stats.kappa)", "(stats.centred - stats.kappa)"),
        (
            "log pi for L",
            "stats.logp.exp() * stats.centred - stats.kappa",
            "stats.logp.exp() * stats.logp - stats.kappa",
        ),
        (
            "the advantage before shaping",
            "shaped = stats.advantages if shaping.advantages is None else shaping.advantages",
            "shaped = stats.advantages",
        ),
        ("the token weight left out", "dh = dh * shaping.weight", "dh = dh * 1.0"),
        (
            "the bonus's sign",
            "dh + shaping.bonus * stats.entropy_grad_sq",
            "dh - shaping.bonus * stats.entropy_grad_sq",
        ),
        ("the importance weight left out", "dh = dh * fresh.importance", "dh = dh * 1.0"),
        (
            "the reference's pull left out",
            "torch.zeros_like(dh) if fresh.pull is None else",
            "torch.zeros_like(dh) if True else",
        ),
        (
            "kappa for the entropy_grad_sq",
            "dh + shaping.bonus * stats.entropy_grad_sq",
            "dh + shaping.bonus * stats.kappa",
        ),
    ),
    *entries(
        "ledger/predicted",
        LEDGER,
        (
            "the slope not per unit",
            "(planned_dh(fresh, probe[0]) - free) / probe[1]",
            "(planned_dh(fresh, probe[0]) - free)",
        ),
        (
            "the slope with the free part",
            "(planned_dh(fresh, probe[0]) - free) / probe[1]",
            "planned_dh(fresh, probe[0]) / probe[1]",
        ),
        ("free not weighted", '("free", w * free)', '("free", free)'),
        ("successful of all", '("ok_entropy", ok * s.entropy)', '("ok_entropy", s.entropy)'),
        ("the gap on one side", ".exp() - 1.0).abs() > 0.1)", ".exp() - 1.0) > 0.1)"),
        (
            "planned without the loss weight",
            "dh = fresh.weight * planned_dh(fresh, shaping)",
            "dh = planned_dh(fresh, shaping)",
        ),
        ("measured responses have a say", "learnt = (w > 0).double()", "learnt = torch.ones_like(w)"),
        ("untouched tokens count", "else shaping.touched.double()", "else (~shaping.touched).double()"),
    ),
    *entries(
        "ledger/history",
        LEDGER,
        (
            "the covariance's sign",
            'mean * tally.mean("learnt_surprisal", learnt)',
            '-mean * tally.mean("learnt_surprisal", learnt)',
        ),
        ("attributed without the updates", "scale = eta / row.updates", "scale = eta"),
        (
            "attributed without the zeros",
            'for k in ("positive", "negative", "zero")}\n        out',
            'for k in ("positive", "negative")}\n        out',
        ),
        ("the slope of x on y", "return (cov / var_x,", "return (cov / var_y,"),
        ("no covariance of the regression", "xy - x * y / n", "xy"),
        ("a step that nobody measured is one of zero", "if math.isfinite(x) and math.isfinite(y):", "if True:"),
        (
            "the step's regression the wrong way",
            '"step_").add(predicted, realised)',
            '"step_").add(realised, predicted)',
        ),
        (
            "the effective share upside down",
            'tally.sums["ratio"] ** 2 / (trained * tally.sums["ratio_square"])',
            '(trained * tally.sums["ratio_square"]) / tally.sums["ratio"] ** 2',
        ),
        ("the scale upside down", "math.log(after / before)", "math.log(before / after)"),
        ("free of the sum of updates", "free=p.free / max(1, self.updates)", "free=p.free"),
        (
            "the mean square",
            "advantage=math.sqrt(p.advantage_square / weight)",
            "advantage=p.advantage_square / weight",
        ),
        ("all for successful", 'if over == "successful" else (p.tokens', 'if over == "all" else (p.tokens'),
    ),
    *entries(
        "ledger/step_effect",
        STEP,
        ("a gradient of the sum", "/ (GRADIENT_SCALE * count)", "/ GRADIENT_SCALE"),
        ("the last micro-batch alone", "part if before is None else before + part", "part"),
        ("no displacement", "_precise(weights[piece]) - _precise(before[piece])", "_precise(before[piece])"),
        ("realised upside down", ") - self._entropy\n", ") + self._entropy\n"),
    ),
    *entries(
        "ledger/tally",
        LEDGER,
        ("the largest of the last", "torch.maximum(before, largest)", "largest"),
    ),
    *entries(
        "entropy/repo",
        REPO,
        ("repo's sign", "tokens.advantages - coefficient * surprise", "tokens.advantages + coefficient * surprise"),
        ("repo-d's sign", "tokens.advantages - coefficient * lost", "tokens.advantages + coefficient * lost"),
        ("repo-d against a gain too", "(-free_dh(tokens)).clamp(min=0.0)", "-free_dh(tokens)"),
        ("repo-d is repo", "coefficient * lost * tokens.centred", "coefficient * tokens.centred"),
        (
            "repo-d by its own size",
            "coefficient * lost * tokens.centred",
            "coefficient * lost * tokens.advantages.abs()",
        ),
        ("repo-d of log pi", "coefficient * lost * tokens.centred", "coefficient * lost * tokens.logp"),
        ("repo-d of equal weights", "-(tokens.gradient_weight * tokens.advantages", "-(tokens.advantages"),
        ("repo-d without kappa", "tokens.centred - tokens.kappa)", "tokens.centred)"),
        ("repo-d without pi", "(tokens.logp.exp() * tokens.centred - tokens", "(tokens.centred - tokens"),
        ("repo-r's sign", "1.0 - coefficient * sign * surprise", "1.0 + coefficient * sign * surprise"),
        ("repo-r without the sign of A", "1.0 - coefficient * sign * surprise", "1.0 - coefficient * surprise"),
        ("no clamp", "a * factor.clamp(min=0.0)", "a * factor"),
        (
            "centred inverted",
            "tokens.centred if centred else tokens.logp",
            "tokens.logp if centred else tokens.centred",
        ),
        ("both parts", 'if self.part == "positive" else a.sign()', 'if self.part == "both" else a.sign()'),
        ("touched inverted", "touched=sign != 0", "touched=sign == 0"),
    ),
    *entries("types", REPO, ("L without H", "return self.logp + self.entropy", "return self.logp - self.entropy")),
    *entries(
        "entropy/bonus",
        f"{_AT}entropy/test_methods.py -k bonus or oriented",
        ("its sign", "Shaping(bonus=coefficient)", "Shaping(bonus=-coefficient)"),
    ),
    *entries(
        "entropy/clip",
        CLIP,
        ("touched below", "ratio > 1.0 + coefficient", "ratio < 1.0 + coefficient"),
        ("the coefficient is not the range", "clip_high=coefficient,", "clip_high=1.0 + coefficient,"),
    ),
    *entries(
        "entropy/clip",
        f"{_AT}entropy/test_methods.py -k lower_clip",
        ("wider with the coefficient", "low = PPO_LOW / coefficient", "low = PPO_LOW * coefficient"),
        ("touched inside the range", "ratio < 1.0 - low)", "ratio > 1.0 - low)"),
    ),
    *entries(
        "entropy/entrocraft",
        f"{_AT}entropy/test_methods.py -k entrocraft",
        ("the other sign", "(1.0 - a.sign() * coefficient)", "(1.0 + a.sign() * coefficient)"),
        ("the sign turns round", ".clamp(0.0, 1.0)", ".clamp(max=1.0)"),
        ("the others grow", ".clamp(0.0, 1.0)", ".clamp(min=0.0)"),
    ),
    *entries(
        "entropy/build",
        f"{_AT}entropy/test_methods.py -k nothing_switches",
        ("nothing is refused", 'if still and method.kind != "none":', "if False:"),
    ),
    *entries(
        "entropy/covariance",
        COVARIANCE,
        ("its sign", "return (a - a.mean()) * (x - x.mean())", "return -(a - a.mean()) * (x - x.mean())"),
        ("A not centred", "(a - a.mean()) * (x", "a * (x"),
        ("log pi not centred", "(x - x.mean()) if", "x if"),
        ("a or in the range", "(c >= self.low) & (c <= self.high)", "(c >= self.low) | (c <= self.high)"),
        ("no upper bound", "(c >= self.low) & (c <= self.high)", "(c >= self.low)"),
        ("clipped tokens may be drawn", " & (tokens.gradient_weight != 0)", ""),
        ("clipped tokens alone", "tokens.gradient_weight != 0", "tokens.gradient_weight == 0"),
        ("no lower bound", "(c >= self.low) & (c <= self.high)", "(c <= self.high)"),
        ("clip-cov rounds down", "math.ceil(float(coefficient) * len(c))", "math.floor(float(coefficient) * len(c))"),
        ("more than there are", ", int(eligible.sum()))", ", len(c))"),
        (
            "a share of those eligible",
            "math.ceil(float(coefficient) * len(c))",
            "math.ceil(float(coefficient) * int(eligible.sum()))",
        ),
        ("the others are eligible", "(~eligible).to(tokens.uniform.dtype)", "eligible.to(tokens.uniform.dtype)"),
        ("the draw is the order", "(tokens.uniform + (~eligible)", "(0 * tokens.uniform + (~eligible)"),
        ("the dropped are kept", "weight=(~dropped).to", "weight=dropped.to"),
        ("kl-cov takes the lowest", "c[drawn].argsort(descending=True,", "c[drawn].argsort(descending=False,"),
        ("ties by order", "drawn = tokens.uniform.argsort()", "drawn = (0 * tokens.uniform).argsort(stable=True)"),
        ("kl-cov rounds down", "math.ceil(self.share * len(c))", "math.floor(self.share * len(c))"),
        ("the coefficient left out", "penalty = float(coefficient) * top", "penalty = 1.0 * top"),
        ("kl-cov keeps ppo's clip", "None if settings.clipped else math.inf", "None if True else math.inf"),
        ("kl-cov drops every clip", "None if settings.clipped else math.inf", "math.inf"),
        ("kl-cov's upper clip alone", "Shaping(clip_low=self.clip, clip_high", "Shaping(clip_high"),
        ("kl-cov's form is the default's", "kl=penalty, kl_form=self.form,", "kl=penalty,"),
        (
            "kl-cov's default is the paper's formula",
            'form: Literal["abs", "kl"] = "abs"',
            'form: Literal["abs", "kl"] = "kl"',
        ),
        ("kl-cov's share in percent", "Field(default=2e-3, gt=0, le=1)", "Field(default=0.2, gt=0, le=1)"),
    ),
)
