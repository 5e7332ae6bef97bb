"""An artifact's network, for the libraries that fraudline is compared with: inputs and weights, read without it."""

import json
import os
import sys
import time

import numpy


def tensors(path):
    """The tensors of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: numpy.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def signed_log(values):
    """sign(x) log2(1 + |x|), with straight lines between powers of two, as models/src/normalize.rs has it."""
    fixed = (numpy.float32(1) + numpy.abs(values)).view(numpy.int32) - numpy.float32(1).view(numpy.int32)
    return numpy.copysign(fixed.astype(numpy.float32) * numpy.float32(2.0**-23), values)


class Artifact:
    """`layers` are (weight, bias) pairs of a multilayer perceptron, outputs x inputs, with ReLU between them.

    A tabular network has `first`, such a pair over its encoding, `members`, which are lists of layers, with ReLU before each, and `lower` and
    `per_width` of the encoding's pieces (inputs x pieces). models/src/encode.rs says what they mean.
    """

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as file:
            self.config = json.load(file)
        if self.config["network"]["type"] == "history":
            sys.exit(f"{folder}: peers run multilayer perceptrons and tabular networks, not history networks; name another artifact")
        found = tensors(os.path.join(folder, "model.safetensors"))
        self.mean, self.scale = found["normalization.mean"], found["normalization.scale"]
        features = self.config["layout"]["features"]
        self.nullable = [column for column, feature in enumerate(features) if feature["nullable"]]
        self.width = len(features)

        def pair(name):
            return found[f"{name}.weight"], found[f"{name}.bias"]

        def layers(prefix):
            count = sum(name.startswith(f"{prefix}layers.") for name in found) // 2
            return [pair(f"{prefix}layers.{index}") for index in range(count)]

        self.layers, self.members = layers(""), []
        if "encoding.edges" in found:
            self.first = pair("first")
            while more := layers(f"members.{len(self.members)}."):
                self.members.append(more)
            edges = found["encoding.edges"]
            width = edges[:, 1:] - edges[:, :-1]
            used = width > 0
            largest = numpy.finfo(numpy.float32).max
            self.lower = numpy.where(used, edges[:, :-1], largest).astype(numpy.float32)
            self.per_width = numpy.where(used, 1 / numpy.where(used, width, 1), 0).clip(max=largest).astype(numpy.float32)

    def inputs(self, rows):
        """What the network is given for rows of features."""
        missing = numpy.isnan(rows)
        values = ((signed_log(rows) - self.mean) * self.scale).clip(-8, 8)
        values = numpy.where(missing, numpy.float32(0), values)
        return numpy.concatenate([values, missing[:, self.nullable]], 1).astype(numpy.float32)


def serve(name, artifact, rows_file, run, clock=time.perf_counter):
    """Answers on standard output what is asked on standard input, a line each:

    logits FILE             writes those of all rows, raw little-endian f32
    measure ROWS SECONDS    scores batches of so many rows for so long; answers with a JSON object

    `run` takes inputs (rows x inputs, contiguous) and returns their logits as an array, with all of the work done; `clock` tells
    the seconds that count.
    """
    rows = numpy.fromfile(rows_file, "<f4").reshape(-1, artifact.width)
    inputs = artifact.inputs(rows)
    print(f"ready {name}", flush=True)
    for line in sys.stdin:
        what, *arguments = line.split()
        if what == "logits":
            run(inputs).astype("<f4").ravel().tofile(arguments[0])
            print("written", flush=True)
            continue
        size, seconds = int(arguments[0]), float(arguments[1])
        batches = [inputs[at : at + size] for at in range(0, len(inputs) - size + 1, size)][:64]
        for batch in batches[:3]:
            run(batch)
        times = []
        while not times or sum(times) < seconds:
            batch = batches[len(times) % len(batches)]
            since = clock()
            run(batch)
            times.append(clock() - since)
        p50, p99 = numpy.percentile(times, [50, 99]) * 1e6
        print(json.dumps({"rows_per_second": size * len(times) / sum(times), "p50_us": p50, "p99_us": p99}), flush=True)
