"""From trajectories to weights (torch, no ray).

types.py             Batch, TokenStats, Shaping; the one shape legend
settings.py          what can be set about training: sections of a recipe (no torch)
advantages.py        pure: group baselines
batching.py          pure: trajectories -> micro-batches; minibatches, packing, balanced split over ranks
logprobs.py          pure: (hidden, head) -> log-prob and exact entropy, chunked
objective.py         pure: THE loss and its scaling contract
draws.py             pure: a random number that belongs to a token
ledger.py            pure: entropy, exact and sampled, predicted and realised, over the global batch
phantom.py           pure: what clipping would cut of a ratio that should be 1
schedule.py          pure: the learning rate of a step
entropy/             one entropy-control method a file, the controllers, and the dict of both
policy.py            a Hugging Face causal LM as a module that returns token statistics
deepspeed_engine.py  ZeRO 0-3, gather, state: the only file that imports deepspeed
learner.py           one rank: train, score, publish, save
checkpoint.py        write-then-rename folders, latest, integrity
weights.py           the weight protocol, both ends
tokenizer.py         a character-level tokenizer; chat templates to token ids
warmstart.py         a tiny model, made and taught here: its settings and its cache
teacher.py           creates and teaches that model
"""
