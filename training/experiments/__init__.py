"""Experiments: a run's folder, from its data to its bundle, for each kind of model.

Here: what each kind of model does at each step of a run (one file for each kind, and one table of
them), and the steps themselves. Not here: command lines. Imports export and the rooms below.
"""
