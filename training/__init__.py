"""Training: a person's files in, a bundle out.

Of `service` it imports `service.bundle` alone. The modules here are the command line, the
configuration and the files that a user names; everything else is in a room, whose docstring says
what belongs there. `make lint` holds the order of the rooms.
"""
