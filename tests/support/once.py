"""Says what is wrong with the rows and samples of an asynchronous run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def problems(
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    *,
    iterations: int,
    prompts: int,
    responses: int,
    staleness: int,
) -> Iterator[str]:
    """Yields a sentence for each breach of: every prompt that was begun was trained on once, with all its responses, by a policy
    that is not too old.

    samples: of the whole run, with `run.sample_tokens`. prompts: of an iteration, one environment's, none twice.
    """
    numbers = [int(row["iteration"]) for row in rows]
    if numbers != list(range(1, iterations + 1)):
        yield f"the iterations are {numbers}, each of 1 to {iterations} was expected once"
    for row in rows:
        if row["staleness/max"] > staleness:
            yield f"iteration {row['iteration']:g}: staleness/max is {row['staleness/max']:g}"
        if not row["sync/logprob_gap_max"] < 1e-3:
            yield f"iteration {row['iteration']:g}: an engine is {row['sync/logprob_gap_max']} nats off after its transfer"
        if not row["gap/engine_max"] < 10:  # of older policies: not rounding, and not another model either
            yield f"iteration {row['iteration']:g}: gap/engine_max is {row['gap/engine_max']}"
    times = Counter(s["index"] for s in samples)
    expected = dict.fromkeys(range(iterations * prompts), responses)
    if wrong := {k: times[k] for k in times.keys() | expected.keys() if times[k] != expected.get(k, 0)}:
        shown = ", ".join(f"{k}: {n}" for k, n in sorted(wrong.items())[:8])
        yield f"{len(wrong)} prompts were not trained on once with {responses} responses (prompt: responses): {shown}"
    for s in samples:
        if (age := s["iteration"] - 1 - s["versions"][0]) > staleness:
            yield f"iteration {s['iteration']}: a response of prompt {s['index']} is {age} versions old"
