"""Logits of this program and of other programs, from the same weights on the same pictures, in both directions.

    python golden/parity.py target/release/alexnet PICTURES... [--nets a,b] [--keep FOLDER]

needs torch, torchvision, onnx, onnxruntime, safetensors, numpy, pillow. For every network of `alexnet nets`:

out     random weights of the network's own shapes, made here, are brought in as a PyTorch file, exported as ONNX and run
        by ONNX Runtime; as safetensors and run by PyTorch (for torchvision's network through
        `torchvision.models.alexnet().load_state_dict`, for the others through the layers as `alexnet nets NAME --json`
        lists them); as a Caffe model and run by PyTorch from the blobs that Google's protobuf reads, in Caffe's order.
in      PyTorch's own file (zip and legacy), the exported ONNX and Caffe files are brought in again.

Each is compared with the logits of `alexnet features --layer fc8`, on pictures that this script prepares by Pillow and
hands over as the squares that the models store, so that only the network is compared. The measure is the largest difference over the
largest logit of the picture; the bound is 1e-4.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from weights import caffe_messages  # noqa: E402

BOUND = 1e-4
STORED = 256
TORCHVISION = ["features.0", "features.3", "features.6", "features.8", "features.10", "classifier.1", "classifier.4",
               "classifier.6"]


def run(program, *words):
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"alexnet {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def windows(extent, size, stride, up):
    return -(-max(extent - size, 0) // stride) + 1 if up else (extent - size) // stride + 1


class Listed(nn.Module):
    """A network as TOML lists it, by PyTorch's operations."""

    def __init__(self, toml, state):
        super().__init__()
        self.layers, self.state = toml["layer"], state

    def forward(self, x):
        for layer in self.layers:
            x = self.compute(layer, x)
        return x

    def compute(self, layer, x):
        kind, name, up = layer["type"], layer["name"], layer.get("rounding", "floor") == "ceil"
        if kind == "conv":
            pad = layer.get("pad", 0)
            before, after = pad if isinstance(pad, list) else (pad, pad)
            size, stride = layer["kernel"], layer.get("stride", 1)
            count = windows(x.shape[-1] + before + after, size, stride, up)
            after = max(after, (count - 1) * stride + size - x.shape[-1] - before) if up else after
            x = F.pad(x, (before, after, before, after))
            return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, groups=layer.get("groups", 1))
        if kind == "linear":
            return F.linear(x.flatten(1), self.state[f"{name}.weight"], self.state[f"{name}.bias"])
        if kind == "lrn":
            factor = 1 if layer["alpha_div_n"] else layer["size"]
            norm = [F.local_response_norm(part, layer["size"], layer["alpha"] * factor, layer["beta"], layer["k"])
                    for part in x.chunk(layer.get("towers", 1), 1)]
            return torch.cat(norm, 1)
        if kind == "spatial-lrn":
            n = layer["size"]
            alpha = layer["alpha"] / (n * n) if layer["alpha_div_n"] else layer["alpha"]
            return x / (layer["k"] + alpha * n * n * F.avg_pool2d(x * x, n, 1, n // 2)) ** layer["beta"]
        if kind == "batch-norm":
            part = [self.state[f"{name}.{p}"] for p in ["running_mean", "running_var", "weight", "bias"]]
            return F.batch_norm(x, *part, eps=layer.get("eps", 1e-5))
        if kind == "pool":
            assert layer["kind"] == "max"
            return F.max_pool2d(x, layer["size"], layer["stride"], ceil_mode=up)
        if kind == "dropout":
            return x if layer["inverted"] else x * (1 - layer["rate"])
        return {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}[kind](x)


def caffe_state(path):
    """The blobs of a .caffemodel under canonical names, red first."""
    net = caffe_messages()()
    net.ParseFromString(path.read_bytes())
    state, first = {}, True
    for layer in net.layer:
        for blob, role in zip(layer.blobs, ["weight", "bias"]):
            values = torch.from_numpy(np.asarray(blob.data, dtype=np.float32).reshape(tuple(blob.shape.dim)).copy())
            if first and role == "weight":
                values, first = values.flip(1), False
            state[f"{layer.name}.{role}"] = values
    return state


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--nets")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    import tomllib

    names = args.nets.split(",") if args.nets else [n["name"] for n in json.loads(run(args.program, "nets", "--json"))["networks"]]
    scratch = args.keep or Path(tempfile.mkdtemp())
    scratch.mkdir(exist_ok=True)
    worst_of_all = 0.0
    for name in names:
        about = json.loads(run(args.program, "nets", name, "--json"))
        channels, side = about["input"][0], about["input"][1]
        generator = torch.Generator().manual_seed(7)
        state = OrderedDict()
        for layer in about["layers"]:
            if layer.get("weight"):
                fan_in = int(np.prod(layer["weight"][1:]))
                state[f"{layer['name']}.weight"] = torch.randn(layer["weight"], generator=generator) * (2 / fan_in) ** 0.5
                state[f"{layer['name']}.bias"] = torch.rand(layer["weight"][0], generator=generator) * 0.2 - 0.1
            if layer["type"] == "batch-norm":
                channels = layer["weight"]
                state[f"{layer['name']}.weight"] = torch.rand(channels, generator=generator) + 0.5
                state[f"{layer['name']}.running_mean"] = torch.randn(channels, generator=generator)
                state[f"{layer['name']}.running_var"] = torch.rand(channels, generator=generator) * 4 + 0.5
        # Squares of the side that the models store, so that only the central crop is left to do.
        folder = scratch / "pictures"
        folder.mkdir(exist_ok=True)
        for i, path in enumerate(args.pictures):
            picture = Image.open(path).convert("RGB").resize((STORED, STORED), Image.BILINEAR)
            picture.save(folder / f"{i:04}.png")
        files = sorted(folder.glob("*.png"))
        pixels = np.stack([np.asarray(Image.open(f), dtype=np.float32) for f in files]).transpose(0, 3, 1, 2)
        start = (STORED - side) // 2
        pixels = np.ascontiguousarray(pixels[:, :, start:start + side, start:start + side])

        def file(ending):
            return scratch / f"{name}{ending}"

        def ours(model):
            run(args.program, "features", model, folder, "--layer", about["layers"][-1]["name"], "--precision", "f32",
                "--out", file(".features"))
            got = load_file(file(".features"))
            return got["features"].numpy().reshape(len(files), -1)

        torch_names = {f"{ours}.{r}": f"{theirs}.{r}" for ours, theirs in zip(
            [k[:-7] for k in state if k.endswith(".weight")], TORCHVISION) for r in ["weight", "bias"]}
        theirs = OrderedDict((torch_names[k], v) for k, v in state.items()) if name == "torchvision" else state
        torch.save(theirs, file(".pth"))
        torch.save(theirs, file("-legacy.pth"), _use_new_zipfile_serialization=False)
        told = [] if name == "torchvision" else ["--net", name]
        plain = ["--mean", "0,0,0"] if name != "torchvision" else []
        run(args.program, "weights", "import", file(".pth"), file(".model"), *told, *plain)
        run(args.program, "weights", "import", file("-legacy.pth"), file("-legacy.model"), *told, *plain)
        for_caffe = all(layer["type"] != "batch-norm" for layer in about["layers"])
        for ending in [".onnx", ".safetensors"] + [".caffemodel"] * for_caffe:
            words = ["--logits"] if ending == ".onnx" else []
            run(args.program, "weights", "export", file(".model"), file(ending), *words)

        toml = tomllib.loads(about["toml"])
        x = torch.from_numpy(pixels)
        if name == "torchvision":
            x = (x / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
                [0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        with torch.no_grad():
            reference = Listed(toml, {k: v.double() for k, v in state.items()})(x.double()).numpy()
            answers = {"here, from .pth": ours(file(".model")), "here, from legacy .pth": ours(file("-legacy.model"))}
            back = load_file(file(".safetensors"))
            if name == "torchvision":
                model = torchvision.models.alexnet(num_classes=about["classes"]).eval()
                model.load_state_dict(back)
                answers["safetensors by torchvision"] = model(x).numpy()
            else:
                answers["safetensors by PyTorch"] = Listed(toml, back)(x).numpy()
            if for_caffe:
                answers["Caffe's blobs by PyTorch"] = Listed(toml, caffe_state(file(".caffemodel")))(x).numpy()
        session = onnxruntime.InferenceSession(str(file(".onnx")), providers=["CPUExecutionProvider"])
        answers["ONNX by ONNX Runtime"] = session.run(None, {"pixels": x.numpy()})[0]
        run(args.program, "weights", "import", file(".onnx"), file("-onnx.model"))
        answers["here, from ONNX"] = ours(file("-onnx.model"))
        if for_caffe:
            run(args.program, "weights", "import", file(".caffemodel"), file("-caffe.model"),
                *(["--preprocess", "torchvision"] if name == "torchvision" else plain))
            answers["here, from Caffe"] = ours(file("-caffe.model"))
        for words, got in answers.items():
            scale = np.abs(reference).max(1, keepdims=True)
            worst = float((np.abs(got - reference) / scale).max())
            worst_of_all = max(worst_of_all, worst)
            print(f"{name:20} {words:28} {worst:.1e}{'' if worst <= BOUND else '  TOO MUCH'}", flush=True)
        if not args.keep:
            for path in scratch.glob(f"{name}*"):
                path.unlink()
    print(f"worst {worst_of_all:.1e}, bound {BOUND}")
    raise SystemExit(worst_of_all > BOUND)


if __name__ == "__main__":
    main()
