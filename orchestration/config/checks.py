"""Checks rules between the sections of a RunConfig. Each check raises ValueError, one sentence with the numbers in it.

A rule about one section alone is a validator of that section.
"""

from __future__ import annotations

from actors.settings import DTYPE_OF
from learner.diversity.settings import FEWEST
from learner.entropy.build import METHODS
from learner.settings import BATCH_BASELINES, BODY
from orchestration.config.composition import RunSections


def something_to_train(config: RunSections) -> None:
    """Requires environments or stages, and an end of the run."""
    if config.stages and config.environments:
        raise ValueError(
            f"environments and stages are both given: each of the {len(config.stages)} stages names its own environments, "
            "leave those of the top level out"
        )
    if not config.stages and not config.environments:
        raise ValueError("environments is missing: give what the run trains on, or stages of it")
    if not config.stages and config.run.iterations is None:
        raise ValueError("run.iterations is missing: give it in the recipe or as run.iterations=VALUE")


def batch_divides(config: RunSections) -> None:
    """Requires that a batch can be divided evenly into updates, that every rank has a part of each, and that there are groups."""
    responses = config.batch.prompts * config.batch.responses
    if responses % config.learner.updates:
        raise ValueError(
            f"a batch of {config.batch.prompts} prompts x {config.batch.responses} responses = {responses} trajectories cannot be "
            f"divided into learner.updates = {config.learner.updates} equal updates: change one of the three"
        )
    if responses // config.learner.updates < config.learner.ranks:
        raise ValueError(
            f"an update of {responses // config.learner.updates} trajectories cannot be divided over learner.ranks = "
            f"{config.learner.ranks}: make the batch larger, or the updates or ranks fewer"
        )
    if config.batch.responses < 2 and config.objective.advantage not in BATCH_BASELINES:
        raise ValueError(
            f"the group baseline of objective.advantage {config.objective.advantage} compares responses of one prompt: "
            f"batch.responses is {config.batch.responses}, give 2 or more, or use {', '.join(sorted(BATCH_BASELINES))}"
        )


def sampling_fits(config: RunSections) -> None:
    """Requires that a response, and all of a trajectory's, have room."""
    if config.sampling.max_tokens >= config.generators.max_model_len:
        raise ValueError(
            f"sampling.max_tokens ({config.sampling.max_tokens}) leaves no room for a prompt in generators.max_model_len "
            f"({config.generators.max_model_len})"
        )
    if config.sampling.max_total_tokens is not None and config.sampling.max_total_tokens < config.sampling.max_tokens:
        raise ValueError(
            f"sampling.max_total_tokens ({config.sampling.max_total_tokens}) is for all responses of a trajectory and "
            f"sampling.max_tokens ({config.sampling.max_tokens}) for one of them: give the first at least the second"
        )


def sampled_as_trained(config: RunSections) -> None:
    """Refuses a truncated distribution of responses: the trainer's log-probs, entropy and ratios are of the whole one."""
    if config.sampling.top_p < 1:
        raise ValueError(
            f"sampling.top_p is {config.sampling.top_p:g}: responses would come from a part of the vocabulary, while log-probs, "
            "entropy and ratios are of all of it: every ratio of trainer to engine would carry the mass cut off, and control would "
            "shift all advantages; leave sampling.top_p out, and lower sampling.temperature for likelier responses"
        )


def objective_fits(config: RunSections) -> None:
    """Refuses parts of the objective that do not go together, or with the batch."""
    o, dynamic = config.objective, config.batch.dynamic.kind
    steps = config.learner.updates * config.learner.epochs
    if o.advantage == "loop" and o.surrogate != "ppo":
        raise ValueError(
            "objective.advantage loop is a leave-one-out baseline with PPO's clip: use surrogate ppo, or advantage rloo"
        )
    if o.advantage in BATCH_BASELINES and dynamic != "none":
        raise ValueError(
            f"batch.dynamic {dynamic} drops groups of equal rewards, and objective.advantage {o.advantage} "
            "learns from them, since its baseline is the batch's: use reinforce_pp_baseline or another group baseline"
        )
    if o.credit.kind == "turn" and dynamic != "none":
        raise ValueError(
            f"batch.dynamic {dynamic} drops groups of equal verdicts, and objective.credit turn learns from "
            "what their turns earn: use one of the two"
        )
    if o.surrogate == "policy_gradient" and steps > 1:
        raise ValueError(
            f"objective.surrogate policy_gradient is on-policy and learner.updates x epochs = {steps} steps are taken on one "
            "batch: all but the first would be off-policy without a correction; set both to 1, or use surrogate ppo"
        )
    if o.surrogate == "gspo" and o.aggregation != "sequence":
        raise ValueError(
            f"objective.surrogate gspo clips a response as a whole and aggregation is {o.aggregation}, which weighs responses "
            "by their length: use aggregation sequence"
        )


def diversity_acts(config: RunSections) -> None:
    """Refuses to compare the solutions of groups in which they cannot differ in how common they are."""
    if config.diversity is not None and config.batch.responses < FEWEST:
        raise ValueError(
            f"diversity compares how common the solutions of a prompt's correct responses are, and of fewer than {FEWEST} none is "
            f"more common than another: batch.responses is {config.batch.responses}, give {FEWEST} or more, or leave diversity out"
        )


def stale_responses_corrected(config: RunSections) -> None:
    """Refuses to train on responses of older policies without a correction for it."""
    if config.batch.staleness and config.objective.importance.kind == "none":
        raise ValueError(
            f"batch.staleness is {config.batch.staleness} and objective.importance none: responses of older policies would "
            "count as the present one's; leave objective.importance out (truncated, cap 2), or set batch.staleness to 0"
        )


def entropy_method_acts(config: RunSections) -> None:
    """Refuses an entropy method that would do nothing under this objective."""
    kind, surrogate = config.entropy.kind, config.objective.surrogate
    steps = config.learner.updates * config.learner.epochs
    needs = METHODS[kind].surrogates
    if needs is not None and surrogate not in needs:
        raise ValueError(
            f"entropy.method {kind} acts on the clip range, which surrogate {surrogate} "
            f"does not have: use surrogate {', '.join(sorted(needs))}"
        )
    if kind == "kl_cov" and steps == 1:
        raise ValueError(
            "entropy.method kl_cov is a penalty towards the policy at the start of the iteration, which the only step of "
            "learner.updates x epochs = 1 starts from: it would do nothing; take several updates a batch"
        )


def node_resources_fit(config: RunSections) -> None:
    """Raises where actors that share a GPU, and so a node, would be placed on nodes of two kinds."""
    nodes = config.cluster.node_resources
    if config.generators.colocated and nodes.get("generators", nodes.get("learner")) != nodes.get("learner"):
        raise ValueError(
            "generators.colocated is true, so a generator is where its learner rank is: leave generators out of "
            "cluster.node_resources"
        )


def gpus_fit(config: RunSections) -> None:
    """Requires a whole GPU or a share of one for every actor, GPUs or CPUs for all, and memory for who shares one."""
    g, c = config.generators, config.learner
    judges = config.judge_generator
    engines = {"generators": g} if judges is None else {"generators": g, "rewards.judge.generator": judges}
    groups = [("learner", c.gpus, "ranks", c.ranks)]
    groups += [(name, e.gpus, "tensor_parallel", e.tensor_parallel) for name, e in engines.items()]
    for section, gpus, key, members in groups:
        if gpus > 1:
            raise ValueError(
                f"{section}.gpus is {gpus:g}: a learner rank, and each of the tensor_parallel shards of a generator, has one "
                "GPU at most: give 1, 0 or a share"
            )
        if 0 < gpus < 1 and members > 1:
            raise ValueError(
                f"{section}.gpus is {gpus:g}, a share of a GPU, and {section}.{key} is {members}: NCCL refuses a group two of "
                f"whose members have the same GPU; give {section}.gpus 1, or {section}.{key} 1"
            )
    if (g.gpus > 0) != (c.gpus > 0):
        raise ValueError(
            f"generators.gpus is {g.gpus:g} and learner.gpus {c.gpus:g}: both work on GPUs or both on CPUs; give both a "
            "GPU (or a share of one) or both 0"
        )
    if judges is not None and (judges.gpus > 0) != (g.gpus > 0):
        raise ValueError(
            f"rewards.judge.generator.gpus is {judges.gpus:g} and generators.gpus {g.gpus:g}: an installed vLLM works on GPUs "
            "or on CPUs; give both a GPU (or a share of one) or both 0"
        )
    for section, e in engines.items():
        if 0 < e.gpus < 1 and (e.gpu_memory_utilization or 0.0) > e.gpus:
            raise ValueError(
                f"{section}.gpu_memory_utilization is {e.gpu_memory_utilization:g} and a generator has {e.gpus:g} of its GPU: "
                "the others on it would have too little memory; lower it or leave it out"
            )


def offload_has_a_device(config: RunSections) -> None:
    """Requires a GPU to offload from, and one way of it."""
    c = config.learner
    if c.offload_optimiser and not c.gpus:
        raise ValueError(
            "learner.offload_optimiser is true and learner.gpus 0: on a CPU the optimiser's state is in host memory already, leave "
            "it out"
        )
    if c.offload_activations and not c.gpus:
        raise ValueError(
            "learner.offload_activations is true and learner.gpus 0: on a CPU activations are in host memory already, leave it out"
        )
    if c.offload_optimiser and config.generators.colocated:
        raise ValueError(
            "learner.offload_optimiser and generators.colocated are both true: colocated runs move the optimiser's state to the "
            "host and back themselves, leave one of the two out"
        )


def colocated_fits(config: RunSections) -> None:
    """Requires one generator on each of the learner's GPUs, and turns, where they are colocated."""
    g, c = config.generators, config.learner
    if not g.colocated:
        return
    if (g.gpus, c.gpus) != (1, 1):
        raise ValueError(
            f"generators.colocated is true, generators.gpus {g.gpus:g} and learner.gpus {c.gpus:g}: both have the whole GPU in "
            "turn, set both to 1"
        )
    if g.tensor_parallel > 1:
        raise ValueError(
            f"generators.colocated is true and generators.tensor_parallel {g.tensor_parallel}: a colocated generator has one GPU, "
            "that of its learner rank; set tensor_parallel to 1, or give generators GPUs of their own"
        )
    if g.count != c.ranks:
        raise ValueError(
            f"generators.colocated is true, generators.count {g.count} and learner.ranks {c.ranks}: there is one generator on the "
            "GPU of each rank; make the two equal"
        )
    if config.batch.staleness:
        raise ValueError(
            f"generators.colocated is true and batch.staleness {config.batch.staleness}: generators would have to work while the "
            "learner trains, and they sleep then; set batch.staleness to 0, or give generators GPUs of their own"
        )


def rewards_fit(config: RunSections) -> None:
    """Requires that terms of the length, and a judge's answer, go with the limits on tokens."""
    limit, length, overlong = config.sampling.max_tokens, config.rewards.length, config.rewards.overlong
    if overlong is not None and overlong.buffer > limit:
        raise ValueError(
            f"rewards.overlong.buffer ({overlong.buffer}) is the end of what a response may have and sampling.max_tokens is "
            f"{limit}: make the buffer smaller"
        )
    if length is not None and length.free >= (limit if length.full is None else length.full):
        key, value = ("sampling.max_tokens", limit) if length.full is None else ("rewards.length.full", length.full)
        raise ValueError(
            f"rewards.length.free ({length.free}) has to be under {key} ({value}): the term goes from one to the other"
        )
    judge = config.rewards.judge
    if judge is not None and judge.generator is not None and judge.max_tokens >= judge.generator.max_model_len:
        raise ValueError(
            f"rewards.judge.max_tokens ({judge.max_tokens}) leaves no room for a question in "
            f"rewards.judge.generator.max_model_len ({judge.generator.max_model_len})"
        )


def one_precision(config: RunSections) -> None:
    """Refuses another precision of trainer or engine than the switch means, unless mixing is allowed."""
    switch, body = config.precision, BODY[config.precision.mode]
    pairs = (
        ("learner.precision", config.learner.precision, body),
        ("generators.dtype", config.generators.dtype, DTYPE_OF[body]),
    )
    for key, given, meant in pairs:
        if given not in (None, meant) and not switch.allow_mixed:
            raise ValueError(
                f"{key} is {given} where precision {switch.mode} means {meant}: entropy and ratios would be measured in "
                f"two precisions; leave {key} out and set precision, or allow it with precision.allow_mixed=true"
            )


def rounding_fits(config: RunSections) -> None:
    """Refuses engines that round what an fp32 run compares to 1e-3 nats."""
    mode, g = config.precision.mode, config.generators
    for key, value, plain in (
        ("kv_cache_dtype", g.kv_cache_dtype, "auto"),
        ("quantization", g.quantization, None),
    ):
        if value != plain and mode == "fp32" and config.weights.max_logprob_gap is None:
            raise ValueError(
                f"generators.{key} is {value} where precision is fp32: engine and trainer may differ by 1e-3 nats in a token, and "
                "that rounds more; leave it out, take precision bf16, or set weights.max_logprob_gap"
            )


def transfers_end(config: RunSections) -> None:
    """Requires that rank 0 stops waiting for a generator before the other ranks stop waiting for rank 0."""
    if (
        config.learner.zero_stage == 3
        and config.learner.ranks > 1
        and config.weights.timeout_s >= config.learner.timeout_s
    ):
        raise ValueError(
            f"weights.timeout_s is {config.weights.timeout_s:g} and learner.timeout_s {config.learner.timeout_s:g}: with "
            "learner.zero_stage 3 the other ranks wait while rank 0 waits for a generator; make the first smaller"
        )


def adapter_fits(config: RunSections) -> None:
    """Refuses what an adapter does not go together with, in the trainer or in the engine."""
    lora, c, g = config.learner.lora, config.learner, config.generators
    if lora is None:
        return
    if (c.precision or BODY[config.precision.mode]) == "fp16":
        raise ValueError(
            "learner.lora is trained in float32, without a loss scale, and in fp16 the gradients that come to it through the "
            "frozen layers would underflow: set precision to bf16 or fp32"
        )
    if lora.dora and c.zero_stage == 3:
        raise ValueError(
            "learner.lora.dora takes norms of whole weights and learner.zero_stage 3 leaves a rank parts of them: set zero_stage "
            "to 2 or less, or dora to false"
        )
    if lora.dropout and c.gradient_checkpointing:
        raise ValueError(
            f"learner.lora.dropout is {lora.dropout:g} and learner.gradient_checkpointing true: layers that are computed again "
            "would drop something else; set one of the two to its default"
        )
    if g.tensor_parallel > 1:
        raise ValueError(
            f"learner.lora is set and generators.tensor_parallel is {g.tensor_parallel}: an adapter is not divided among the GPUs "
            "of an engine yet; set tensor_parallel to 1, or train all weights"
        )
    if g.quantization is not None:
        raise ValueError(
            f"learner.lora is set and generators.quantization is {g.quantization}, which is done to weights as they arrive, and "
            "those of the base model never travel: leave one of the two out"
        )


def stages_in_order(config: RunSections) -> None:
    """Requires stages with names of their own, a first one that has nothing to keep or reset, and a cap within their length."""
    names = [stage.name for stage in config.stages]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"stages {', '.join(names)}: '{twice[0]}' is there twice, give each a name of its own")
    if config.stages:
        first, most = config.stages[0], sum(stage.iterations for stage in config.stages)
        for key, value in (("controller", first.controller), ("optimiser", first.optimiser)):
            if value != "keep":
                raise ValueError(f"stages.0.{key} is {value}, and nothing comes before the first stage: leave it out")
        if config.run.iterations is not None and config.run.iterations > most:
            raise ValueError(
                f"run.iterations caps the run at {config.run.iterations} and its stages have {most} iterations at most: leave it "
                "out, or give stages more"
            )


CHECKS = (
    something_to_train,
    batch_divides,
    sampling_fits,
    sampled_as_trained,
    objective_fits,
    diversity_acts,
    stale_responses_corrected,
    entropy_method_acts,
    gpus_fit,
    node_resources_fit,
    offload_has_a_device,
    colocated_fits,
    rewards_fit,
    one_precision,
    rounding_fits,
    transfers_end,
    adapter_fits,
    stages_in_order,
)
