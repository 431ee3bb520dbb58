"""onnxruntime, imported once it has been told to keep to itself, and with one arena of memory.

Its builds for Linux tell their makers what they run and write an id of the machine into the home
folder (since 1.29), unless this is set before the import. What is served here is nobody else's.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

# One arena for the intermediate results of every graph: it grows to what runs at the same time. A
# session's own grows to the largest that its graph ever ran, and keeps it: of the seven models that
# ship, at full batches, 250 MB, where one arena takes 100, at the same speed.
onnxruntime.create_and_register_allocator(
    onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    ),
    onnxruntime.OrtArenaCfg({}),
)

__all__ = ["onnxruntime"]
