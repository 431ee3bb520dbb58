"""The service on several nodes with Ray; the only room that imports it (`pip install '.[ray]'`).

Here: what Ray calls. Not here: anything that runs without Ray. Unroll does not manage clusters:
Ray places the processes on nodes, restarts and scales them.
"""
