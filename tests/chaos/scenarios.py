"""Names every row of faults: what is done to a run, when, and what is expected of it.

A row's function plays it and returns what happened in a few words; it raises Failed where that is not what is expected. The numbers
of every disturbed run are those of the undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from chaos import checks, faults
from chaos.harness import ITERATIONS, START_S, Failed, Lab, Run
from chaos.resuming import RESUMING, both_resume

REPLACED_S = 240.0  # for a member to be noticed and replaced, on two cores that others use as well
NOTICED_S = 90.0  # for a frozen one, at the defaults
END_S = 240.0  # for what is left of a run
LOST_S = 120.0  # for a run to end whose cluster is gone
ENDLESS = ("run.iterations=100000",)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Holds one row: a fault, when it comes, what is expected, and how it is played."""

    name: str
    fault: str
    when: str
    expectation: str
    play: Callable[[Lab], str]


def finished(run: Run, lab: Lab, limit_s: float = END_S) -> str:
    """Checks that the run ended well and its numbers are the undisturbed ones; returns that in words."""
    checks.ending(run, (0,), limit_s)
    count = checks.same_rows(run, lab.reference())
    checks.same_samples(run, lab.reference())
    checks.all_judged(run)
    checks.whole_checkpoint(run, ITERATIONS)
    return f"exit 0, {count} rows equal"


def outlived(run: Run, lab: Lab) -> str:
    """Stops a run without an end once it has done what the undisturbed one did, and checks that its numbers are the same.

    For a fault that others work on through: a run of ITERATIONS would be over before the replacement is there.
    """
    run.until_iteration(ITERATIONS, END_S)
    run.process.terminate()
    checks.ending(run, (143,), LOST_S)
    count = checks.same_rows(run, lab.reference(), ITERATIONS)
    checks.same_samples(run, lab.reference(), ITERATIONS)
    checks.all_judged(run)
    checks.whole_checkpoint(run, ITERATIONS)
    return f"stopped after iteration {run.iteration()}, {count} rows equal"


# --- generators -----------------------------------------------------------------------------------------------------------


def generators_killed(*overrides: str, victims: int, phase: str) -> Callable[[Lab], str]:
    """Returns the row that kills generators while the run waits for them in a phase."""

    def play(lab: Lab) -> str:
        run = lab.start(*overrides, *ENDLESS)
        run.until_iteration(2)
        names = run.names("generator")[:victims]
        frozen = run.names("learner rank")[:1] if phase == "train" else names
        # What one generator has answered is being judged while another stands.
        phases = ("generate", "verify") if phase == "generate" else (phase,)
        held = faults.hold_in_sync(run, names) if phase == "sync" else faults.hold(run, frozen, phases)
        for name in names:
            faults.kill(run.named(name))
        for process in held:
            faults.thaw(process)
        seconds = run.until_replaced("generator", victims, REPLACED_S)
        return f"replaced after {seconds:.0f} s, {outlived(run, lab)}"

    return play


def generator_frozen(lab: Lab) -> str:
    run = lab.start(*ENDLESS)
    run.until_iteration(2)
    faults.freeze(run.named("generator 0"))
    seconds = run.until_replaced("generator", 1, NOTICED_S)
    return f"replaced {seconds:.0f} s after it froze, {outlived(run, lab)}"


def generator_slow(lab: Lab) -> str:
    run = lab.start()
    run.until_iteration(1)
    threads = [faults.slow(run.named(name), 15) for name in run.names("generator")]
    said = finished(run, lab)
    for thread in threads:
        thread.join()
    if "replaces one" in run.events():
        raise Failed("a generator that was only slow was replaced")
    return f"none replaced, {said}"


# --- learner --------------------------------------------------------------------------------------------------------------


def learner_killed(lab: Lab) -> str:
    run = lab.start()
    run.until_iteration(3)
    (rank,) = faults.hold(run, ["learner rank 1"], ("train",))
    faults.kill(rank)
    return f"{goes_on(run, REPLACED_S)}, {finished(run, lab)}"


def learner_frozen(lab: Lab) -> str:
    run = lab.start("learner.timeout_s=40")
    run.until_iteration(3)
    faults.hold(run, ["learner rank 1"], ("train",))
    return f"{goes_on(run, REPLACED_S + 40)}, {finished(run, lab)}"


def goes_on(run: Run, limit_s: float) -> str:
    """Waits for the iteration that is under way, and says how long it took."""
    began, number = time.monotonic(), run.iteration() + 1
    run.until_iteration(number, limit_s)
    return f"iteration {number} after {time.monotonic() - began:.0f} s"


def learner_killed_again_and_again(lab: Lab) -> str:
    run = lab.start("learner.restarts=1", *ENDLESS)
    run.until_iteration(2)
    for more in (1, 0):
        faults.kill(run.named(run.names("learner rank")[0]))
        if more:  # else it would meet a group that starts, which is only another attempt at that
            goes_on(run, REPLACED_S)
    checks.ending(run, (1,), END_S)
    checks.says(run, "learner.restarts")
    return f"exit 1 after {run.iteration()} iterations, checkpoint {checks.whole_checkpoint(run, 2)}"


# --- verifiers ------------------------------------------------------------------------------------------------------------


def verifier_killed(lab: Lab) -> str:
    run = lab.start()
    run.until_iteration(2)
    (verifier,) = faults.hold(run, run.names("verifier"), ("generate", "verify"))
    faults.kill(verifier)
    seconds = run.until_replaced("verifier", 1, REPLACED_S)
    return f"replaced after {seconds:.0f} s, {finished(run, lab)}"


def verifier_frozen(lab: Lab) -> str:
    run = lab.start()
    run.until_iteration(2)
    faults.freeze(run.named("verifier 0"))
    seconds = run.until_replaced("verifier", 1, NOTICED_S)
    return f"replaced {seconds:.0f} s after it froze, {finished(run, lab)}"


BROKEN = """
from envs.builtin.arithmetic import Arithmetic
from envs.tasks import OneReply
class Broken(Arithmetic):
    def open(self, prompt):
        return OneReply(fail, limit=36)
def fail(text):
    raise RuntimeError("the grader fell over")
"""


def environment_raises(lab: Lab) -> str:
    folder = lab.new_folder()
    (folder / "broken.py").write_text(BROKEN)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: arithmetic", "name: broken:Broken"))
    run = lab.start(folder=folder)
    checks.ending(run, (1,), START_S)
    checks.says(run, "the grader fell over")
    return f"exit 1 after {len(run.rows())} iterations"


# --- the cluster ----------------------------------------------------------------------------------------------------------


def ray_killed(program: str, last: bool = False) -> Callable[[Lab], str]:
    """Returns the row that kills a process of Ray's. last: as soon as the last iteration's checkpoint is there."""

    def play(lab: Lab) -> str:
        run = lab.start("checkpoint.every=1") if last else lab.start("run.iterations=100000")
        if last:
            done = run.run / "checkpoints" / f"step_{ITERATIONS:06d}" / "state.json"
            run.until("the last checkpoint", done.exists, START_S)
        else:
            run.until_iteration(3)
        if run.process.poll() is None:
            faults.kill(run.ray(program))
        began = time.monotonic()
        code = checks.ending(run, (0,) if last else (1,), LOST_S)
        at = checks.whole_checkpoint(run, ITERATIONS if last else 2)
        if not last:
            checks.says(run, "resume")
        return f"exit {code} after {time.monotonic() - began:.0f} s, checkpoint {at}"

    return play


def raylet_frozen(lab: Lab) -> str:
    run = lab.start()
    run.until_iteration(2)
    raylet = run.ray("raylet")
    faults.freeze(raylet)
    began = time.monotonic()
    try:
        code = run.wait(END_S)
    finally:
        faults.thaw(raylet)
    checks.one_sentence(code, run.errors())
    return f"exit {code} after {time.monotonic() - began:.0f} s, checkpoint {checks.whole_checkpoint(run, 2)}"


def many_starts(lab: Lab) -> str:
    count, at_once = 12, 3
    lab.model()
    for _ in range(count // at_once):
        runs = [lab.start("run.iterations=1", "generators.count=1") for _ in range(at_once)]
        for run in runs:
            checks.ending(run, (0,), START_S * 2)
    return f"{count} starts, {at_once} at once, all exit 0"


# --- control --------------------------------------------------------------------------------------------------------------


def stopped_from_outside(lab: Lab) -> str:
    run = lab.start("run.iterations=100000")
    run.until_iteration(3)
    code, said = lab.ask("stop", "chaos", folder=run.folder)
    if code:
        raise Failed(f"isentrope stop: exit {code}, {said.strip()[-300:]}")
    checks.ending(run, (143,), 120)
    at = checks.whole_checkpoint(run, run.iteration())
    code, said = lab.ask("status", "chaos", folder=run.folder)
    if code or "chaos: stopped" not in said:
        raise Failed(f"isentrope status says {said.strip()[:200]}")
    return f"exit 143, checkpoint {at}"


def short(lab: Lab) -> str:
    """Plays one run with many faults, for the tests: both generators killed, the verifier killed, both generators frozen, a
    rank killed, the driver killed, and two resumes of the folder."""
    run, said = lab.start(), []
    lab.begin_reference()  # while this one waits
    run.until_iteration(1)
    for process in faults.hold(run, run.names("generator"), ("generate", "verify")):
        faults.kill(process)
    # Both: so that the next fault meets none that is starting.
    said.append(f"generators {run.until_replaced('generator', 2, REPLACED_S):.0f} s")
    run.until_iteration(run.iteration() + 1, REPLACED_S)
    (verifier,) = faults.hold(run, run.names("verifier"), ("generate", "verify"))
    faults.kill(verifier)
    said.append(f"verifier {run.until_replaced('verifier', 1, REPLACED_S):.0f} s")
    run.until_iteration(run.iteration() + 1, REPLACED_S)
    for name in run.names("generator"):  # both: one alone would go on to the end of the run
        faults.freeze(run.named(name))
    said.append(f"frozen {run.until_replaced('generator', 4, REPLACED_S):.0f} s")
    (rank,) = faults.hold(run, run.names("learner rank")[1:], ("train",))
    faults.kill(rank)
    run.until_iteration(run.iteration() + 1, REPLACED_S)
    faults.kill_tree(run)
    checks.all_judged(run)
    return f"replaced after: {', '.join(said)}; two resumes: {both_resume(lab, run)}"


SCENARIOS = (
    Scenario(
        "sole-generator-killed", "the only generator is killed", "while it generates",
        "replaced, the iteration repeated, the same numbers",
        generators_killed("generators.count=1", victims=1, phase="generate"),
    ),
    Scenario(
        "all-generators-killed", "both generators are killed", "while they generate",
        "replaced, the iteration repeated, the same numbers", generators_killed(victims=2, phase="generate"),
    ),
    Scenario(
        "generator-killed", "one of two generators is killed", "while it generates",
        "its work moves, it is replaced, the same numbers", generators_killed(victims=1, phase="generate"),
    ),
    Scenario(
        "generator-killed-in-update", "one of two generators is killed", "in the update",
        "replaced, the same numbers", generators_killed(victims=1, phase="train"),
    ),
    Scenario(
        "generator-killed-in-sync", "one of two generators is killed", "in a transfer",
        "replaced, the transfer made again, the same numbers", generators_killed(victims=1, phase="sync"),
    ),
    Scenario(
        "generator-frozen", "a generator is frozen", "at any time, at the defaults",
        f"replaced within {NOTICED_S:g} s, the same numbers", generator_frozen,
    ),
    Scenario(
        "generators-slow", "both generators run for a fifth of the time", "15 s long",
        "none is replaced, the same numbers", generator_slow,
    ),
    Scenario(
        "learner-killed", "one of two learner ranks is killed", "in the update",
        "the group is rebuilt from the last checkpoint, the same numbers", learner_killed,
    ),
    Scenario(
        "learner-frozen", "one of two learner ranks is frozen", "in the update, learner.timeout_s=40",
        "the group is rebuilt from the last checkpoint, the same numbers", learner_frozen,
    ),
    Scenario(
        "learner-killed-twice", "a learner rank is killed and again", "learner.restarts=1",
        "exit 1, a sentence with learner.restarts, a checkpoint", learner_killed_again_and_again,
    ),
    Scenario(
        "verifier-killed", "the only verifier is killed", "while it judges",
        "replaced, asked again, no verdict is an error, the same numbers", verifier_killed,
    ),
    Scenario(
        "verifier-frozen", "the only verifier is frozen", "at any time, at the defaults",
        f"replaced within {NOTICED_S:g} s, asked again, the same numbers", verifier_frozen,
    ),
    Scenario(
        "environment-raises", "the environment raises on every response", "always",
        "exit 1 within a few iterations, its own error shown", environment_raises,
    ),
    Scenario(
        "raylet-killed", "the raylet is killed", "after iteration 3",
        f"exit 1 within {LOST_S:g} s, a sentence that says resume, a checkpoint", ray_killed("raylet"),
    ),
    Scenario(
        "gcs-killed", "the GCS is killed", "after iteration 3",
        f"exit 1 within {LOST_S:g} s, a sentence that says resume, a checkpoint", ray_killed("gcs_server"),
    ),
    Scenario(
        "raylet-killed-at-the-end", "the raylet is killed", "after the last checkpoint",
        "exit 0: the run is complete", ray_killed("raylet", last=True),
    ),
    Scenario(
        "raylet-frozen", "the raylet is frozen", "after iteration 2", f"the run ends within {END_S:g} s", raylet_frozen,
    ),
    Scenario(
        "many-starts", "twelve runs start, three at a time", "on two cores", "all exit 0", many_starts,
    ),
    Scenario(
        "stop", "isentrope stop", "after iteration 3", "exit 143, a checkpoint, status says stopped", stopped_from_outside,
    ),
    *(Scenario(*row) for row in RESUMING),
)  # fmt: skip
SHORT = Scenario(
    "short",
    "generators, verifier, a rank, the driver killed, generators frozen, two resumes",
    "one run",
    "the same numbers",
    short,
)
