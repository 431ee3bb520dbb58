"""Text in, text out, without HTTP: what each kind of model can be asked.

Here: an engine for each kind and the steps that a request takes through it, what every engine is
(`engine`), the table of kinds, state handles, limits, the registry of models and its watchdog. Not
here: wire formats. Imports scheduling and what is below it.
"""
