"""The server processes: one that serves, or several and the one that looks after them.

Here: uvicorn's server with our configuration, how connections are shared out, the supervisor that
starts, replaces and ends the processes, and how all of them make the same change of models. The
application itself is in the rooms below.
"""
