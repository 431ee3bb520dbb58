"""ONNX written by hand: the graphs that a bundle holds, and their references.

Here: the builder, cells, products, the graphs of each kind of model, quantization. Not here:
checking graphs against PyTorch. Imports networks and data.
"""
