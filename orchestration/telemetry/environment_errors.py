"""Notices environments that raise: shows the first error of a run, and ends a run that mostly consists of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.types import Status, Trajectory
from orchestration.telemetry.rollout_metrics import samples
from orchestration.telemetry.sinks.base import Sample


@dataclass(frozen=True, slots=True)
class Noticed:
    """Holds what an iteration's responses say of their environments.

    event    the first error of the run, with its traceback; "" where there is none or it was shown before
    samples  its response, for samples.jsonl
    too_many  the sentence that ends the run, or ""
    """

    event: str = ""
    samples: Sequence[Sample] = ()
    too_many: str = ""


class EnvironmentErrorWatch:
    """Looks at every iteration's responses.

    An environment that raises costs a response its verdict and nothing else, so that one in a thousand ends no run; but where
    more than `max_share` of an environment's responses end so for `iterations` in a row, nothing is learnt from it.
    """

    def __init__(self, max_share: float, iterations: int) -> None:
        self.max_share, self.iterations = max_share, iterations
        self._first = ""  # error of the run, in one line
        self._runs: dict[str, int] = {}  # environment -> iterations in a row with too many errors

    def look(self, iteration: int, trajectories: Sequence[Trajectory]) -> Noticed:
        """Takes an iteration's responses, those that were trained on and the others."""
        # A term of the reward that has no value does not count: the verdict of the environment is there, among the terms.
        failed = [t for t in trajectories if t.verdict.status is Status.ERROR and not t.verdict.terms]
        event, too_many = "", ""
        kept: Sequence[Sample] = ()
        if failed and not self._first:
            first = failed[0]
            self._first = first.verdict.detail.partition("\n")[0] or "it gave no reason"
            kept = samples(iteration, [first], 1)
            event = (
                f"scoring failed for {len(failed)} of {len(trajectories)} responses of iteration {iteration}; the first, of "
                f"environment '{first.prompt.env}': {first.verdict.detail}"
            )
        for env in dict.fromkeys(t.prompt.env for t in trajectories):
            share = sum(t.prompt.env == env for t in failed) / sum(t.prompt.env == env for t in trajectories)
            self._runs[env] = self._runs.get(env, 0) + 1 if share > self.max_share else 0
            if self._runs[env] >= self.iterations and not too_many:
                too_many = (
                    f"scoring failed for {share:.0%} of the responses of environment '{env}', and for more than "
                    f"verifiers.max_error_share = {self.max_share:g} of them in {self.iterations} iterations in a row: correct the "
                    f"environment and go on with --resume; the first error of the run: {self._first}"
                )
        return Noticed(event, kept, too_many)
