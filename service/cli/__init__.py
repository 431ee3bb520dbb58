"""The commands of `python -m service` other than serving.

Here: `generate`, `score`, `translate`, `infill`, `classify`, `tag`, `models` and `keys`, on a
bundle or against a running server. Not here: the server process. Imports endpoints (for their wire
models) and the rooms below.
"""
