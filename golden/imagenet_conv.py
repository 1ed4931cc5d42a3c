"""Makes crates/alexnet/assets/imagenet-conv.safetensors, the convolutional layers that `--from imagenet` copies.

    python3 golden/imagenet_conv.py SOURCE.safetensors crates/alexnet/assets/imagenet-conv.safetensors

SOURCE holds features.{0,3,6,8,10}.{weight,bias} of torchvision's AlexNet (AlexNet_Weights.IMAGENET1K_V1) in f32, as

    from safetensors.torch import save_file
    from torchvision.models import alexnet
    state = alexnet(weights="IMAGENET1K_V1").state_dict()
    save_file({k: v for k, v in state.items() if k.startswith("features")}, "SOURCE.safetensors")

writes them. Each value is rounded to the nearest f16 (ties to even). Needs Python alone.
"""

import json
import struct
import sys

LAYERS = {"features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4", "features.10": "conv5"}


def main(source, target):
    with open(source, "rb") as f:
        blob = f.read()
    (header_bytes,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + header_bytes])
    body = memoryview(blob)[8 + header_bytes :]

    entries = {"__metadata__": {"source": "torchvision AlexNet_Weights.IMAGENET1K_V1, BSD-3-Clause; see NOTICE"}}
    data = bytearray()
    largest = 0.0
    for theirs, ours in LAYERS.items():
        for role in ("weight", "bias"):
            entry = header[f"{theirs}.{role}"]
            assert entry["dtype"] == "F32", entry
            start, end = entry["data_offsets"]
            values = struct.unpack(f"<{(end - start) // 4}f", body[start:end])
            half = struct.pack(f"<{len(values)}e", *values)
            largest = max(largest, max(abs(a - b) for a, b in zip(values, struct.unpack(f"<{len(values)}e", half))))
            entries[f"{ours}.{role}"] = {
                "dtype": "F16",
                "shape": entry["shape"],
                "data_offsets": [len(data), len(data) + len(half)],
            }
            data += half

    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    print(f"{target}: {8 + len(text) + len(data):,} bytes; largest rounding error {largest:.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
