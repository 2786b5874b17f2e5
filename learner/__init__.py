"""Turns trajectories into weights (torch, no ray).

types.py             batches, token statistics and what an entropy method changes; the one shape legend
settings.py          what can be set about training: sections of a recipe (no torch)
advantages.py        pure: group baselines and turn-level advantages
batching.py          pure: trajectories -> micro-batches; updates, packing, balanced split over ranks
logprobs.py          pure: (hidden, head) -> log-prob and exact entropy, chunked
objective.py         pure: the loss and its scaling contract
draws.py             pure: a random number that belongs to a token
schedule.py          pure: the learning rate of a step
ledger/              pure: entropy, exact and sampled, predicted and realised, over the global batch
entropy/             one entropy-control method a file, the controllers, and the dict of both
families/            what one model family does and another does not: logits, routers
policy.py            a Hugging Face causal LM as a module that returns token statistics
model_check.py       compares what is trained with what transformers computes, on a few tokens
deepspeed_engine.py  ZeRO 0-3, gather, state: the only file that imports deepspeed
rank_settings.py     what a rank is started with, and what a stage changes (no torch)
learner.py           one rank: train, score, publish, save
checkpoint.py        write-then-rename folders, latest, integrity
weights/             the weight protocol, both ends
chat.py              chat templates to token ids, for any tokenizer
warmstart/           tiny models that are made and taught here
"""
