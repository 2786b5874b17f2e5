"""Turns trajectories into weights (torch, no ray).

types.py             batches, token statistics and what an entropy method changes; the one shape legend
settings.py          what can be set about training: sections of a recipe (no torch)
advantages.py        pure: group baselines and turn-level advantages
batching.py          pure: trajectories -> micro-batches; updates, packing, balanced split over ranks
logprobs.py          pure: (hidden, head) -> log-prob and exact entropy
head/                how that is computed: in blocks, or in Triton's kernels
objective.py         pure: the loss and its scaling contract
schedule.py          pure: the learning rate of a step
ledger/              pure: entropy, exact and sampled, predicted and realised, over the global batch
entropy/             one entropy-control method a file, the controllers, and the dict of both
diversity/           rewards by how common a solution is, and what holds the number of solutions
microbatches/        what is computed together, and attention without padding
adapters/            LoRA and DoRA: an adapter is trained and travels, and the model stays
families/            what one model family does and another does not: logits, routers
policy.py            a Hugging Face causal LM as a module that returns token statistics
model_check.py       compares what is trained with what transformers computes, on a few tokens
deepspeed_engine.py  ZeRO 0-3, gather, state: the only file that imports deepspeed
rank_settings.py     what a rank is started with, and what a stage changes (no torch)
passes.py            one iteration's forward passes, none of them twice
learner.py           one rank: train, score, publish, save
checkpoint.py        write-then-rename folders, latest, hashes
optimiser/           AdamW with moments in 32 or in 8 bits, and its state as float32
training_state/      the optimiser's whole state by parameter name, for any number of ranks
tracing/             which stage took when, in any process
weights/             the weight protocol, both ends
chat.py              chat templates to token ids, for any tokenizer
warmstart/           tiny models that are made and taught here
"""
