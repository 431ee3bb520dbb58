"""From a run to a bundle, or to a clear refusal.

Here: parity of graphs with PyTorch, golden vectors, the gate for int8, manifests. Not here: the
graphs themselves. Imports the loop and what is below it.
"""
