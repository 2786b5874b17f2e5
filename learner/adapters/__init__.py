"""Trains a low-rank adapter in the place of the model's own weights: LoRA and DoRA, as peft computes them.

names.py   how an adapter's tensors are called on the way to engines and in peft's files (no torch)
adapter.py puts an adapter into a model, switches it off, gives out its tensors, writes and reads them
merge.py   the base model with the adapter added, as a model of its own
"""
