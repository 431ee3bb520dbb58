"""What holds for every test."""

from hypothesis import settings

# No test is timed: the machine is shared, and a first example may have a table to build.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
