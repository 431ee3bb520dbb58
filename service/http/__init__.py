"""What every request and answer passes, whatever its path.

Here: the protocol with its bounds, the gateway, keys, bodies, problems, events, what several
endpoints share, the OpenAPI document. Not here: paths. Imports tasks and what is below them.
"""
