#!/usr/bin/env python3
"""Inference beside OpenVINO, in one run on one machine: the two take turns, and the ratio is that of the medians.

    python bench/versus/openvino_infer.py target/release/alexnet [--precision f32|bf16|int8] [--batch 128] [--rounds 3] [--steps 10]

In int8 the weights have eight bits (ours: those of the linear layers; the peer's: all, by nncf.compress_weights) and the
rest is bf16, on both sides f32 where the processor does not multiply bf16. Needs openvino (and nncf for int8), torch and torchvision from PyPI. The network is torchvision's, on made-up pictures. Prints one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time


def peer(args):
    """OpenVINO's side, in a process of its own: milliseconds of each pass."""
    import numpy
    import openvino
    import torch
    import torchvision

    shape = (args.batch, 3, 224, 224)
    model = openvino.convert_model(torchvision.models.alexnet().eval(), example_input=torch.zeros(shape))
    model.reshape(shape)
    if args.precision == "int8":
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if args.precision == "f32" else "bf16",
        "INFERENCE_NUM_THREADS": args.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    pictures = numpy.random.rand(*shape).astype(numpy.float32)
    times = []
    for step in range(args.steps + 3):
        start = time.perf_counter()
        request.infer([pictures], share_inputs=True)
        if step >= 3:
            times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"openvino": openvino.__version__, "times_ms": times}))


def last_line(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("alexnet", nargs="?")
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16", "int8"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    common = ["--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads)]
    common += ["--precision", args.precision]
    ours, theirs = [], []
    for _ in range(args.rounds):
        result = last_line([args.alexnet, "bench", "infer", "--json", "--net", "torchvision", *common])
        ours.append(result["ms"])
        other = last_line([sys.executable, __file__, "--peer", *common])
        theirs += other["times_ms"]
    us, them = statistics.median(ours), statistics.median(theirs)
    print(json.dumps({
        "net": "torchvision", "precision": args.precision, "batch": args.batch, "threads": args.threads,
        "kernel": result["kernel"], "openvino": other["openvino"],
        "alexnet_ms": us, "alexnet_ms_range": [min(ours), max(ours)], "alexnet_img_s": args.batch * 1e3 / us,
        "openvino_ms": them, "openvino_ms_range": [min(theirs), max(theirs)],
        "openvino_img_s": args.batch * 1e3 / them, "ratio": them / us,
    }))


if __name__ == "__main__":
    main()
