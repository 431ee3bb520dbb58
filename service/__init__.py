"""The server: bundles in, HTTP out. It never imports torch, onnx or `training`.

The modules here run the process. Everything else is in a room, whose docstring says what belongs
there and what it may import. `make lint` enforces the order of the rooms.
"""
