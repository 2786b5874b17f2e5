"""Names the rows about asynchronous runs: generators work ahead of the training, and lose an actor or their driver.

Which policy samples a response depends on the moment, so that numbers are not those of an undisturbed run: every prompt has to be
trained on once, with all its responses, by a policy within the bound.
"""

from __future__ import annotations

from support.once import problems

from chaos import checks, faults
from chaos.harness import ITERATIONS, Failed, Lab, Run
from chaos.resuming import RESUME_S
from chaos.scenarios import END_S, ENDLESS, LOST_S, NOTICED_S, REPLACED_S, goes_on
from orchestration.telemetry.sinks.jsonl import read_samples

PROMPTS, RESPONSES, STALENESS = 8, 8, 1  # of the harness's recipe, and of these rows
# One response at a time: sampling takes about as long as an iteration, so that groups are under way whenever a fault comes.
AHEAD = (f"batch.staleness={STALENESS}", "run.sample_tokens=true", "generators.max_num_seqs=1")


def each_once(run: Run, iterations: int) -> str:
    """Checks the rows and samples of a run that has ended; returns that in words."""
    wrong = list(
        problems(
            run.rows(),
            read_samples(run.run),
            iterations=iterations,
            prompts=PROMPTS,
            responses=RESPONSES,
            staleness=STALENESS,
        )
    )
    if wrong:
        raise Failed(f"{len(wrong)} breaches, the first: {wrong[0]}")
    checks.all_judged(run)
    oldest = max(row["staleness/max"] for row in run.rows())
    return f"{iterations} iterations, every prompt once, at most {oldest:g} version{'s'[: oldest != 1]} old"


def finished(run: Run, limit_s: float = END_S) -> str:
    checks.ending(run, (0,), limit_s)
    checks.whole_checkpoint(run, ITERATIONS)
    return f"exit 0, {each_once(run, ITERATIONS)}"


def sole_generator_killed(lab: Lab) -> str:
    run = lab.start("generators.count=1", *AHEAD)
    run.until_iteration(3)  # the groups of a whole batch have just begun
    faults.kill(run.named("generator 0"))
    seconds = run.until_replaced("generator", 1, REPLACED_S)
    return f"replaced after {seconds:.0f} s, {finished(run)}"


def generator_frozen(lab: Lab) -> str:
    run = lab.start(*ENDLESS, *AHEAD)
    run.until_iteration(3)
    faults.freeze(run.named("generator 0"))
    seconds = run.until_replaced("generator", 1, NOTICED_S)
    run.until_iteration(run.iteration() + 3, END_S)
    run.process.terminate()
    checks.ending(run, (143,), LOST_S)
    done = len(run.rows())
    checks.whole_checkpoint(run, done)
    return f"replaced {seconds:.0f} s after it froze, stopped, {each_once(run, done)}"


def learner_killed(lab: Lab) -> str:
    run = lab.start(*AHEAD)
    run.until_iteration(3)
    (rank,) = faults.hold(run, ["learner rank 1"], ("train",))
    faults.kill(rank)
    return f"{goes_on(run, REPLACED_S)}, {finished(run)}"


def driver_killed(lab: Lab) -> str:
    run = lab.start(*AHEAD)
    run.until_iteration(3)
    faults.hold(run, run.names("learner rank"), ("train",))
    at = run.iteration()
    faults.kill_tree(run)
    again = lab.start(*AHEAD, folder=run.folder, resume=True)
    return f"killed after iteration {at}, resumed, {finished(again, RESUME_S)}"


_EACH_ONCE = "every prompt is trained on once, within the bound"
ASYNCHRONOUS = (
    (
        "async-generator-killed", "the only generator is killed", "batch.staleness=1, as an iteration ends",
        f"replaced, {_EACH_ONCE}", sole_generator_killed,
    ),
    (
        "async-generator-frozen", "one of two generators is frozen", "batch.staleness=1, at any time, at the defaults",
        f"replaced within {NOTICED_S:g} s, {_EACH_ONCE}", generator_frozen,
    ),
    (
        "async-learner-killed", "one of two learner ranks is killed", "batch.staleness=1, in the update",
        f"the group is rebuilt from the last checkpoint, {_EACH_ONCE}", learner_killed,
    ),
    (
        "async-driver-killed", "the driver is killed", "batch.staleness=1, in the update",
        f"resumed from the last checkpoint, {_EACH_ONCE}", driver_killed,
    ),
)  # fmt: skip
