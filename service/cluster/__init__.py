"""The service on several nodes, by Ray: the only room that imports it (`pip install '.[ray]'`).

Here is what Ray calls, and nothing that runs on one machine. Unroll has no cluster of its own:
whatever places processes on nodes, restarts and scales them is Ray's.
"""
