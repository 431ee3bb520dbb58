"""The convolutional front end of an encoder: convolutions, pooling and highways.

N sources, S source positions, M memory positions, E embedding, F features of the convolutions.
"""

import numpy as np

from training.graphs.builder import GraphBuilder, array
from training.graphs.nodes import add_inside, affine
from training.networks.encoder import Convolutions


def add_convolutions(graph: GraphBuilder, front: Convolutions, x: str) -> tuple[str, str]:
    """`x` [S, N, E] to [M, N, F], and the lengths after pooling."""
    add_inside(graph, x, "lengths_64", "source")  # [S, N]
    graph.add("Transpose", ["source_inside"], "source_inside_rows", perm=[1, 0])
    graph.add("Unsqueeze", ["source_inside_rows", "axis_1"], "source_inside_channels")  # [N, 1, S]
    graph.add("Transpose", [x], "channels", perm=[1, 2, 0])  # [N, E, S]
    graph.constant("nothing", np.array(0.0, np.float32))
    graph.add("Where", ["source_inside_channels", "channels", "nothing"], "masked_channels")
    parts = []
    for i, convolution in enumerate(front.convolutions):
        weight = array(convolution.weight)  # type: ignore[arg-type]
        width = weight.shape[2]
        graph.constant(f"convolution{i}_weight", weight)
        graph.constant(f"convolution{i}_bias", array(convolution.bias))  # type: ignore[arg-type]
        inputs = ["masked_channels", f"convolution{i}_weight", f"convolution{i}_bias"]
        graph.add("Conv", inputs, f"convolved{i}", pads=[(width - 1) // 2, width // 2])
        parts.append(graph.add("Relu", [f"convolved{i}"], f"filtered{i}"))
    graph.add("Concat", parts, "filtered", axis=1)  # [N, F, S]
    graph.add("Where", ["source_inside_channels", "filtered", "nothing"], "features")
    options = {"kernel_shape": [front.stride], "strides": [front.stride], "ceil_mode": 1}
    graph.add("MaxPool", ["features"], "pooled", **options)  # [N, F, M]
    x = graph.add("Transpose", ["pooled"], "pooled_by_time", perm=[2, 0, 1])  # [M, N, F]
    x = _add_highways(graph, front, x)
    graph.constant("stride", np.array(front.stride, np.int64))
    graph.constant("stride_less_one", np.array(front.stride - 1, np.int64))
    graph.add("Add", ["lengths_64", "stride_less_one"], "lengths_up")
    return x, graph.add("Div", ["lengths_up", "stride"], "pooled_lengths")


def _add_highways(graph: GraphBuilder, front: Convolutions, x: str) -> str:
    """The highway layers over `x` [M, N, F]."""
    graph.constant("all_of_it", np.array(1.0, np.float32))
    for i, layer in enumerate(front.highways):
        both = affine(graph, f"highway{i}", x, array(layer.weight).T, array(layer.bias))  # type: ignore[arg-type]
        graph.add(
            "Split",
            [both],
            f"highway{i}_candidate_sum",
            f"highway{i}_gate_sum",
            axis=-1,
            num_outputs=2,
        )
        graph.add("Relu", [f"highway{i}_candidate_sum"], f"highway{i}_candidate")
        graph.add("Sigmoid", [f"highway{i}_gate_sum"], f"highway{i}_gate")
        graph.add("Sub", ["all_of_it", f"highway{i}_gate"], f"highway{i}_carry")
        graph.add("Mul", [f"highway{i}_gate", f"highway{i}_candidate"], f"highway{i}_transformed")
        graph.add("Mul", [f"highway{i}_carry", x], f"highway{i}_carried")
        x = graph.add(
            "Add", [f"highway{i}_transformed", f"highway{i}_carried"], f"highway{i}_output"
        )
    return x
