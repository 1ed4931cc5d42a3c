"""Packing against loaders of Python, on the same files, taking turns on one core.

    taskset -c 0 python bench/versus/packing.py target/release/alexnet PICTURES [--rounds 5]

PICTURES is a folder of pictures; each is brought to 500x375 and saved as a JPEG of quality 95 (as large as ImageNet's
are on average, 110 KB for photographs) in a folder for temporary files, which is in memory where there is /dev/shm.

All do the same: read the file, decode, resize the shorter side to 256 (antialiased bilinear), cut the central 256x256,
write the bytes to one file.
  alexnet    `alexnet data pack`, the process's start, hashes, colour statistics and syncing included
  pillow     PIL and torchvision's transforms on PIL pictures (torchvision's default loader); with --simd DIR a
             Pillow-SIMD installed there (pip install --target DIR pillow-simd), in a process of its own
  tensors    torchvision.io.decode_jpeg and torchvision's transforms on tensors (uint8, antialiased)
Peers are timed without the imports. The process is to be bound to one core.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time


def make_set(pictures, folder, count):
    from PIL import Image

    names = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not names:
        sys.exit(f"no JPEG files in {pictures}")
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180]
    total = 0
    for i in range(count):
        picture = Image.open(names[i % len(names)]).convert("RGB")
        turn = turns[i // len(names) % len(turns)]
        picture = picture if turn is None else picture.transpose(turn)
        path = folder / "ab"[i % 2] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=95)
        total += path.stat().st_size
    return total / count


def peer(which, folder, out):
    """One timed pass; a function of its own so that imports are not timed."""
    import numpy as np
    import torch
    import torchvision.transforms.v2 as transforms

    torch.set_num_threads(1)
    names = sorted(str(p) for p in pathlib.Path(folder).rglob("*.jpg"))
    transform = transforms.Compose([transforms.Resize(256, antialias=True), transforms.CenterCrop(256)])
    if which == "pillow":
        from PIL import Image

        def load(name):
            return np.asarray(transform(Image.open(name).convert("RGB")))
    else:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        def load(name):
            return transform(decode_jpeg(read_file(name), mode=ImageReadMode.RGB)).permute(1, 2, 0).numpy()

    load(names[0])
    start = time.perf_counter()
    with open(out, "wb") as file:
        for name in names:
            file.write(np.ascontiguousarray(load(name)).tobytes())
        os.fsync(file.fileno())
    return len(names) / (time.perf_counter() - start)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("alexnet")
    arguments.add_argument("pictures", type=pathlib.Path)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--count", type=int, default=600)
    arguments.add_argument("--simd")
    arguments = arguments.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        size = make_set(arguments.pictures, work / "set", arguments.count)
        peers = {"pillow": None, "tensors": None}
        if arguments.simd:
            peers["pillow-simd"] = arguments.simd
        rates = {name: [] for name in ["alexnet", *peers]}
        for _ in range(arguments.rounds):
            out = work / "pack.safetensors"
            start = time.perf_counter()
            command = [arguments.alexnet, "data", "pack", work / "set", out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            rates["alexnet"].append(arguments.count / (time.perf_counter() - start))
            out.unlink()
            for name, path in peers.items():
                kind = "pillow" if name.startswith("pillow") else name
                environment = dict(os.environ, **({"PYTHONPATH": path} if path else {}))
                command = [sys.executable, __file__, "--peer", kind, work / "set", out]
                answer = subprocess.run(command, check=True, capture_output=True, env=environment)
                rates[name].append(json.loads(answer.stdout))
        print(f"{arguments.count} JPEGs of 500x375, {size / 1000:.0f} KB on average; pictures/s")
        ours = statistics.median(rates["alexnet"])
        for name, values in rates.items():
            middle = statistics.median(values)
            print(f"  {name:12} {middle:6.0f}  ({min(values):.0f}-{max(values):.0f})  alexnet/{name} {ours / middle:.2f}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        print(json.dumps(peer(*sys.argv[2:5])))
    else:
        main()
