"""A run's folder, from its data to its bundle, for each kind of model.

Here: preparing, training, measuring and exporting. Not here: command lines. Imports export and what
is below it.
"""
