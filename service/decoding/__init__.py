"""From numbers to tokens: what a step of the model becomes.

Here: sampling, patterns and constraints, rows, the batches that read, write and search, prefixes.
Not here: who runs when. Imports the runtime and what is below it.
"""
