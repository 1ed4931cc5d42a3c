#!/usr/bin/env python3
"""Training speed beside PyTorch, in one run on one machine: the two take turns, and the ratio is that of the medians.

    python bench/versus/pytorch.py target/release/alexnet [--net alexnet-2012|torchvision] [--batch 128] [--rounds 3]
                                   [--steps 4] [--no-compile]

Needs PyTorch (and torchvision for that network) from PyPI, and a C++ compiler for torch.compile. Both sides train in f32
on made-up pictures with SGD, momentum and weight decay. Prints one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time


def peer(args):
    """PyTorch's side, in a process of its own: milliseconds of each step."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    class Norm(nn.Module):
        """Across the maps of each of two towers; PyTorch divides alpha by n, the paper does not."""

        def forward(self, x):
            halves = [functional.local_response_norm(h, 5, alpha=5e-4, beta=0.75, k=2.0) for h in x.chunk(2, 1)]
            return torch.cat(halves, 1)

    if args.net == "torchvision":
        import torchvision

        model, side = torchvision.models.alexnet(), 224
    else:
        model, side = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4), nn.ReLU(True), Norm(), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(True), Norm(), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Flatten(),
            nn.Linear(9216, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(),
            nn.Linear(4096, 1000),
        ), 227
    pictures = torch.randn(args.batch, 3, side, side)
    labels = torch.randint(0, 1000, (args.batch,))
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, foreach=True)
    run = model if args.no_compile else torch.compile(model)

    def step():
        sgd.zero_grad(set_to_none=True)
        functional.cross_entropy(run(pictures), labels).backward()
        sgd.step()

    step(), step()
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"torch": torch.__version__, "ms": times}))


def last_json(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alexnet")
    parser.add_argument("--net", default="alexnet-2012")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    ours, theirs, version = [], [], None
    same = ["--net", args.net, "--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads)]
    for _ in range(args.rounds):
        result = last_json([args.alexnet, "bench", "train", *same, "--precision", "f32", "--json"])
        ours.append(result["ms"])
        result = last_json([sys.executable, __file__, *sys.argv[1:], "--peer"])
        theirs.append(statistics.median(result["ms"]))
        version = result["torch"]
    rate = lambda ms: round(args.batch / statistics.median(ms) * 1e3, 1)
    print(json.dumps({
        "net": args.net, "batch": args.batch, "precision": "f32", "torch": version, "compiled": not args.no_compile,
        "alexnet_ms": [round(t, 1) for t in ours], "torch_ms": [round(t, 1) for t in theirs],
        "alexnet_img_s": rate(ours), "torch_img_s": rate(theirs),
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
    }))


if __name__ == "__main__":
    main()
