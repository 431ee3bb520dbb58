"""The commands of `python -m service` besides serving.

Here: `generate`, `score`, `translate`, `models` and `keys`, on a bundle or against a server. Not
here: the server process. Imports endpoints (their wire models) and what is below them.
"""
