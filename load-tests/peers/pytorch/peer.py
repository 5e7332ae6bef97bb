"""PyTorch with an artifact's network: peer.py ARTIFACT ROWS DEVICE eager|compiled (see ../artifact.py).

A batch's inputs come from pinned host memory and its logits go back to the host, as fraudline's do.
"""

import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from artifact import Artifact, serve  # noqa: E402


def sequence(layers):
    modules = []
    for weight, bias in layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.copy()))
            linear.bias.copy_(torch.from_numpy(bias.copy()))
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


class Tabular(torch.nn.Module):
    def __init__(self, artifact):
        super().__init__()
        self.register_buffer("lower", torch.from_numpy(artifact.lower)[None])
        self.register_buffer("per_width", torch.from_numpy(artifact.per_width)[None])
        self.first = sequence([artifact.first])
        self.members = torch.nn.ModuleList(sequence(layers) for layers in artifact.members)

    def forward(self, inputs):
        values = inputs[:, :, None]
        ramps = ((values - self.lower) * self.per_width).clamp(0, 1)
        components = torch.cat([ramps, (values >= self.lower).float()], 2).flatten(1)
        hidden = self.first(components).relu().chunk(len(self.members), 1)
        return torch.cat([member(own) for member, own in zip(self.members, hidden)], 1).mean(1)


def network(artifact):
    return (Tabular(artifact) if artifact.members else sequence(artifact.layers)).eval()


def main():
    folder, rows, device, mode = sys.argv[1:]
    artifact = Artifact(folder)
    if device == "cpu":
        torch.set_num_threads(1)
    model = network(artifact).to(device)
    if mode == "compiled":
        # One for each batch size.
        torch._dynamo.config.recompile_limit = 64
        # CUDA graphs, where there is CUDA: one launch for the whole network.
        model = torch.compile(model, mode="reduce-overhead" if device.startswith("cuda") else "default", dynamic=False)

    @torch.inference_mode()
    def run(inputs):
        host = torch.from_numpy(inputs)
        if device.startswith("cuda"):
            host = host.pin_memory()
        return model(host.to(device, non_blocking=True)).cpu().numpy()

    serve(f"PyTorch {torch.__version__} {mode}", artifact, rows, run)


main()
