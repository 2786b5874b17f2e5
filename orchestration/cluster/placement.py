"""Computes the resources that a run asks for, and checks them against what the cluster has. Pure: Ray is asked elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestration.config.run_config import RunConfig
from orchestration.errors import PlacementError

NODE_SHARE = 0.001  # of a node's custom resource, which tells where an actor may be and is never used up


@dataclass(frozen=True, slots=True)
class Slot:
    """Describes one actor and the resources it holds."""

    role: str  # a kind and a number: "generator 0"
    cpus: float
    gpus: float
    beside: str | None = None  # the role in whose bundle it is, and so on whose GPU
    node: str | None = None  # the custom resource that its node has

    @property
    def bundle(self) -> dict[str, float]:
        asked = {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v}
        return asked if self.node is None else {**asked, self.node: NODE_SHARE}


def generator_slot(config: RunConfig, number: int) -> Slot:
    """Returns the slot of a generator; a tensor-parallel one holds all its GPUs, a colocated one has half of a learner rank's."""
    g = config.generators
    if g.colocated:  # Ray counts halves, so that both are on the one GPU of a bundle
        return Slot(f"generator {number}", g.cpus, g.gpus / 2, beside=f"learner rank {number}")
    return Slot(
        f"generator {number}", g.cpus, g.gpus * g.tensor_parallel, node=config.cluster.node_resources.get("generators")
    )


def plan(config: RunConfig) -> list[Slot]:
    """Returns a slot for every actor that a run needs from its start on: of generators `generators.min`, if that is set."""
    model, judge, c = config.rewards.model, config.judge_generator, config.learner
    gpus, nodes = c.gpus / 2 if config.generators.colocated else c.gpus, config.cluster.node_resources
    return [
        *(Slot(f"learner rank {r}", c.cpus, gpus, node=nodes.get("learner")) for r in range(c.ranks)),
        *(generator_slot(config, i) for i in range(config.generators.least)),
        *(
            Slot(f"verifier {i}", config.verifiers.cpus, 0.0, node=nodes.get("verifiers"))
            for i in range(config.verifiers.count)
        ),
        *((Slot(f"reward-model {i}", model.cpus, model.gpus) for i in range(model.count)) if model else ()),
        *(
            (Slot(f"judge {i}", judge.cpus, judge.gpus * judge.tensor_parallel) for i in range(judge.count))
            if judge
            else ()
        ),
    ]


def learner_threads(config: RunConfig) -> int | None:
    """Returns the threads of a learner's rank on CPUs; None on a GPU.

    Without `learner.threads` they are the CPUs that the run reserves for learner and generators, which wait while it trains,
    divided among the ranks: as many as are idle anyway, and none of another run's. With batch.staleness generators do not wait, and
    a rank has its own.
    """
    if config.learner.gpus:
        return None
    if config.learner.threads:
        return config.learner.threads
    idle = 0 if config.batch.staleness else config.generators.cpus * config.generators.least
    reserved = config.learner.cpus * config.learner.ranks + idle
    return max(1, int(reserved / config.learner.ranks + 1e-9))


def bundles(slots: Sequence[Slot]) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Returns what is reserved together, and in which of these bundles each role is: who is beside another, which comes before it,
    is in its bundle. Of slots of several runs, one run's after the other's, the roles are the last one's."""
    found: list[dict[str, float]] = []
    at: dict[str, int] = {}
    for slot in slots:
        if slot.beside is None:
            at[slot.role] = len(found)
            found.append(dict(slot.bundle))
        else:
            at[slot.role] = at[slot.beside]
            shared = found[at[slot.role]]
            shared |= {kind: round(shared.get(kind, 0.0) + value, 6) for kind, value in slot.bundle.items()}
    return found, at


def totals(slots: Sequence[Slot]) -> dict[str, float]:
    return {"CPU": round(sum(s.cpus for s in slots), 6), "GPU": round(sum(s.gpus for s in slots), 6)}


def check(slots: Sequence[Slot], cluster: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises PlacementError when the cluster as a whole, or its largest node, cannot hold what is asked."""
    asked, (reserved, at) = totals(slots), bundles(slots)
    for slot in slots:
        if slot.node is not None and not cluster.get(slot.node):
            raise PlacementError(
                f"{slot.role} has to be on a node with the resource {slot.node} (cluster.node_resources) and the cluster has none: "
                f"start such nodes with `ray start --resources='{{\"{slot.node}\": 1}}'`"
            )
    for kind in ("CPU", "GPU"):
        there = cluster.get(kind, 0.0)
        if asked[kind] > there + 1e-9:
            parts = ", ".join(
                f"{count} {role} {value:g}" for role, (count, value) in _by_role(slots, kind).items() if value
            )
            raise PlacementError(
                f"the run asks for {asked[kind]:g} {kind} ({parts}) and the cluster has {there:g}: lower generators.count, "
                f"learner.ranks or their {kind.lower()}s, or give the cluster more"
            )
        sizes = [bundle.get(kind, 0.0) for bundle in reserved]
        largest = max(sizes, default=0.0)
        biggest = max((n.get(kind, 0.0) for n in nodes), default=0.0)
        if largest > biggest + 1e-9:
            whole = max(range(len(sizes)), key=lambda i: (sizes[i], i))  # the last of the largest: its roles are known
            roles = " and ".join(role for role, i in at.items() if i == whole)
            raise PlacementError(
                f"{roles} asks for {largest:g} {kind} on one node and the largest node has {biggest:g}"
            )


def _by_role(slots: Sequence[Slot], kind: str) -> dict[str, tuple[int, float]]:
    """Maps a role to (how many, what they ask for together)."""
    sums: dict[str, tuple[int, float]] = {}
    for slot in slots:
        role = slot.role.split()[0] + ("" if slot.role.startswith("learner") else "s")
        count, value = sums.get(role, (0, 0.0))
        sums[role] = count + 1, round(value + slot.bundle.get(kind, 0.0), 6)
    return sums
