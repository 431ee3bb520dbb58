"""ONNX graphs written by hand, and the references that they are checked against.

Here: the builder, cells, products, quantization, the graphs of each kind of model, and the
references for the eight-bit graphs. Not here: the checks. Imports networks and data.
"""
