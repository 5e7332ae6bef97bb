"""Rows per second of processor time, of fraudline's benchmark and of ONNX Runtime, in turns: compare.py BENCH ARTIFACT WORK_FOLDER

Fraudline's time includes what ONNX Runtime is spared: the check and normalization of the features, and the calibration of the scores.
"""

import json
import os
import statistics
import subprocess
import sys

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from artifact import Artifact  # noqa: E402

BATCHES = [1, 8, 64, 256, 1024]
ROUNDS, SECONDS = 9, 0.3


class Peer:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self.answer().removeprefix("ready ")

    def answer(self):
        return self.process.stdout.readline().strip() or sys.exit(f"{self.process.args} has ended")

    def ask(self, question):
        print(question, file=self.process.stdin, flush=True)
        return self.answer()


def main():
    bench, folder, work = sys.argv[1:]
    artifact = Artifact(folder)
    random = numpy.random.default_rng(1)
    rows = (numpy.exp(random.uniform(-6, 6, (8192, artifact.width))) - 1).astype("<f4")
    missing = random.random((len(rows), len(artifact.nullable))) < 0.1
    rows[:, artifact.nullable] = numpy.where(missing, numpy.nan, rows[:, artifact.nullable])
    rows_file, logits_file = os.path.join(work, "rows.f32"), os.path.join(work, "logits.f32")
    rows.tofile(rows_file)
    peers = [
        Peer(bench, "peer", folder, rows_file),
        Peer(sys.executable, os.path.join(os.path.dirname(__file__), "peer.py"), folder, rows_file),
    ]
    logits = []
    for peer in peers:
        peer.ask(f"logits {logits_file}")
        logits.append(numpy.fromfile(logits_file, "<f4"))
    far = numpy.abs(logits[0] - logits[1]).max()
    print(f"logits of {len(rows)} rows differ by {far:.1e} at most")
    if not far < 1e-4:
        sys.exit("these are not the same network")

    print(f"{'batch':>6}", *(f"{peer.name + ', rows/s':>36}" for peer in peers), f"{'ratio':>24}")
    for batch in BATCHES:
        rates = [[], []]
        for _ in range(ROUNDS):
            for peer, own in zip(peers, rates):
                own.append(json.loads(peer.ask(f"measure {batch} {SECONDS}"))["rows_per_second"])
        ratios = [ours / theirs for ours, theirs in zip(*rates)]
        cells = [f"{statistics.median(own):,.0f} ({min(own):,.0f} to {max(own):,.0f})" for own in rates]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{batch:>6}", *(f"{cell:>36}" for cell in cells), f"{ratio:>24}", flush=True)


main()
