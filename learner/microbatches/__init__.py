"""Decides what is computed together, and computes it without padding (torch, pure but for attention and layer inputs).

partition.py         pure: rows sorted by length -> micro-batches of the least cost
units.py             pure: responses that stand in a row with their prompt once, dealt to ranks
draws.py             pure: a random number that belongs to a token
packed_attention.py  attention of trajectories packed into a row, each by itself, without a mask
layer_inputs.py      inputs of checkpointed layers, on the host between forward and backward pass
shared_prefix.py     attention of responses whose prompt stands once in a packed row
"""
