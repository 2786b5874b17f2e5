"""Holds a sentence for every configuration key whose declaration does not describe it for a user.

A `description` in pydantic's `Field` wins over the sentence here, and this wins over a comment beside the declaration. `*`
stands for every kind of a controller. A test refuses keys that the configuration does not have.
"""

from __future__ import annotations

MEANINGS = {
    # sections within sections
    "batch.dynamic": "Dynamic sampling: what is done with groups without a signal.",
    "batch.adaptive": "Adaptive difficulty; `null`: every prompt is new, or the next of a finite split.",
    "objective.importance": "Correction from the engine's to the trainer's log-probs.",
    "objective.kl": "KL to the reference policy.",
    "objective.credit": "Advantages of whole trajectories or of turns.",
    # run, model, precision
    "run.name": "Name of the run; its folder is `run.dir/run.name`.",
    "run.dir": "Folder of all runs. On a cluster every node has to see it.",
    "run.seed": "Seed of prompts, responses and token draws.",
    "run.iterations": "Iterations of the run. Required without stages; with stages it caps their sum.",
    "run.sample_tokens": "Keep prompt index, token ids, log-probs and policy versions of these responses too.",
    "run.sinks": "Where metrics go.",
    "run.samples_per_iteration": "Responses an iteration that are kept in `samples.jsonl`.",
    "run.trace": "Write when each stage of driver and actors began and ended into `trace.json`, for `ui.perfetto.dev` or "
    "`chrome://tracing`.",
    "model.path": "Folder or Hugging Face id of a causal language model.",
    "model.attention": "Attention implementation of the trainer, as transformers names it.",
    "model.chat_template": "Render prompts with the tokenizer's chat template; `false`: the messages' text is joined as it is.",
    "precision.mode": "Number format of trainer, LM head, engine and weight transfer.",
    "precision.allow_mixed": "Let `learner.precision` or `generators.dtype` differ from the mode.",
    "precision.loss_scale_power": "fp16: the dynamic loss scale starts at 2 to this power.",
    # environments and stages
    "environments[].name": "A built-in environment, or `module:Class`.",
    "environments[].params": (
        "Parameters of the environment's constructor, and `system`, `template` and `shots`, which every environment takes."
    ),
    "environments[].weight": "Share of the prompts this environment gives, relative to the others.",
    "stages[].name": "Name of the stage.",
    "stages[].environments": "Environments of the stage, as in `environments`.",
    "stages[].iterations": "Iterations of the stage; with an advance rule, at most.",
    "stages[].advance": "Rule that ends the stage early.",
    "stages[].overrides": "Dotted keys, as on the command line: `{learner.lr: 1e-4, objective.clip_high: 0.28}`.",
    "stages[].controller": "What the controllers of entropy and diversity keep at the start of the stage.",
    "stages[].optimiser": "Whether the optimiser's state is kept or reset at the start of the stage.",
    "stages[].advance.reward": "Ends the stage when the mean over the last `window` iterations has reached this.",
    "stages[].advance.plateau": (
        "Ends the stage when the mean over the last `window` iterations exceeds that of the `window` before by no more than this."
    ),
    "stages[].advance.window": "Iterations the mean is taken over.",
    # batch and sampling
    "batch.prompts": "Prompts of an iteration.",
    "batch.responses": "Responses to each prompt, which form its group.",
    "batch.dynamic.kind": "What is done with groups whose scored responses do not differ.",
    "batch.dynamic.by": (
        "What they have to differ in, beside their rewards: `reward` nothing else, `verdict` the environment's own reward, "
        "`correct` correctness. `null`: `verdict` where terms with a weight shape the reward of a verdict, else `reward`."
    ),
    "batch.dynamic.max_rounds": (
        "Of `refill`: rounds of generation, the first included; a round asks for as many groups as are missing."
    ),
    "batch.adaptive.revisit": "Probability that a prompt is one that was tried before.",
    "batch.adaptive.pool": "Prompts of an environment that are remembered.",
    "batch.adaptive.floor": "Added to a prompt's weight p(1 - p), which is 1/4 at most.",
    "batch.adaptive.decay": "Factor, each iteration, of what is known about a prompt.",
    "sampling.temperature": "Sampling temperature.",
    "sampling.top_p": (
        "Nucleus sampling: the probability mass that is sampled from. A run takes 1 alone: the trainer's log-probs and entropy are "
        "of the whole distribution."
    ),
    "sampling.max_tokens": "Longest response, in tokens.",
    "sampling.stop": (
        'Texts that end a response, such as `["\\n"]`, beside the model\'s end token. What follows one is not scored; the tokens '
        "that make it up are trained on."
    ),
    "sampling.max_turns": "Most turns of a conversation.",
    "sampling.max_total_tokens": "Most tokens of all responses of a trajectory; `null`: no such limit.",
    "sampling.max_seconds": (
        "Longest time of a trajectory: of its responses, each from its first token's engine step on, and of its verdicts, waiting "
        "for a verifier included; checked between turns. What a request waits for an engine is not counted: "
        "`generators.timeout_s` bounds how long an engine may make no progress. The result depends on the machine, so a resumed "
        "run no longer equals an undisturbed one."
    ),
    # generators and verifiers
    "generators.count": "Number of vLLM engines.",
    "generators.min": "Fewest engines that `isentrope scale` may leave; `null`: 1.",
    "generators.max": "Most engines that `isentrope scale` may ask for; `null`: what the cluster has room for.",
    "generators.tensor_parallel": "GPUs one engine is sharded over.",
    "generators.dtype": "Number format of the engine; `null`: that of `precision`.",
    "generators.max_model_len": "Longest context, prompt and responses together, in tokens.",
    "generators.max_num_seqs": "Sequences an engine runs at the same time.",
    "generators.kv_cache_mb": "Size of the key-value cache; `null`: `gpu_memory_utilization` decides on CUDA.",
    "generators.gpu_memory_utilization": "Share of the GPU's memory; `null`: 0.85 of the share in `gpus`, colocated 0.5.",
    "generators.enforce_eager": "Run without CUDA graphs; `null`: with them on a GPU. `false` needs a GPU.",
    "generators.prefix_caching": (
        "Reuse the key-value cache of shared prefixes: a group computes its prompt once, but for what does not fill a block "
        "of the cache (on a CPU 32 tokens). An update of the weights empties the cache."
    ),
    "generators.max_num_batched_tokens": (
        "Tokens of one engine step, of prompts and responses; `null`: vLLM's choice, on a CPU 16,384. More of them compute long "
        "prompts sooner and delay the responses under way. On a CPU at least `max_model_len`."
    ),
    "generators.kv_cache_dtype": (
        "Number format of the key-value cache; `auto`: the engine's. The 8-bit ones hold twice the tokens. The check at the start "
        "and the probe after each update read the cache as sampling does, so its rounding counts against "
        "`weights.max_logprob_gap`; what is left of it, `objective.importance` corrects. 8 bits were not run yet."
    ),
    "generators.quantization": (
        "Format that an engine rounds the weights to whenever a version arrives; `null`: none. Needs a GPU. Its rounding counts "
        "against `weights.max_logprob_gap`; what is left of it, `objective.importance` corrects. Not run yet."
    ),
    "generators.async_scheduling": (
        "Whether an engine schedules a step while the one before runs; a transfer of weights waits for the step in flight. Needs a "
        "GPU. Off unless asked for: vLLM has it on GPUs alone, where it was not run yet."
    ),
    "generators.cpus": "CPUs that Ray reserves for one engine.",
    "generators.gpus": "1, 0, or a share of a GPU whose rest others use.",
    "generators.colocated": (
        "Put one generator on the GPU of each learner rank (`gpus` 1 for both). Generators sleep while the learner trains, its "
        "optimiser's state is in host memory while they work; [operations](operations.md#one-gpu) has how. Not run on a GPU yet."
    ),
    "generators.timeout_s": "Seconds a generator with work may be without an engine step before it is replaced.",
    "verifiers.count": "Number of verifier processes.",
    "verifiers.cpus": "CPUs that Ray reserves for one verifier.",
    "verifiers.error_iterations": "Iterations in a row with too many errors after which the run ends, with a checkpoint.",
    "verifiers.max_error_share": "Share of an environment's responses whose scoring may fail; above it in `error_iterations` "
    "iterations in a row the run ends. 1: never.",
    "verifiers.timeout_s": "Seconds one verdict may take.",
    # rewards
    "rewards.function": "A function of your own with TRL's or verl's signature, `my.py:score` for short.",
    "rewards.function.path": "Module and function, `my.py:score`; the module is looked for beside the recipe.",
    "rewards.function.weight": "Weight of the term.",
    "rewards.function.reference": "Key of a prompt's task that verl's `ground_truth` is.",
    "rewards.function.chat": "Give TRL's `prompts` and `completions` as lists of messages, not as text.",
    "rewards.verdict": "Weight of the environment's verdict.",
    "rewards.length": "Term by the length of the responses.",
    "rewards.format": "Term by the form of the responses.",
    "rewards.overlong": "Penalty for responses near the length limit.",
    "rewards.model": "Term by a reward model.",
    "rewards.judge": "Term by a language model as judge.",
    "rewards.length.shape": "Curve between the two values.",
    "rewards.length.free": "Tokens up to which the first value holds.",
    "rewards.length.full": "Tokens from which the second value holds; `null`: `sampling.max_tokens`.",
    "rewards.length.correct": "First and second value for responses that the environment calls correct.",
    "rewards.length.wrong": "First and second value for the other responses.",
    "rewards.format.pattern": "Regular expression for a whole response; `null`: the environment's own form.",
    "rewards.overlong.buffer": "Tokens before `sampling.max_tokens` over which the penalty grows.",
    "rewards.model.path": "Folder or Hugging Face id of a sequence classifier.",
    "rewards.model.count": "Number of reward-model actors.",
    "rewards.model.cpus": "CPUs of one actor.",
    "rewards.model.gpus": "GPUs of one actor.",
    "rewards.model.precision": "Number format of the reward model.",
    "rewards.model.label": "Of a model with several labels: the one whose probability is the score.",
    "rewards.model.chat_template": (
        "`null`: use the tokenizer's chat template where it has one; `false`: the messages' text is joined as it is."
    ),
    "rewards.model.max_batch_tokens": "Tokens of one forward pass, padding included; 1: each response alone.",
    "rewards.model.gather_ms": "Milliseconds that the first response of a batch waits for others.",
    "rewards.model.scale": "Factor of the raw score.",
    "rewards.model.shift": "Added to the scaled score.",
    "rewards.model.clip": "Lowest and highest score.",
    "rewards.model.timeout_s": "Seconds a reward model with work may take for one batch before it is replaced.",
    "rewards.judge.url": "Base URL of an OpenAI-compatible endpoint, without `/chat/completions`: `http://localhost:8000/v1`.",
    "rewards.judge.model": "Name of the model at the endpoint.",
    "rewards.judge.api_key_env": "NAME of the environment variable that holds the key.",
    "rewards.judge.generator": "Engines of the run's own that hold the judge's model, in place of an endpoint.",
    "rewards.judge.rubric": (
        "The question. `{prompt}`, `{response}` and `{reference}` are replaced, each within delimiters of its own."
    ),
    "rewards.judge.reference": "Key of a prompt's task that `{reference}` stands for.",
    "rewards.judge.score": "Regular expression with one group that finds the score; of several matches the last counts.",
    "rewards.judge.low": "Score that becomes 0.",
    "rewards.judge.high": "Score that becomes 1.",
    "rewards.judge.temperature": "Sampling temperature of the judge.",
    "rewards.judge.max_tokens": "Longest answer of the judge.",
    "rewards.judge.cache_entries": "Answers kept in memory.",
    "rewards.judge.cache_file": "File in which answers are kept over runs.",
    "rewards.judge.timeout_s": "Seconds one request to the endpoint may take.",
    "rewards.judge.retries": "Further tries after a time-out, a lost connection, 408, 429 or 5xx.",
    "rewards.judge.backoff_s": "Seconds before the first further try; doubled each time.",
    "rewards.judge.concurrency": "Requests to the endpoint at the same time.",
    "rewards.judge.generator.path": "Folder or Hugging Face id of the judge's model.",
    "rewards.judge.generator.chat_template": "As `model.chat_template`.",
    # learner
    "learner.ranks": "Number of learner processes.",
    "learner.zero_stage": "DeepSpeed ZeRO stage: what is sharded over the ranks.",
    "learner.precision": "Number format of the trainer; `null`: that of `precision`.",
    "learner.lr": "Learning rate of AdamW.",
    "learner.schedule": "Shape of the learning rate after the warm-up.",
    "learner.warmup_steps": "Optimiser steps of linear warm-up.",
    "learner.lr_floor": "Learning rate at the end of the schedule, as a share of `lr`.",
    "learner.betas": "AdamW's betas.",
    "learner.eps": "AdamW's epsilon.",
    "learner.weight_decay": "AdamW's weight decay.",
    "learner.grad_clip": "Largest gradient norm; 0: no clipping.",
    "learner.updates": "Optimiser steps in one pass over the batch.",
    "learner.mixed": (
        "Every update has responses of every prompt, as far as there are enough; `false`: all responses of a share of the prompts."
    ),
    "learner.epochs": "Passes over the batch of an iteration.",
    "learner.micro_batch_tokens": (
        "Most token slots of one forward and backward pass, padding included: what memory allows. Within it responses of similar "
        "length are put together, so that least is wasted."
    ),
    "learner.ledger_share": "Share of the responses on which the steps' effect on entropy is predicted and measured; 0: neither.",
    "learner.packing": (
        "Put several trajectories into one row without padding. null: where attention needs no mask for it (sdpa, most families) "
        "and the start's check finds that packed trajectories have the log-probs they have alone. The learner warns of what is "
        "slow."
    ),
    "learner.prefix_sharing": (
        "Compute a prompt once for its responses of an update, in packed rows: they share its keys and values, and gradients are "
        "the same but for rounding. null: where packed rows are computed by sdpa (not on CUDA in half precision, where it was not "
        "measured), the start's check finds the same log-probs, and it saves a fifth of an update's tokens or more. `true`: "
        "wherever the check finds the same, else the run is refused."
    ),
    "learner.router_aux_coefficient": (
        "Mixtures of experts: times the load-balancing loss of the routers (transformers' own), over the positions that predict a "
        "sampled token. Off unless asked for, whatever the model's configuration has."
    ),
    "learner.lora": (
        "Train an adapter in the place of the model's weights: [LoRA](lora.md). A number is its rank. `null`: all weights are "
        "trained."
    ),
    "learner.lora.rank": "Rank of the adapter of every layer.",
    "learner.lora.alpha": "What the adapter adds is multiplied by alpha / rank; `null`: twice the rank.",
    "learner.lora.dropout": "Share of the adapter's inputs that are dropped in the passes that gradients are taken of.",
    "learner.lora.targets": (
        "Linear layers that have an adapter: names, or the last part of them, as in `[q_proj, v_proj]`. all-linear: all but the "
        "head."
    ),
    "learner.lora.dora": "Give every output a magnitude of its own (DoRA); not with ZeRO-3.",
    "learner.gradient_checkpointing": "Recompute activations in the backward pass to save memory.",
    "learner.cpus": "CPUs that Ray reserves for one rank.",
    "learner.gpus": "GPUs of one rank: 1, 0, or a share of a GPU.",
    "learner.threads": (
        "Threads of torch in one rank on CPU; `null`: the CPUs that learner and generators reserve, divided among the ranks, "
        "since generators wait while it trains."
    ),
    "learner.timeout_s": "Seconds a rank with work may make no progress (passes, steps, weights sent) before it counts as dead.",
    "learner.restarts": "Times that a learner group which lost a rank is built anew from the last checkpoint; then the run ends.",
    # objective
    "objective.advantage": "Advantage estimator.",
    "objective.surrogate": "Policy-gradient surrogate.",
    "objective.aggregation": "How token losses are averaged.",
    "objective.clip_low": "Clip range below 1; `null`: the surrogate's own, `ppo` 0.2, `gspo` 3e-4, `cispo` 1, so no bound.",
    "objective.clip_high": "Clip range above 1; `null`: the surrogate's own, `ppo` 0.2, `gspo` 4e-4, `cispo` 4.",
    "objective.importance.kind": "How the weights are limited.",
    "objective.importance.cap": "Largest weight.",
    "objective.importance.floor": "Smallest weight, of kind `masked`.",
    "objective.importance.level": "Weights by token or by response.",
    "objective.kl.coefficient": "Weight of the KL; 0: no reference policy is held in memory.",
    "objective.kl.estimator": "Estimator of the KL.",
    "objective.credit.kind": "`turn`: turn-level advantages, from the returns-to-go of each turn.",
    "objective.credit.discount": "Of kind `turn`: factor of what is earned one turn later.",
    # entropy
    "entropy.method": "What the coefficient changes in the loss; by `kind`, below. Left out: `repo`.",
    "entropy.controller": "What moves the coefficient; by `kind`, below. Left out: `isentropic`, or `fixed` beside a method.",
    "entropy.target": "Where entropy should be. Left out together with `method`: 0.7 of the start.",
    "entropy.environments": "Targets of single environments, by the name their metrics go by.",
    "entropy.target.nats": "Target in nats per token.",
    "entropy.target.fraction": (
        "Target as a share of the entropy at the start; `[first, last]`: in a straight line over the run, or over its stage."
    ),
    "entropy.target.start_responses": "Responses that the start is measured on, before the first update.",
    "entropy.target.over": "Responses whose entropy is held: all, or the correct ones.",
    "entropy.target.schedule": (
        "Points `[iteration, factor]`; straight lines between them, constant before the first and after the last."
    ),
    "entropy.target.release_at": "Iteration from which on nothing is controlled.",
    "entropy.method.repo.centred": "Use log π + H; `false`: the raw log-prob.",
    "entropy.method.repo_r.centred": "Use log π + H; `false`: the raw log-prob.",
    "entropy.method.repo_r.part": "Act on all tokens, or on those with a positive advantage.",
    "entropy.method.clip_cov.low": "Smallest covariance of a token that may be dropped.",
    "entropy.method.clip_cov.high": "Largest covariance of a token that may be dropped.",
    "entropy.method.kl_cov.share": "Share of the tokens, those with the highest covariance, that are penalised.",
    "entropy.method.kl_cov.form": "Penalty: `abs`, abs(log ratio), as the authors' code has it; `kl`, the paper's KL(old, new).",
    "entropy.method.kl_cov.clipped": "Keep the surrogate's clip; `false`: the published loss, which has none.",
    "entropy.controller.fixed.value": "The coefficient; `null`: the method's start.",
    "entropy.controller.*.start": "First coefficient; `null`: the method's.",
    "entropy.controller.*.low": "Smallest magnitude of the coefficient; `null`: the method's.",
    "entropy.controller.*.high": "Largest magnitude of the coefficient; `null`: the method's.",
    "entropy.controller.*.dead_band": "Relative error within which the coefficient stays where it is.",
    "entropy.controller.*.max_change": "Largest change of the coefficient in one iteration.",
    "entropy.controller.doubling.allow_negative": "Go on to negative coefficients, which lower entropy.",
    "entropy.controller.proportional.gain": "Proportional gain.",
    "entropy.controller.additive.step": "Change of the coefficient in one iteration.",
    "entropy.controller.additive.gated": "Apply the coefficient only while entropy is at or below the target.",
    "entropy.controller.pi.gain": "Proportional gain on the coefficient's logarithm.",
    "entropy.controller.pi.integral": "Integral gain on the coefficient's logarithm.",
    "entropy.controller.isentropic.gain": "Proportional gain.",
    "entropy.controller.isentropic.integral": "Integral gain.",
    "entropy.controller.isentropic.lookahead": "Iterations that the effect of the last steps is taken to go on for.",
    "entropy.controller.isentropic.memory": "Decay of the running means that the prediction is made from.",
    "entropy.controller.isentropic.high": "Largest magnitude of the coefficient, in the coefficient's own unit.",
    # diversity
    "diversity.controller": (
        "What moves the coefficient, in [0.05, 0.95] unless it says otherwise: one of `entropy.controller`, with its keys, but not "
        "`isentropic` and `band`. Left out: `fixed` at 0.8, or beside a `target` `{kind: additive, step: 0.02}`."
    ),
    "diversity.target": "How many solutions there should be; without `solutions` and `fraction` as many as at the start.",
    "diversity.compare_texts": (
        "Compare texts, without case and white space, where the environment gives a correct response no solution."
    ),
    "diversity.target.solutions": "Target as an effective number of solutions.",
    "diversity.target.fraction": "Target as a share of the effective number at the start.",
    # weights, evaluation, checkpoint, cluster
    "weights.bucket_mb": "Size of one broadcast. With learner.zero_stage 3 also of what rank 0 gathers at a time.",
    "weights.shared_memory": (
        "Whether generators on the host of learner rank 0 read the weights out of its memory, which then holds one more copy of "
        "them, at most half of what is free; else, and where one generator cannot, they travel over the network. A GPU that they "
        "share with rank 0 lends them two buckets, with neither."
    ),
    "weights.timeout_s": "Seconds each wait of a weight transfer may take.",
    "weights.max_logprob_gap": (
        "Largest gap of log-probs between any generator and the trainer, in nats, before the run stops. `null`: 1e-3 for any token "
        "in fp32; for a generator's mean token in bf16 and fp16, where rounding alone moves single tokens further, 0.2 of the "
        "prompts at the start and 0.1 after an update."
    ),
    "weights.probe_responses": (
        "Responses whose log-probs are compared after every update; the start takes as many prompts, 16 at least."
    ),
    "evaluation.every": "Iterations between evaluations; 0: only at the start and the end.",
    "evaluation.start": "Evaluate before the first iteration. Arms of a laboratory share their start, so one of them may do.",
    "evaluation.prompts": "Prompts of each environment; 0: no evaluation at all.",
    "evaluation.samples": "Responses to each prompt.",
    "evaluation.temperatures": "Sampling temperatures; `eval/ENV/pass@K` is of the first.",
    "evaluation.ks": "The k of pass@k.",
    "checkpoint.every": "Iterations between checkpoints; 0: not by their number. There is always one at the end.",
    "checkpoint.minutes": "Minutes after which an iteration is followed by a checkpoint; 0: not by time.",
    "checkpoint.keep": "Checkpoints that are kept.",
    "cluster.address": "Ray cluster to join; `null`: `RAY_ADDRESS` if it is set, else a cluster of this process's own.",
    "cluster.num_cpus": "CPUs of a cluster of this process's own; `null`: those of the machine.",
    "cluster.node_resources": "Kind of actor (`learner`, `generators`, `verifiers`) to the custom resource of the nodes it "
    "is placed on, as `ray start --resources` gives it to them: `{learner: learner_node}`; one that is not named is "
    "placed anywhere.",
    "cluster.start_timeout_s": "Seconds the cluster and its actors may take to start.",
    "cluster.silent_s": "Seconds without a sign of life after which an actor counts as frozen and is replaced.",
}
