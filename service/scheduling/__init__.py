"""Scheduling: which work runs when.

Here: the fair queue, admission control, the scheduler, workers, one runner for each kind of model,
and the feed from a worker's thread to the event loop. Not here: text. Imports decoding and the
rooms below.
"""
