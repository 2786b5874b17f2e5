"""Computes log-prob, entropy and their gradients from hidden states and head, without the logits of a batch.

logits.py    the head: a weight, a bias, a scale, a soft cap, a temperature
moments.py   the sums of each row from which all statistics follow, block after block of the vocabulary
blocks.py    forward and backward in blocks of rows x vocabulary, with torch alone
fused.py     forward and backward on CUDA
kernels.py   the Triton kernels of fused.py: the only file that imports triton
"""
