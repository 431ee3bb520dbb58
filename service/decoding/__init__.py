"""Decoding: from a model's log-probabilities to tokens.

Here: sampling, patterns and constraints, rows, the batches that read, write and search, the prefix
cache, the likeliest labels of a text's places. Not here: scheduling. Imports the runtime and the
rooms below.
"""
