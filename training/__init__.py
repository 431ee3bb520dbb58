"""Training: a person's files in, a bundle out.

It imports `service.bundle` and nothing else from `service`. The modules here are the command line,
the configuration and the files that a user names. Everything else is in a room, whose docstring
says what belongs there. `make lint` enforces the order of the rooms.
"""
