"""The training loop, and what it needs from each kind of model.

Here: the trainer, tasks, replicas, checkpoints, logs. Not here: a user's files. Imports evaluation,
graphs and the rooms below.
"""
