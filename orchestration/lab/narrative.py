"""What a lab found, in sentences: generated from the results alone, with what the seeds cannot tell apart said plainly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.lab.compare import difference, pareto, stat, within_noise
from orchestration.lab.results import first_temperature, percents, spread
from orchestration.text import percent
from orchestration.thresholds import OFF_TARGET, OFTEN_SATURATED

Arm = Mapping[str, Any]


def story(results: Arm) -> list[tuple[str, str]]:
    """Paragraphs, each with its subject in front: what was run, who holds its target, who leads, what is noise."""
    arms, k, heat = results["arms"], results["k"], first_temperature(results)
    if not any(arm["seeds"] for arm in arms):
        return [("", "No run has finished." if arms else "The lab has no arms.")]
    both, own = f"pass@1 and pass@{k}", "at each arm's best temperature"
    told = [
        ("", [_size(arms)]),
        ("Targets", _targets(arms)),
        (f"Front of {both} at {heat}", _front(results, "pass@1/end", f"pass@{k}/end")),
        (f"Front of {both} {own}", _front(results, "pass@1/best", f"pass@{k}/best")),
    ]
    for n in dict.fromkeys((1, k)):
        told.append((f"Highest pass@{n} at {heat}", [_leader(arms, f"pass@{n}/end")]))
        told.append((f"Highest pass@{n} {own}", [_leader(arms, f"pass@{n}/best")]))
    told.append(("Most distinct correct solutions", [_leader(arms, "distinct_end", ".2f")]))
    told += [("Against the start", [_against_start(results)]), ("How differences are scored", [_caution(arms)])]
    return [(subject, " ".join(filter(None, said))) for subject, said in told if any(said)]


def named(arm: Arm) -> str:
    """The arm's name, in quotes where a list would otherwise be read wrongly."""
    return f"‘{arm['name']}’" if "," in arm["name"] or " and " in arm["name"] else arm["name"]


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _size(arms: Sequence[Arm]) -> str:
    done, lost = sum(len(arm["seeds"]) for arm in arms), sum(len(arm["failed"]) for arm in arms)
    text = f"{_count(len(arms), 'arm')}, {_count(done, 'finished run')}"
    return text + (f"; {_count(lost, 'run')} failed and {'is' if lost == 1 else 'are'} in no figure." if lost else ".")


def _targets(arms: Sequence[Arm]) -> list[str]:
    off = [(arm, stat(arm, "rms_last_two_thirds")) for arm in arms if arm["steered"]]
    off = sorted(((arm, s) for arm, s in off if math.isfinite(s.mean)), key=lambda pair: pair[1].mean)
    held = [f"{named(arm)} ({percents(s)})" for arm, s in off if s.mean <= OFF_TARGET]
    lost = [f"{named(arm)} ({percents(s)}{_spent(arm)})" for arm, s in off if s.mean > OFF_TARGET]
    free = [
        f"{named(arm)} ({percents(stat(arm, 'entropy_change'), sign=True)})"
        for arm in arms
        if arm["seeds"] and not arm["steered"] and stat(arm, "entropy_change").n
    ]
    limit = f"{percent(OFF_TARGET)} rms over the last two thirds of the iterations"
    return [
        f"Held to within {limit}: {listed(held)}." if held else "",
        f"Missed by more{'' if held else ' than ' + limit}: {listed(lost)}." if lost else "",
        f"No controller steers {listed(free)}: in brackets, how far entropy moved." if free else "",
    ]


def _spent(arm: Arm) -> str:
    """Why a target was missed, where the coefficient says it: a controller at its bound cannot do more."""
    share = stat(arm, "saturated").mean
    return f", its coefficient at a bound in {percent(share)} of the iterations" if share > OFTEN_SATURATED else ""


def _front(results: Arm, x: str, y: str) -> list[str]:
    arms = results["arms"]
    if x == y or len([arm for arm in arms if stat(arm, x).n and stat(arm, y).n]) < 2:
        return []
    front = pareto(results, x, y)
    points = [
        f"{named(arm)} ({stat(arm, x).mean:.3f}, {stat(arm, y).mean:.3f})" for arm in arms if arm["name"] in front
    ]
    near = [named(arm) for arm in arms if within_noise(results, arm, x, y)]
    return [
        f"{listed(points)}: no arm is better in both means.",
        f"Off it by no more than the noise of the seeds: {listed(near)}." if near else "",
    ]


def _leader(arms: Sequence[Arm], key: str, style: str = ".3f") -> str:
    """Who has the highest mean, and who cannot be told from it."""
    ranked = sorted((arm for arm in arms if stat(arm, key).n), key=lambda arm: -stat(arm, key).mean)
    if len(ranked) < 2:
        return ""
    first, rest = ranked[0], ranked[1:]
    near = [named(arm) for arm in rest if not difference(first, arm, key).clear]
    text = f"{named(first)} ({spread(stat(first, key), style)})"
    if not near:
        return f"{text}, clear of every other arm."
    others = "any other arm" if len(near) == len(rest) else listed(near)
    return f"{text}, which these seeds cannot tell from {others}."


def _against_start(results: Arm) -> str:
    """Which arms lost coverage: what training without control is feared to do."""
    k, start = results["k"], results["start"]
    key = f"pass@{k}/end"
    arms = [arm for arm in results["arms"] if stat(arm, key).n]
    if k == 1 or not arms or not stat(start, key).n:
        return ""
    gaps = [(arm, difference(arm, start, key)) for arm in arms]
    said = []
    for word, sign in (("lower", -1.0), ("higher", 1.0)):
        names = [named(arm) for arm, gap in gaps if gap.clear and gap.mean * sign > 0.0]
        who = "no arm" if not names else "every arm" if len(names) == len(arms) else listed(names)
        said.append(f"clearly {word} in {who}")
    before = f"pass@{k} at {first_temperature(results)} was {spread(stat(start, key))} before training"
    return f"{before}; after it, it is {'; '.join(said)}."


def _caution(arms: Sequence[Arm]) -> str:
    most = max(len(arm["seeds"]) for arm in arms)
    if most < 2:
        return "One seed an arm: there is no spread, and no difference between arms can be told from noise."
    return (
        "Paired by seed, against the 95\N{NO-BREAK SPACE}% interval of Student's t. "
        "Of comparisons between arms that do not differ, one in twenty comes out clear, and many are made here. "
        "Best temperatures are chosen on the prompts they are scored by: those figures are optimistic."
    )
