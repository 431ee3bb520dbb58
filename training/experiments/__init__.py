"""A run's folder, from its data to its bundle, for each kind of model.

Here: what a kind of model does at each step of a run (one file a kind, one table of them), and the
steps themselves. Not here: command lines. Imports export and what is below it.
"""
