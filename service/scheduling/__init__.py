"""Who runs when: the queue, admission, workers, and one runner for each kind of model.

Here too: the feed from a worker's thread to the event loop. Not here: text. Imports decoding and
what is below it.
"""
