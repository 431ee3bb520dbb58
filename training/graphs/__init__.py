"""ONNX written by hand: the graphs that a bundle holds, and their references.

Here: the builder, cells, products, quantization, the graphs of each kind of model and the
references that eight-bit graphs are checked against. Not here: the checks. Imports networks and
data.
"""
