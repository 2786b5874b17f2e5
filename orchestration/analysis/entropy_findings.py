"""Finds what entropy did, and why: the first two chapters of the diagnosis. Pure.

A predicted change of entropy is first order and for a network a correlate, not a law (`learner/ledger/predicted.py`): only `cause`
joins it to what happened, and only as far as the measured correlation carries.
"""

import math
from typing import NamedTuple

from orchestration.analysis.control import is_off_target, late_error, released_at, steered
from orchestration.analysis.findings import (
    Check,
    Finding,
    attribution_pairs,
    fresh_pairs,
    moved,
    off_by,
    signed,
    start_and_end,
    step_pairs,
    totals,
)
from orchestration.analysis.run_data import RunData
from orchestration.analysis.run_summary import summary_of
from orchestration.stats import finite, fit_line, mean, rms
from orchestration.text import label, percent
from orchestration.thresholds import (
    FEW_STEPS,
    FLAT,
    MODERATE_R,
    NO_R,
    REST,
    STEADY,
    STRONG_R,
    UNEVEN,
)

# ---------------------------------------------------------------- what entropy did


def course(run: RunData) -> Finding | None:
    s = summary_of(run)
    if not math.isfinite(s.entropy_change):
        return None
    verb = "fell" if s.entropy_change < 0 else "rose"
    text = f"Entropy {verb} {percent(abs(s.entropy_change))}, from {s.entropy_start:.2f} to {s.entropy_end:.2f} nats per token"
    if abs(s.entropy_change) < FLAT:
        text = f"Entropy stayed near {s.entropy_end:.2f} nats per token"
    aside = "" if steered(run) else " No controller steered it."
    return Finding("entropy", "course", f"{text}, in {s.iterations} iterations.{aside}")


def against_target(run: RunData) -> Finding | None:
    """Compares the entropy that the controller observes, which may be that of the correct responses only, with its target."""
    bias, off = late_error(run)
    if not steered(run) or not math.isfinite(off):
        return None
    target = finite(run.column("entropy/target"))[-1]
    what = "the entropy under control" if run.has("entropy/controlled") else "entropy"
    when = "the last third before its release" if math.isfinite(released_at(run)) else "the last third of the run"
    if not is_off_target(run):
        text = f"In {when} {what} held its target of {target:.2f} within {percent(off)} rms."
        return Finding("entropy", "on_target", text)
    text = f"In {when} {what} was {off_by(bias, off)} its target of {target:.2f}."
    return Finding("entropy", "off_target", text, "warning")


def by_success(run: RunData) -> Finding | None:
    """Tells ignorance from diversity: entropy among responses that work, against entropy among those that do not."""
    good, bad = (start_and_end(run, f"entropy/{which}")[1] for which in ("successful", "failed"))
    if not (good >= 0.0 and bad >= 0.0):
        return None
    text = f"At the end correct responses have {good:.2f} nats per token and failed ones {bad:.2f}"
    if bad > UNEVEN * good:
        return Finding("entropy", "ignorance", f"{text}: what is left looks more like ignorance than like diversity.")
    if good > UNEVEN * bad:
        return Finding(
            "entropy", "diversity", f"{text}: what is left lies among the responses that work, as diversity."
        )
    return Finding("entropy", "even", f"{text}: about alike, so entropy does not tell ignorance from diversity here.")


def by_position(run: RunData) -> Finding | None:
    (first, first_end), (last, last_end) = (start_and_end(run, f"entropy/{where}") for where in ("first", "last"))
    if not (math.isfinite(first_end) and math.isfinite(last_end)):
        return None
    text = f"At the first token of a response entropy {moved(first, first_end)}, at the last token it {moved(last, last_end)}."
    return Finding("entropy", "position", text)


def by_environment(run: RunData) -> Finding | None:
    values = {env: start_and_end(run, f"entropy/{env}")[1] for env in run.envs()}
    ends = {env: value for env, value in values.items() if math.isfinite(value)}
    if len(ends) < 2:
        return None
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if ends[high] <= UNEVEN * ends[low]:
        return None
    text = f"The environments differ at the end: from {ends[low]:.2f} nats per token in {low} to {ends[high]:.2f} in {high}."
    return Finding("entropy", "environments", text)


# ---------------------------------------------------------------- why


class Trust(NamedTuple):
    """Holds how well realised changes follow those of a tabular policy, which divide the push among tokens, over `steps` pairs.

    `word` is strong, moderate, weak, none, reversed or few.
    """

    word: str
    slope: float
    r: float
    steps: int

    @property
    def carries(self) -> bool:
        """Tells whether the prediction may be read as a reason."""
        return self.word in ("strong", "moderate", "weak")


def trust_in_prediction(run: RunData) -> Trust:
    x, y = attribution_pairs(run)
    steps = sum(math.isfinite(a) and math.isfinite(b) for a, b in zip(x, y, strict=True))
    line = fit_line(x, y)
    if steps < FEW_STEPS or not math.isfinite(line.correlation):
        return Trust("few", line.slope, line.correlation, steps)
    noise = max(NO_R, 2.0 / math.sqrt(steps))  # two standard errors of r where the two are unrelated
    r = line.correlation
    word = "reversed" if r < -noise else "none" if r < noise else "weak" if r < MODERATE_R else "moderate"
    return Trust("strong" if r >= STRONG_R else word, line.slope, r, steps)


def cause(run: RunData) -> Finding | None:
    """Names a cause of the change of entropy, and only where the measured correlation of prediction and change supports one."""
    change = summary_of(run).entropy_change
    (predicted,) = totals(run, "entropy/tabular_dh")
    if not math.isfinite(change) or abs(change) < FLAT or not math.isfinite(predicted):
        return None
    verb, noun = ("fell", "fall") if change < 0 else ("rose", "rise")
    trust = trust_in_prediction(run)
    if not trust.carries:
        why = {"few": f"{trust.steps} measured steps are too few to test the prediction"}.get(
            trust.word, f"the first-order prediction explains nothing of the {trust.steps} steps (r = {trust.r:.2f})"
        )
        return Finding("why", "cause", f"These numbers do not say why entropy {verb}: {why}.")
    if predicted * change <= 0.0:
        text = f"These numbers do not say why entropy {verb}: the predicted changes sum to {signed(predicted)} nats per token."
        return Finding("why", "cause", text)
    _, *both = totals(run, *(f"entropy/tabular_dh{part}" for part in ("", "_positive", "_negative")))
    parts = dict(zip(("positive", "negative"), both, strict=True))
    big = max(parts, key=lambda sign: parts[sign] / predicted if math.isfinite(parts[sign]) else -math.inf)
    if not parts[big] * predicted > 0.0:
        text = f"Entropy {verb} as predicted, to first order ({signed(predicted)} nats per token in sum)"
    elif math.prod(both) >= 0.0:
        # A method that moves tokens without advantage makes the whole larger than the two parts.
        share = parts[big] / max(predicted, sum(both), key=abs)
        text = f"Entropy {verb} because, to first order, {percent(share)} of the predicted {noun} came from {big} advantages"
    else:
        text = f"Entropy {verb} because, to first order, {big} advantages outweighed the others"
    lead = "; the prediction follows the steps only weakly, so this is a lead" if trust.word == "weak" else ""
    return Finding("why", "cause", f"{text}{lead}.")


def split(run: RunData) -> Finding | None:
    """Splits the predicted change by the sign of the advantage; some methods move tokens without advantage as well."""
    total, positive, negative = totals(run, *(f"entropy/tabular_dh{part}" for part in ("", "_positive", "_negative")))
    if not math.isfinite(total) or total == 0.0:
        return None
    parts = [("positive advantages", positive), ("negative advantages", negative)]
    if abs(total - positive - negative) > REST * abs(total):
        parts.append(("no advantage", total - positive - negative))
    same = all(value * total >= 0.0 for _, value in parts)
    shares = [f"{signed(v)}{f' ({percent(v / total)})' if same else ''} from tokens with {who}" for who, v in parts]
    aside = "" if same else ": they pulled against each other"
    text = f"The predicted change, {signed(total)} nats per token in sum, is {', '.join(shares)}{aside}."
    return Finding("why", "split", text)


def covariance(run: RunData) -> Finding | None:
    values = finite(run.column("entropy/covariance"))
    if not values or mean(values) == 0.0:
        return None
    up = mean(values) > 0.0
    share = mean(float((v > 0.0) == up) for v in values)
    text = f"Covariance of advantage and log-prob was {signed(mean(values))} on average, "
    text += f"{'positive' if up else 'negative'} in {percent(share)} of the iterations: "
    if share < STEADY:
        return Finding("why", "covariance_mixed", text + "too mixed to have a direction.")
    text += f"tokens that were rewarded were on the whole the {'likelier' if up else 'less likely'} ones, which to first order "
    return Finding("why", "covariance", text + f"{'lowers' if up else 'raises'} entropy.")


def prediction(run: RunData) -> Finding | None:
    """Says in words how far the division of the change among tokens can be trusted."""
    t = trust_in_prediction(run)
    if t.word == "few":
        return None
    if not t.carries:
        other = "; it even points the other way" if t.word == "reversed" else ""
        text = f"The division among tokens describes the gradient, not what happened: it explains nothing of the {t.steps} steps "
        return Finding("why", "prediction_none", f"{text}(r = {t.r:.2f}{other}). Read no cause from it.")
    text = f"The division among tokens follows the realised changes, {t.word}: r = {t.r:.2f} over {t.steps} steps, which is "
    text += f"{percent(t.r * t.r)} of their variance. "
    size = "sizes agree too" if 0.5 <= t.slope <= 2.0 else "read its sign and its shares, not its size in nats"
    return Finding("why", f"prediction_{t.word}", f"{text}Slope {label(float(f'{t.slope:.2g}'))}: {size}.")


def step(run: RunData) -> Finding | None:
    """Says how well first-order theory explains the optimiser's steps, and why fresh responses may not show it."""
    x, y = step_pairs(run)
    on_same = fit_line(x, y)
    steps = sum(math.isfinite(a) and math.isfinite(b) for a, b in zip(x, y, strict=True))
    if steps < FEW_STEPS or not math.isfinite(on_same.correlation):
        return None
    text = "The change predicted to first order for the optimiser's own steps against what they did to the same responses: slope "
    text += f"{label(float(f'{on_same.slope:.2g}'))}, r = {on_same.correlation:.2f} over {steps} steps"
    between = fit_line(*fresh_pairs(run))
    if not math.isfinite(between.correlation):
        return Finding("why", "step", f"{text}.")
    text += f"; between fresh responses slope {label(float(f'{between.slope:.2g}'))}, r = {between.correlation:.2f}"
    # What the step did to its own responses, and what the next ones show besides: other prompts, other states, other draws.
    done, shown = run.column("entropy/step_dh")[:-1], run.column("entropy/realised_dh")[1:]
    size, noise = rms(done), rms([b - a for a, b in zip(done, shown, strict=True)])
    if between.correlation < MODERATE_R and noise > size:
        text += (
            f", since two fresh batches differ by {noise:.2g} nats per token (rms) beyond the steps' own {size:.2g}: "
        )
        text += "more responses an iteration would show more"
    return Finding("why", "step", f"{text}.")


CHECKS: tuple[Check, ...] = (
    course,
    against_target,
    by_success,
    by_position,
    by_environment,
    cause,
    split,
    covariance,
    prediction,
    step,
)
