#!/usr/bin/env python3
"""Speed beside PyTorch, in one run on one machine: the sides take turns, and the ratio is that of the medians.

    python bench/versus/pytorch.py target/release/alexnet [--mode train|infer] [--net alexnet-2012|torchvision]
        [--precision f32|f32x3|bf16|int8] [--peer-precision f32|bf16] [--batch 128] [--rounds 3] [--steps 4] [--variants eager,compiled,eager-last,compiled-last]

Needs PyTorch (and torchvision for that network) from PyPI, and a C++ compiler for torch.compile. All sides compute on
made-up pictures; training is SGD with momentum and weight decay. In bf16 PyTorch trains with autocast (weights in
float32) and infers with the model itself in bfloat16; int8 (linear layers' weights in eight bits) is ours alone, and
PyTorch then computes in bf16, or as --peer-precision says: a processor that does not multiply bf16 is faster in f32.
"-last" is the channels-last memory format. The best variant is
the peer. ONEDNN_MAX_CPU_ISA and ALEXNET_ISA hold both sides to one instruction set. Prints one JSON object.
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
    train, bf16 = args.mode == "train", args.precision == "bf16"
    pictures = torch.randn(args.batch, 3, side, side)
    labels = torch.randint(0, 1000, (args.batch,))
    if args.peer.endswith("-last"):
        model, pictures = (x.to(memory_format=torch.channels_last) for x in (model, pictures))
    if bf16 and not train:
        model, pictures = model.bfloat16(), pictures.bfloat16()
    model.train(train)
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, foreach=True)
    run = torch.compile(model) if args.peer.startswith("compiled") else model

    def step():
        if not train:
            with torch.inference_mode():
                return run(pictures)
        sgd.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = functional.cross_entropy(run(pictures), labels)
        loss.backward()
        sgd.step()

    step(), step()
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"torch": torch.__version__, "times_ms": times}))


def last_line(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("alexnet", nargs="?")
    parser.add_argument("--mode", default="train", choices=["train", "infer"])
    parser.add_argument("--net", default="alexnet-2012", choices=["alexnet-2012", "torchvision"])
    parser.add_argument("--precision", default="f32", choices=["f32", "f32x3", "bf16", "int8"])
    parser.add_argument("--peer-precision", choices=["f32", "bf16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", default="eager,compiled,eager-last,compiled-last")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    common = ["--net", args.net, "--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads)]
    theirs_in = args.peer_precision or ("bf16" if args.precision in ("bf16", "int8") else "f32")
    variants = args.variants.split(",")
    ours, theirs, resident = [], {v: [] for v in variants}, 0
    for _ in range(args.rounds):
        result = last_line([args.alexnet, "bench", args.mode, "--json", "--precision", args.precision, *common])
        ours.append(result["ms"])
        resident = max(resident, result["peak_resident_bytes"] or 0)
        for variant in variants:
            other = last_line([
                sys.executable, __file__, "--peer", variant, "--mode", args.mode, "--precision", theirs_in, *common
            ])
            theirs[variant] += other["times_ms"]
    medians = {v: statistics.median(times) for v, times in theirs.items()}
    best = min(medians, key=medians.get)
    us, them = statistics.median(ours), medians[best]
    print(json.dumps({
        "mode": args.mode, "net": args.net, "precision": args.precision, "torch_precision": theirs_in, "batch": args.batch, "threads": args.threads,
        "kernel": result["kernel"], "torch": other["torch"],
        "alexnet_ms": us, "alexnet_ms_range": [min(ours), max(ours)], "alexnet_img_s": args.batch * 1e3 / us,
        "torch_best": best, "torch_ms": them, "torch_ms_range": [min(theirs[best]), max(theirs[best])],
        "torch_img_s": args.batch * 1e3 / them,
        "torch_ms_medians": medians, "ratio": them / us, "alexnet_peak_resident_bytes": resident,
    }))


if __name__ == "__main__":
    main()
