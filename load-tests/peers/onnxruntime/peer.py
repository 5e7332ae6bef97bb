"""ONNX Runtime on the CPU, one thread, with an artifact's network: peer.py ARTIFACT ROWS (see ../artifact.py).

What counts is the thread's processor time.
"""

import os
import sys
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from artifact import Artifact, serve  # noqa: E402


class Graph:
    def __init__(self):
        self.nodes, self.weights = [], []

    def add(self, operator, *inputs, **attributes):
        """Adds a node of one output; arrays among the inputs become weights."""
        name = f"{operator}.{len(self.nodes)}"
        inputs = [self.weight(value) if isinstance(value, numpy.ndarray) else value for value in inputs]
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weight(self, value):
        name = f"weight.{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(numpy.ascontiguousarray(value), name))
        return name

    def layers(self, last, layers):
        """Gemm with the bias, and Relu between, which the runtime fuses."""
        for index, (weight, bias) in enumerate(layers):
            if index:
                last = self.add("Relu", last)
            last = self.add("Gemm", last, weight, bias, transB=1)
        return last


def export(artifact):
    """The network as ONNX."""
    graph = Graph()
    if artifact.members:
        values = graph.add("Unsqueeze", "inputs", numpy.array([2]))
        ramps = graph.add("Mul", graph.add("Sub", values, artifact.lower[None]), artifact.per_width[None])
        ramps = graph.add("Clip", ramps, numpy.array(0, numpy.float32), numpy.array(1, numpy.float32))
        steps = graph.add("Cast", graph.add("GreaterOrEqual", values, artifact.lower[None]), to=TensorProto.FLOAT)
        components = graph.add("Flatten", graph.add("Concat", ramps, steps, axis=2))
        hidden = graph.add("Relu", graph.layers(components, [artifact.first]))
        width = artifact.members[0][0][0].shape[1]
        logits = []
        for index, member in enumerate(artifact.members):
            bounds = [numpy.array([index * width]), numpy.array([(index + 1) * width]), numpy.array([1])]
            logits.append(graph.layers(graph.add("Slice", hidden, *bounds), member))
        last = graph.add("ReduceMean", graph.add("Concat", *logits, axis=1), axes=[1])
        width = len(artifact.lower)
    else:
        last = graph.layers("inputs", artifact.layers)
        width = artifact.layers[0][0].shape[1]
    inputs = helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["rows", width])
    outputs = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(graph.nodes, "network", [inputs], [outputs], graph.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def main():
    artifact = Artifact(sys.argv[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(export(artifact), options, providers=["CPUExecutionProvider"])
    name = f"ONNX Runtime {onnxruntime.__version__}"
    serve(name, artifact, sys.argv[2], lambda inputs: session.run(None, {"inputs": inputs})[0], time.thread_time)


main()
