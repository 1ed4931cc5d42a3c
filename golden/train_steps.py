"""Golden numbers for training: what ten steps of SGD change in every parameter, according to PyTorch.

    python golden/train_steps.py        writes golden/alexnet-2012.json and golden/torchvision.json

Two networks at one eighth of their width, ten classes, no dropout: `alexnet-2012` (the paper's text: an overhanging
first window, two towers, local response normalization with k = 2 and alpha not divided by n) and `torchvision`. They
start from weights and see pictures that are functions of an index (Philox4x32-10 as in crates/alexnet/src/rng.rs),
multiples of a power of two that f32 holds exactly, so that neither has to be stored.

PyTorch computes in float64; how far its own float32 is from that stands in the files as `float32_error`, and how far
its own mixed precision (autocast to bfloat16, float32 weights) is as `bfloat16_error`. The latter is large, up to 0.26 of
conv1's change: with eight bits, elements of pooling windows tie and ReLUs turn that do not in float64, and random
pictures and labels give gradients that nothing averages.

What is stored, for every weight and bias tensor, after the first step and after the last: the change since the
start. Tensors of at most 4096 elements are stored whole. Of larger ones the norm and a sketch are stored: 64 sums of
the change's elements with random signs. For any vector d and random signs r, E[(r.d)^2] = |d|^2; so the root mean
square of the difference of two sketches estimates the norm of the difference of two changes, with a standard
deviation of 1/sqrt(2 * 64), 9 percent, of it (Johnson and Lindenstrauss 1984; Achlioptas 2003 for signs).

Needs numpy and torch; made with the versions that the files name.
"""

import json
import math
import pathlib

import numpy
import torch
import torch.nn.functional as F

STEPS = 10
BATCH = 4
CLASSES = 10
LR, MOMENTUM, DECAY = 0.0015, 0.9, 5e-4
SKETCHES = 64
WHOLE = 4096
SEED = 2012
SYNTHETIC = 6  # rng::Purpose::Synthetic
# The streams' first addresses; the second is the number of the parameter tensor or of the step.
WEIGHTS, PICTURES, LABELS, SIGNS = 0, 1, 2, 3


def philox(counter, key):
    """Philox4x32-10 on arrays of counters: four arrays of 32-bit words in uint64."""
    low = numpy.uint64(0xFFFFFFFF)
    counter = [numpy.asarray(c, numpy.uint64) for c in counter]
    key = [int(k) for k in key]
    for _ in range(10):
        p0 = counter[0] * numpy.uint64(0xD2511F53)
        p1 = counter[2] * numpy.uint64(0xCD9E8D57)
        shift = numpy.uint64(32)
        counter = [
            (p1 >> shift) ^ counter[1] ^ numpy.uint64(key[0]),
            p1 & low,
            (p0 >> shift) ^ counter[3] ^ numpy.uint64(key[1]),
            p0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def bits(a, b, length):
    """The first `length` words of rng::Stream::new(SEED, Purpose::Synthetic, a, b), in uint64."""
    h = [int(w) for w in philox([a, 0, b, 0], [SEED, 0])]
    blocks = numpy.arange((length + 3) // 4, dtype=numpy.uint64)
    words = philox([blocks, 0 * blocks, 0 * blocks + numpy.uint64(h[2]), 0 * blocks + numpy.uint64(SYNTHETIC ^ h[3])], h[:2])
    return numpy.stack(words, axis=1).reshape(-1)[:length]


def uniform(a, b, shape, scale, precision=24):
    """Uniform in +-scale, a power of two, on 2**precision values: exact in float32."""
    words = bits(a, b, math.prod(shape)) >> numpy.uint64(32 - precision)
    half = 2.0 ** (precision - 1)
    return torch.from_numpy(((words.astype(numpy.float64) - half) / half * scale).reshape(shape))


def power_of_two(x):
    return 2.0 ** round(math.log2(x))


class AlexNet2012:
    name = "alexnet-2012"
    # Name, weight shape, constant bias. Biases that start at 1 in the paper start at 1/32 here: near 1 a change of
    # 1e-5, which is what the first step makes of conv2's, has only two digits in float32.
    layers = [
        ("conv1", (12, 3, 11, 11), 0.0),
        ("conv2", (32, 6, 5, 5), 0.03125),
        ("conv3", (48, 32, 3, 3), 0.0),
        ("conv4", (48, 24, 3, 3), 0.03125),
        ("conv5", (32, 24, 3, 3), 0.03125),
        ("fc6", (512, 32 * 6 * 6), 0.03125),
        ("fc7", (512, 512), 0.03125),
        ("fc8", (CLASSES, 512), 0.0),
    ]
    # Small pictures and large filters, so that conv1's outputs are large enough for the normalization to matter and
    # its gradient is not: with grey levels as inputs, conv1 moves so fast that one ReLU that rounding turns on or off
    # grows tenfold a step.
    picture_scale = 4.0
    # Weights below the even spread of `start`, so that ten steps do not diverge.
    gain = {"conv1": 2.0, "conv2": 0.5, "conv3": 0.5, "conv4": 0.5, "conv5": 0.5, "fc8": 0.5}

    @staticmethod
    def norm(x):
        """Within each tower; PyTorch divides alpha by n = 5, the paper does not."""
        towers = x.chunk(2, dim=1)
        return torch.cat([F.local_response_norm(t, 5, alpha=5e-4, beta=0.75, k=2.0) for t in towers], dim=1)

    @staticmethod
    def forward(x, p):
        x = F.pad(x, (0, 3, 0, 3))
        x = AlexNet2012.norm(F.relu(F.conv2d(x, *p["conv1"], stride=4)))
        x = F.max_pool2d(x, 3, 2)
        x = AlexNet2012.norm(F.relu(F.conv2d(x, *p["conv2"], padding=2, groups=2)))
        x = F.max_pool2d(x, 3, 2)
        x = F.relu(F.conv2d(x, *p["conv3"], padding=1))
        x = F.relu(F.conv2d(x, *p["conv4"], padding=1, groups=2))
        x = F.relu(F.conv2d(x, *p["conv5"], padding=1, groups=2))
        x = F.max_pool2d(x, 3, 2).flatten(1)
        x = F.relu(F.linear(x, *p["fc6"]))
        x = F.relu(F.linear(x, *p["fc7"]))
        return F.linear(x, *p["fc8"])


class Torchvision:
    name = "torchvision"
    # None: biases are uniform, as PyTorch starts them.
    layers = [
        ("conv1", (8, 3, 11, 11), None),
        ("conv2", (24, 8, 5, 5), None),
        ("conv3", (48, 24, 3, 3), None),
        ("conv4", (32, 48, 3, 3), None),
        ("conv5", (32, 32, 3, 3), None),
        ("fc6", (512, 32 * 6 * 6), None),
        ("fc7", (512, 512), None),
        ("fc8", (CLASSES, 512), None),
    ]
    picture_scale = 2.0
    gain = {"conv1": 0.5, "fc6": 0.5, "fc7": 0.5, "fc8": 0.5}

    @staticmethod
    def forward(x, p):
        x = F.max_pool2d(F.relu(F.conv2d(x, *p["conv1"], stride=4, padding=2)), 3, 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, *p["conv2"], padding=2)), 3, 2)
        x = F.relu(F.conv2d(x, *p["conv3"], padding=1))
        x = F.relu(F.conv2d(x, *p["conv4"], padding=1))
        x = F.relu(F.conv2d(x, *p["conv5"], padding=1))
        x = F.max_pool2d(x, 3, 2).flatten(1)
        x = F.relu(F.linear(x, *p["fc6"]))
        x = F.relu(F.linear(x, *p["fc7"]))
        return F.linear(x, *p["fc8"])


def start(net):
    """Parameter tensors in order, weight then bias of each layer: (name, scale or constant, float64 values)."""
    tensors = []
    for name, shape, bias in net.layers:
        fan_in = math.prod(shape[1:])
        # A uniform spread of sqrt(6 / fan_in) keeps the second moment through a ReLU (He et al. 2015).
        scale = power_of_two(math.sqrt(6 / fan_in)) * net.gain.get(name, 1.0)
        tensors.append((name + ".weight", {"uniform": scale}, uniform(WEIGHTS, len(tensors), shape, scale)))
        if bias is None:
            scale = power_of_two(1 / math.sqrt(fan_in))
            tensors.append((name + ".bias", {"uniform": scale}, uniform(WEIGHTS, len(tensors), shape[:1], scale)))
        else:
            tensors.append((name + ".bias", {"constant": bias}, torch.full(shape[:1], bias, dtype=torch.float64)))
    return tensors


def batch(net, step):
    """Noise of two kinds: every pixel its own, and squares of 32 pixels, which move whole maps and so the biases."""
    fine = uniform(PICTURES, 2 * step, (BATCH, 3, 224, 224), net.picture_scale / 2, 16)
    coarse = uniform(PICTURES, 2 * step + 1, (BATCH, 3, 7, 7), net.picture_scale, 16)
    pictures = fine + coarse.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
    labels = torch.from_numpy((bits(LABELS, step, BATCH) % numpy.uint64(CLASSES)).astype(numpy.int64))
    return pictures, labels


def train(net, dtype, autocast=False):
    """Losses, and the changes of all parameters after the first and the last step."""
    initial = start(net)
    params = [values.to(dtype, copy=True).requires_grad_() for _, _, values in initial]
    named = {name: (params[2 * i], params[2 * i + 1]) for i, (name, _, _) in enumerate(net.layers)}
    sgd = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    losses, changes = [], []
    for step in range(STEPS):
        pictures, labels = batch(net, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net.forward(pictures.to(dtype), named)
        loss = F.cross_entropy(logits.to(dtype), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        if step in (0, STEPS - 1):
            changes.append([p.detach().double() - values for p, (_, _, values) in zip(params, initial)])
    return losses, changes


def sketch(tensor, change):
    """Sum over i of sign_k(i) * change[i] for k < 64; sign_k(i) is bit k % 32 of word 2 i + k / 32, 1 for minus."""
    change = change.reshape(-1).numpy()
    words = bits(SIGNS, tensor, 2 * len(change)).reshape(-1, 2)
    sums = []
    for k in range(SKETCHES):
        bit = (words[:, k // 32] >> numpy.uint64(k % 32)) & numpy.uint64(1)
        sums.append(float(numpy.sum(change * (1.0 - 2.0 * bit.astype(numpy.float64)))))
    return sums


def rounded(values):
    return [float(f"{v:.8e}") for v in values]


def main():
    for net in (AlexNet2012, Torchvision):
        losses, changes = train(net, torch.float64)
        losses32, changes32 = train(net, torch.float32)
        losses16, changes16 = train(net, torch.float32, autocast=True)
        print(net.name, "losses", *(f"{x:.4f}" for x in losses))
        tensors = []
        for t, (name, init, values) in enumerate(start(net)):
            record = {"name": name, "shape": list(values.shape), "init": init, "changes": []}
            for step, exact, single, half in zip((1, STEPS), changes, changes32, changes16):
                norm = exact[t].norm().item()
                error, error16 = ((a[t] - exact[t]).norm().item() / norm for a in (single, half))
                print(f"  {name:12} step {step:2} change {norm:.3e} of {values.norm().item():.3e}, float32 off by {error:.1e}, bfloat16 by {error16:.1e}")
                entry = {"step": step, "norm": float(f"{norm:.8e}"), "float32_error": float(f"{error:.2e}")}
                entry["bfloat16_error"] = float(f"{error16:.2e}")
                if values.numel() <= WHOLE:
                    entry["change"] = rounded(exact[t].reshape(-1).tolist())
                else:
                    entry["sketch"] = rounded(sketch(t, exact[t]))
                record["changes"].append(entry)
            tensors.append(record)
        golden = {
            "network": net.name,
            "made_with": f"torch {torch.__version__}, numpy {numpy.__version__}",
            "seed": SEED,
            "batch": BATCH,
            "classes": CLASSES,
            "steps": STEPS,
            "lr": LR,
            "momentum": MOMENTUM,
            "decay": DECAY,
            "picture_scale": net.picture_scale,
            "losses": rounded(losses),
            "float32_loss_error": max(abs(a - b) for a, b in zip(losses, losses32)),
            "bfloat16_loss_error": max(abs(a - b) for a, b in zip(losses, losses16)),
            "tensors": tensors,
        }
        path = pathlib.Path(__file__).parent / f"{net.name}.json"
        path.write_text(json.dumps(golden, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
