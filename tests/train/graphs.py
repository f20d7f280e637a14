"""Damaged graphs."""

import onnx
from onnx import numpy_helper


def with_one_weight_changed(graph: bytes) -> bytes:
    """Return `graph` with one weight of its first convolution changed by 0.5."""
    model = onnx.load_from_string(graph)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()
