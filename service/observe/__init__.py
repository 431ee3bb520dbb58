"""Observability: the request in progress, the state of the process, metrics, logs and traces.

Here: the request context, the life cycle of the process, metrics, logs, traces, byte budgets. Not
here: code that serves a request. Imports settings and errors.
"""
