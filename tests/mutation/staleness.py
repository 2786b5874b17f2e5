"""Breaks asynchronous training one rule at a time: the gate, and means over states of older policies (tests/mutation/runner.py)."""

from __future__ import annotations

from mutation.entries import Mutation, entries

STATES = "tests/learner/ledger/test_states.py"
GATE = "tests/orchestration/sampling/test_asynchronous.py"
_GATE = "orchestration/sampling/asynchronous.py"


def _gate(*changes: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(f"gate: {what}", _GATE, text, new, GATE) for what, text, new in changes]


STALENESS_MUTATIONS: tuple[Mutation, ...] = (
    *entries(
        "ledger/states",
        STATES,
        ("a state's own token weighs", "before = step.cumsum(0) - step", "before = step.cumsum(0)"),
        ("trajectories before weigh", "return (before - start).clamp(", "return before.clamp("),
        ("no bound", ".clamp(max=math.log(CAP)).exp()", ".exp()"),
        ("a bound on the logarithm", ".clamp(max=math.log(CAP)).exp()", ".clamp(max=CAP).exp()"),
        ("bounded from below", ".clamp(max=math.log(CAP)).exp()", ".clamp(-math.log(CAP), math.log(CAP)).exp()"),
        ("sums in float32", "step = log_ratio.detach().double()", "step = log_ratio.detach()"),
        ("a gradient", "step = log_ratio.detach().double()", "step = log_ratio.double()"),
        ("power 1 alone", "w = states.weight**power", "w = states.weight"),
        ("weights not squared", "w * w)", "w)"),
        ("ages not weighted", "w * states.age)", "states.age)"),
        ("values not weighted", "w * value.double())", "value.double())"),
        ("ages beyond the bound are lost", "age = states.age.clamp(max=states.staleness)", "age = states.age"),
        ("the oldest are lost", "for k in range(states.staleness + 1):", "for k in range(states.staleness):"),
        ("entropy of all ages", "entropy * (age == k))", "entropy * (age <= k))"),
        ("the smallest power", "next((p for p in POWERS if", "next((p for p in reversed(POWERS) if"),
        ("more than enough tokens", "effective(p) >= MIN_EFFECTIVE", "effective(p) > MIN_EFFECTIVE"),
        ("effective of all weights", 'suffix(power)}"] * tokens)', 'suffix(power)}"])'),
        ("dead time without weights", 'f"states{suffix(power)}"),\n    }', '"states"),\n    }'),
        ("dead time of power 0", 'tally.mean(f"states_age{suffix(power)}",', 'tally.mean("states_age",'),
        ("entropy over all tokens", "] / tally.sums[key]", "] / tokens"),
    ),
    *_gate(
        ("none works ahead", "batches = min(self._ahead + 1,", "batches = min(1,"),
        ("a batch more ahead", "batches = min(self._ahead + 1,", "batches = min(self._ahead + 2,"),
        ("ahead of the bound", "min(config.batch.ahead, self._staleness)", "config.batch.ahead"),
        ("as far ahead as the bound", "min(config.batch.ahead, self._staleness)", "self._staleness"),
        ("begun beyond the stage", "min(self._ahead + 1, self._curriculum.left)", "self._ahead + 1"),
        ("what waits is not counted", "live = len(self._pending.running) + len(kept)", "live = len(self._pending.running)"),
        ("refill without a bound", "room = min(room, most - live - len(dropped))", "pass"),
        ("a round of refill more", "dynamic.max_rounds - 1) * self", "dynamic.max_rounds) * self"),
        ("what is due exactly then is in time", "sum(d <= iteration + later", "sum(d < iteration + later"),
        ("only the batch itself is in time", "for later in range(self._staleness + 1):", "for later in range(1):"),
        ("the batch itself may be late", "for later in range(self._staleness + 1):", "for later in range(1, self._staleness + 1):"),
        ("the last iteration is full", "> later * self._prompts:", ">= max(1, later * self._prompts):"),
        ("a batch more may pass", "> later * self._prompts:", "> (later + 1) * self._prompts:"),
        ("a batch is never larger", "return max(self._prompts, sum(due <= iteration for due in waiting))", "return self._prompts"),
        ("due one iteration later", "return begun.iteration + self._staleness", "return begun.iteration + self._staleness + 1"),
        ("due one iteration earlier", "return begun.iteration + self._staleness", "return begun.iteration + self._staleness - 1"),
        ("by ordinals alone", "key=lambda n: (waiting[n][0].iteration, n))", "key=lambda n: n)"),
        ("a batch as it ended", "sorted([*kept[:size], *dropped])", "[*kept[:size], *dropped]"),
        ("all that waits", "sorted([*kept[:size], *dropped])", "sorted([*kept, *dropped])"),
        ("dropped groups wait on", "sorted([*kept[:size], *dropped])", "sorted(kept[:size])"),
        ("stamps begin with 0", 'f"iteration {ordinal // self._prompts + 1}"', 'f"iteration {ordinal // self._prompts}"'),
    ),
)  # fmt: skip
