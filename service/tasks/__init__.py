"""Text in, text out, without HTTP: what each kind of model can be asked.

Here: an engine for each kind, text streams, state handles, shared reads, the registry of models and
its watchdog. Not here: wire formats. Imports scheduling and what is below it.
"""
