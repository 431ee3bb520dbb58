"""What weights are worth, and what would be worth as much without them.

Here: scores and their uncertainty, n-gram floors, search and sampling in PyTorch, reports. Not
here: choosing weights while training. Imports networks and data.
"""
