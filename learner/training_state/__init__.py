"""Saves the optimiser's whole state by parameter name, so that other numbers of ranks and other ZeRO stages load it.

Of every parameter: the float32 master, AdamW's two moments and its step count; and fp16's loss scaler. Every rank writes the part
it holds, a little at a time; at loading, every rank reads the ranges it needs. Safetensors and JSON: nothing in it is executed.

fragments.py     where an optimiser of DeepSpeed's holds a parameter's master and moments
shards.py        the files: written by the ranks, read by any number of others
deepspeed_config.py  what DeepSpeed is told, with the sizes of its buffers
host_copy.py     what is in host memory while generators have the GPU
heap.py          what passes leave free in the heap of a CPU, given back
other_weights.py other weights for a while, which engines are compared on
one_read.py      the weights that rank 0 has read, given to all ranks
model_folder.py  the weights, as a folder that from_pretrained and vLLM load
"""
