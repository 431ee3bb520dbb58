"""Export: from a run to a bundle, or to a clear error.

Here: parity of the graphs with PyTorch, golden vectors, the gate for int8, manifests. What the
kinds of model have in common is written once. Not here: the graphs themselves. Imports the loop and
the rooms below.
"""
