"""Request, process, numbers: what is known about the work, for those who look at it.

Here: the context of a request, the life cycle of the process, metrics, logs, traces, and budgets of
bytes. Not here: what serves a request. Imports settings and errors.
"""
