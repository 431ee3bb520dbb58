"""Training until the weights are good: the loop, and the two kinds of thing that it trains.

Here: the trainer, tasks, replicas, checkpoints, logs, starting points. Not here: files of a user.
Imports evaluation, graphs and what is below them.
"""
