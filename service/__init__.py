"""The server: bundles in, HTTP out. It never imports torch, onnx or `training`.

The modules here are the process; everything else is in a room, whose docstring says what belongs
there and whom it may import. `make lint` holds the order of the rooms.
"""
