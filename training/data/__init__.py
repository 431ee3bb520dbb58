"""Data: from a user's files to batches.

Here: documents and their splits, the corpus of ids and windows over it; pairs, labelled texts, and
their batches.
Not here: models. Imports the configuration.
"""
