"""How good weights are, and how good one can be without them.

Here: scores and their uncertainty, n-gram floors, search and sampling in PyTorch, reports. Not
here: choosing weights while training. Imports networks and data.
"""
