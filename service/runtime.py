"""onnxruntime, imported once it has been told to keep to itself.

Its builds for Linux tell their makers what they run and write an id of the machine into the home
folder (since 1.29), unless this is set before the import. What is served here is nobody else's.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
