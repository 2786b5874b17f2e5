"""Writes the results of a lab in sentences, and states which differences the seeds cannot tell apart."""

import math
from collections.abc import Sequence

from orchestration.lab.compare import difference, pareto, within_noise
from orchestration.lab.headline import headline
from orchestration.lab.results import ArmResult, LabResults
from orchestration.lab.tables import percent_text, spread_text, temperature_text
from orchestration.report.page import Paragraph
from orchestration.text import listed, percent
from orchestration.thresholds import OFF_TARGET, OFTEN_SATURATED


def narrative(results: LabResults) -> list[Paragraph]:
    """Writes a paragraph on each subject: what was run, which arms hold their targets, which lead, what is noise."""
    arms, k, heat = results.arms, results.k, temperature_text(results)
    if not any(arm.finished for arm in arms):
        return [Paragraph("", "No run has finished." if arms else "The lab has no arms.")]
    both, own = f"pass@1 and pass@{k}", "at each arm's best temperature"
    paragraphs = [
        ("", [headline(results)]),
        ("", [_size(arms)]),
        ("Targets", _targets(arms)),
        (f"Front of {both} at {heat}", _front(results, "pass@1/end", f"pass@{k}/end")),
        (f"Front of {both} {own}", _front(results, "pass@1/best", f"pass@{k}/best")),
    ]
    for n in dict.fromkeys((1, k)):
        paragraphs.append((f"Highest pass@{n} at {heat}", [_leader(arms, f"pass@{n}/end")]))
        paragraphs.append((f"Highest pass@{n} {own}", [_leader(arms, f"pass@{n}/best")]))
    paragraphs.append(("Most distinct correct solutions", [_leader(arms, "distinct_end", ".2f")]))
    paragraphs += [("Against the start", [_against_start(results)]), ("How differences are scored", [_caution(arms)])]
    return [Paragraph(subject, " ".join(filter(None, parts))) for subject, parts in paragraphs if any(parts)]


def named(arm: ArmResult) -> str:
    """Returns the arm's name, in quotes where a list would otherwise be read wrongly."""
    return f"‘{arm.name}’" if "," in arm.name or " and " in arm.name else arm.name


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _size(arms: Sequence[ArmResult]) -> str:
    done, lost = sum(len(arm.finished) for arm in arms), sum(len(arm.failed) for arm in arms)
    text = f"{_count(len(arms), 'arm')}, {_count(done, 'finished run')}"
    return text + (
        f"; {_count(lost, 'run')} failed and {'is' if lost == 1 else 'are'} left out of every mean." if lost else "."
    )


def _targets(arms: Sequence[ArmResult]) -> list[str]:
    off = [(arm, arm.spread("rms_last_two_thirds")) for arm in arms if arm.steered]
    off = sorted(((arm, s) for arm, s in off if math.isfinite(s.mean)), key=lambda pair: pair[1].mean)
    held = [f"{named(arm)} ({percent_text(s)})" for arm, s in off if s.mean <= OFF_TARGET]
    lost = [f"{named(arm)} ({percent_text(s)}{_saturated(arm)})" for arm, s in off if s.mean > OFF_TARGET]
    free = [
        f"{named(arm)} ({percent_text(arm.spread('entropy_change'), sign=True)})"
        for arm in arms
        if arm.finished and not arm.steered and arm.spread("entropy_change").n
    ]
    limit = f"{percent(OFF_TARGET)} rms over the last two thirds of the iterations"
    return [
        f"Held to within {limit}: {listed(held)}." if held else "",
        f"Missed by more{'' if held else ' than ' + limit}: {listed(lost)}." if lost else "",
        f"No controller steers {listed(free)}: in brackets, how far entropy moved." if free else "",
    ]


def _saturated(arm: ArmResult) -> str:
    """Returns why a target was missed where its coefficient was at a bound, which leaves the controller no room."""
    share = arm.spread("saturated").mean
    return f", its coefficient at a bound in {percent(share)} of the iterations" if share > OFTEN_SATURATED else ""


def _front(results: LabResults, x: str, y: str) -> list[str]:
    arms = results.arms
    if x == y or len([arm for arm in arms if arm.spread(x).n and arm.spread(y).n]) < 2:
        return []
    front = pareto(arms, x, y)
    points = [f"{named(arm)} ({arm.spread(x).mean:.3f}, {arm.spread(y).mean:.3f})" for arm in arms if arm.name in front]
    near = [named(arm) for arm in arms if within_noise(arms, arm, x, y)]
    return [
        f"{listed(points)}: no arm is better in both means.",
        f"Off it by no more than the noise of the seeds: {listed(near)}." if near else "",
    ]


def _leader(arms: Sequence[ArmResult], metric: str, style: str = ".3f") -> str:
    """Returns which arm has the highest mean, and which others the seeds cannot tell from it."""
    ranked = sorted((arm for arm in arms if arm.spread(metric).n), key=lambda arm: -arm.spread(metric).mean)
    if len(ranked) < 2:
        return ""
    first, rest = ranked[0], ranked[1:]
    near = [named(arm) for arm in rest if not difference(first, arm, metric).clear]
    text = f"{named(first)} ({spread_text(first.spread(metric), style)})"
    if not near:
        return f"{text}, clear of every other arm."
    others = "any other arm" if len(near) == len(rest) else listed(near)
    return f"{text}, which these seeds cannot tell from {others}."


def _against_start(results: LabResults) -> str:
    """Returns which arms lost or gained coverage, the usual cost of training without control."""
    k, start = results.k, results.start
    key = f"pass@{k}/end"
    arms = [arm for arm in results.arms if arm.spread(key).n]
    if k == 1 or not arms or not start.spread(key).n:
        return ""
    gaps = [(arm, difference(arm, start, key)) for arm in arms]
    changes = []
    for word, sign in (("lower", -1.0), ("higher", 1.0)):
        names = [named(arm) for arm, gap in gaps if gap.clear and gap.mean * sign > 0.0]
        which = "no arm" if not names else "every arm" if len(names) == len(arms) else listed(names)
        changes.append(f"clearly {word} in {which}")
    before = f"pass@{k} at {temperature_text(results)} was {spread_text(start.spread(key))} before training"
    return f"{before}; after it, it is {'; '.join(changes)}."


def _caution(arms: Sequence[ArmResult]) -> str:
    most = max(len(arm.finished) for arm in arms)
    if most < 2:
        return "One seed an arm: without a spread, no difference between arms can be told from noise."
    return (
        "Paired by seed, against the 95\N{NO-BREAK SPACE}% interval of Student's t. "
        "Of comparisons between arms that do not differ, one in twenty comes out clear, and many are made here. "
        "Best temperatures are chosen on the prompts they are scored by: those numbers are optimistic."
    )
