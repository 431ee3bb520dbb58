"""From a run to a bundle, or to a clear refusal.

Here: parity of graphs with PyTorch, golden vectors, the gate for int8, manifests; what the kinds of
model have in common stands once. Not here: the graphs themselves. Imports the loop and what is
below it.
"""
