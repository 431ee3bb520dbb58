"""Tasks: text in, text out, without HTTP.

Here: an engine for each kind of model and the steps that a request takes through it, the protocol
of engines (`engine`), the table of kinds, text streams, state handles, limits, the registry of
models and its watchdog. Not here: wire formats. Imports scheduling and the rooms below.
"""
