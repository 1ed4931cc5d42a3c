"""Golden numbers for run #145 as it ran: what it makes of 40 pictures in its first steps, in NumPy alone.

    python golden/code_2012.py        writes golden/krizhevsky-2012-code.json

Written from the description of the released code of 2012 (computerhistory/AlexNet-Source-Code: layers/layers-145.cfg,
layers/layer-params-145.cfg, layer.py, convdata_jpeg.py, src/weights.cu), not from this repository's program. From that
program come only the random draws, which the files of 2012 do not fix: a counter-based generator (Philox4x32-10, Salmon
et al. 2011) and what each of its streams is for, as crates/alexnet/src/rng.rs documents it. With the same draws, the
same things must come out:

  views     which part of each picture, mirrored or not, shared by 32 consecutive ones in one fixed order; colour noise
            (x + c sum_k z_k sigma_k p_k) / (1 + c) with c = 0.1; the mean picture subtracted at its centre
  rates     of weights and of biases, of conv1 and of the others, at the epochs around every change
  training  losses, momentum and changes of every tensor after the first step and after the fourth (the first of the
            second epoch), for the layers of #145 at a sixteenth of their width, in float64

The pictures are functions of integers. In their middle all have one colour, so that equal maxima occur in pooling, which
all receive the gradient. Larger tensors are stored as norms and sketches, as golden/train_steps.py explains.
"""

import json
import math
import pathlib

import numpy as np

SEED = 145
SIDE, CROP, CLASSES, PICTURES, BATCH, STEPS = 256, 224, 4, 40, 16, 4
INIT, SHUFFLE, AUGMENT, DROPOUT, SYNTHETIC = 1, 2, 3, 4, 6
MASK32, MASK64 = 2**32 - 1, 2**64 - 1
WHOLE, SKETCHES, SIGNS = 600, 32, 145

# Standard deviations and axes (R, G, B) of ImageNet's colours, cuda-convnet2's input_meta, largest first.
SIGMA = np.array([121.780, 37.094, 19.721])
AXES = np.array([[-0.56351, -0.57618, -0.59200], [-0.71258, -0.02354, 0.70120], [0.41796, -0.81698, 0.39731]])
NOISE = 0.1
SHARED = 32


# The generator.


def philox(counter, key):
    """128 random bits; counter: four 32-bit words (arrays or numbers), key: two."""
    c = [np.asarray(w, np.uint64) for w in counter]
    k = list(key)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        low, shift = np.uint64(MASK32), np.uint64(32)
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> shift) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


class Stream:
    """Random words for one purpose, addressed by two numbers."""

    def __init__(self, purpose, a, b=0):
        h = [int(w) for w in philox([a & MASK32, a >> 32, b & MASK32, b >> 32], [SEED, 0])]
        self.key, self.high, self.place = h[:2], (h[2], purpose ^ h[3]), 0

    def words(self, n):
        blocks = np.arange((n + 3) // 4, dtype=np.uint64)
        zero = np.zeros_like(blocks)
        high = [zero + np.uint64(w) for w in self.high]
        return np.stack(philox([blocks, zero, *high], self.key), axis=1).reshape(-1)[:n]

    def u32(self):
        self.place += 1
        return int(self.words(self.place)[-1])

    def u64(self):
        low = self.u32()
        return low | self.u32() << 32

    def below(self, n):
        return (self.u64() * n) >> 64

    def uniform(self):
        return (self.u64() >> 11) / 2**53

    def normal(self):
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())

    def normals(self, n):
        """The same for many at once: two 64-bit numbers each."""
        words = self.words(4 * n)
        wide = words[0::2] | words[1::2] << np.uint64(32)
        u = (wide >> np.uint64(11)).astype(np.float64) / 2**53
        return np.sqrt(-2 * np.log(1 - u[0::2])) * np.cos(2 * np.pi * u[1::2])


# The pictures.


def picture(n):
    """(SIDE, SIDE, 3), bytes."""
    y, x, c = np.meshgrid(np.arange(SIDE), np.arange(SIDE), np.arange(3), indexing="ij")
    value = (x * (5 + n % 7) + y * (3 + n % 5) + 61 * n + 83 * c + ((x * y * (n + 1)) >> 7)) & 255
    flat = (56 <= y) & (y < 200) & (56 <= x) & (x < 200)
    return np.where(flat, 128, value).astype(np.float64)


def order():
    """Shuffled once, by exchanges from the end; never again."""
    places = list(range(PICTURES))
    stream = Stream(SHUFFLE, 0)
    for i in range(PICTURES - 1, 0, -1):
        j = stream.below(i + 1)
        places[i], places[j] = places[j], places[i]
    return places


def draw(epoch, place, n):
    """Row, column and mirror of the group of 32 that the place is in; the picture's own colour shift."""
    group = Stream(AUGMENT, epoch, 1 << 63 | place // SHARED)
    top, left = group.below(SIDE - CROP + 1), group.below(SIDE - CROP + 1)
    mirrored = group.u32() & 1 == 1
    own = Stream(AUGMENT, epoch, 1 << 32 | n)
    z = np.array([own.normal() for _ in range(3)])
    return top, left, mirrored, NOISE * ((z * SIGMA) @ AXES)


def view(pixels, mean, drawn):
    top, left, mirrored, shift = drawn
    part = pixels[top : top + CROP, left : left + CROP]
    if mirrored:
        part = part[:, ::-1]
    edge = (SIDE - CROP) // 2
    centred = part - mean[edge : edge + CROP, edge : edge + CROP]
    return (centred + shift) / (1 + NOISE)


# The schedule: 91 epochs.


def rates(epoch):
    """Rates of conv1's weights and biases, of the others', and whether there is noise, from this epoch (counted from 0)."""
    weights = 0.01
    for start, rate in [(25, 0.001), (51, 0.0001), (79, 0.00001)]:
        weights = rate if epoch >= start else weights
    biases = 0.02
    conv1 = (weights, biases)
    if epoch >= 67:
        conv1 = (0.00001, 0.00001)
    if epoch >= 72:
        conv1 = (0.0, 0.0)
    return [*conv1, weights, biases, epoch < 67]


# The layers. Each returns its output and a function from the output's gradient to the input's.


def relu(x):
    return np.maximum(x, 0), lambda g: g * (x > 0)


def windows(x, size, stride, out):
    """For each tap the elements that all windows have there."""
    for r in range(size):
        for s in range(size):
            rows, columns = slice(r, r + stride * (out - 1) + 1, stride), slice(s, s + stride * (out - 1) + 1, stride)
            yield r, s, (slice(None), slice(None), rows, columns)


def conv(x, w, b, grads, stride=1, pad=0, groups=1):
    """Windows 1 + ceil((2 pad + size - k) / stride); what lies outside the picture is zero."""
    n, channels, size, _ = x.shape
    filters, per_group, k, _ = w.shape
    out = 1 + math.ceil((2 * pad + size - k) / stride)
    after = max(pad, (out - 1) * stride + k - pad - size)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, after), (pad, after)))
    y = np.zeros((n, filters, out, out)) + b[None, :, None, None]
    # One tap and one channel at a time, so that equal windows have equal sums to the bit.
    for r, s, at in windows(padded, k, stride, out):
        taps = padded[at]
        for f in range(filters):
            first = f // (filters // groups) * per_group
            for c in range(per_group):
                y[:, f] += w[f, c, r, s] * taps[:, first + c]

    def backward(g):
        dw, dx = np.zeros_like(w), np.zeros_like(padded)
        part = filters // groups
        for r, s, at in windows(padded, k, stride, out):
            taps = padded[at]
            for group in range(groups):
                f, c = slice(group * part, group * part + part), slice(group * per_group, (group + 1) * per_group)
                dw[f, :, r, s] = np.einsum("nfpq,ncpq->fc", g[:, f], taps[:, c], optimize=True)
                dx[at][:, c] += np.einsum("nfpq,fc->ncpq", g[:, f], w[f, :, r, s], optimize=True)
        grads.extend([dw, g.sum((0, 2, 3))])
        return dx[:, :, pad : pad + size, pad : pad + size]

    return y, backward


def normalize(x, total, k, a, beta=0.75):
    """x / (k + a S)^beta, S = total(x^2): a sum over a window that is symmetric."""
    d = k + a * total(x * x)
    y = x * d**-beta
    return y, lambda g: g * d**-beta - 2 * a * beta * x * total(g * y / d)


def across_maps(towers):
    """Sums over five maps around each, within its tower."""

    def total(squares):
        result = np.zeros_like(squares)
        width = squares.shape[1] // towers
        for i in range(squares.shape[1]):
            tower = i // width * width
            result[:, i] = squares[:, max(tower, i - 2) : min(tower + width, i + 3)].sum(1)
        return result

    return total


def across_positions(squares):
    """Sums over 5 x 5 positions of the same map, clipped at its edges."""
    size = squares.shape[2]
    padded = np.pad(squares, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return sum(padded[:, :, r : r + size, s : s + size] for r in range(5) for s in range(5))


def pool(x):
    """Maxima of 3 x 3 windows two apart; every element that equals its window's maximum gets the gradient."""
    out = (x.shape[2] - 3) // 2 + 1
    y = np.max([x[at] for _, _, at in windows(x, 3, 2, out)], axis=0)
    ties = sum(((x[at] == y) for _, _, at in windows(x, 3, 2, out))) > 1
    pool.ties += int((ties & (y > 0)).sum())

    def backward(g):
        dx = np.zeros_like(x)
        for _, _, at in windows(x, 3, 2, out):
            dx[at] += g * (x[at] == y)
        return dx

    return y, backward


pool.ties = 0


def linear(x, w, b, grads):
    flat = x.reshape(len(x), -1)

    def backward(g):
        grads.extend([g.T @ flat, g.sum(0)])
        return (g @ w).reshape(x.shape)

    return flat @ w.T + b, backward


def dropout(x, step, layer):
    """Half of the elements pass unchanged; at test time all would be halved."""
    keep = (Stream(DROPOUT, step, layer).words(x.size) >= np.uint64(2**31)).reshape(x.shape)
    return x * keep, lambda g: g * keep


# Name, shape, deviation of the weights, value of the biases: layers-145.cfg at a sixteenth of its widths.
LAYERS = [
    ("conv1", (6, 3, 11, 11), 0.01, 0),
    ("conv2", (16, 3, 5, 5), 0.01, 1),
    ("conv3", (24, 16, 3, 3), 0.03, 0),
    ("conv4", (24, 12, 3, 3), 0.03, 1),
    ("conv5", (16, 12, 3, 3), 0.03, 1),
    ("fc6", (256, 16 * 6 * 6), 0.01, 1),
    ("fc7", (256, 256), 0.01, 1),
    ("fc8", (CLASSES, 256), 0.01, 0),
]


def start():
    tensors = []
    for i, (_, shape, deviation, bias) in enumerate(LAYERS):
        weights = deviation * Stream(INIT, 2 * i).normals(math.prod(shape))
        # The program keeps them in float32.
        tensors.append(weights.astype(np.float32).astype(np.float64).reshape(shape))
        tensors.append(np.full(shape[0], float(bias)))
    return tensors


def gradients(x, labels, p, step):
    """Loss and the gradient of each tensor, averaged over the pictures that are there."""
    grads, back = [], []

    def through(result):
        back.append(result[1])
        return result[0]

    cross = dict(k=2.0, a=1e-4 / 5)
    x = through(conv(x, p[0], p[1], grads, stride=4))
    x = through(normalize(x, across_maps(2), **cross))
    x = through(pool(x))
    x = through(relu(x))
    x = through(conv(x, p[2], p[3], grads, pad=2, groups=2))
    x = through(relu(x))
    x = through(normalize(x, across_maps(2), **cross))
    x = through(normalize(x, across_positions, k=1.0, a=1e-3 / 25))
    x = through(pool(x))
    x = through(conv(x, p[4], p[5], grads, pad=1))
    x = through(relu(x))
    x = through(conv(x, p[6], p[7], grads, pad=1, groups=2))
    x = through(relu(x))
    x = through(conv(x, p[8], p[9], grads, pad=1, groups=2))
    x = through(pool(x))
    x = through(relu(x))
    x = through(linear(x, p[10], p[11], grads))
    x = through(relu(x))
    x = through(dropout(x, step, 18))
    x = through(linear(x, p[12], p[13], grads))
    x = through(relu(x))
    x = through(dropout(x, step, 21))
    x = through(linear(x, p[14], p[15], grads))
    e = np.exp(x - x.max(1, keepdims=True))
    q = e / e.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(q[rows, labels]).mean()
    q[rows, labels] -= 1
    g = q / len(labels)
    for f in reversed(back):
        g = f(g)
    # Pairs were added from the last layer to the first.
    pairs = [grads[i : i + 2] for i in range(0, len(grads), 2)]
    return loss, [tensor for pair in reversed(pairs) for tensor in pair]


def sketch(tensor, change):
    words = Stream(SYNTHETIC, SIGNS, tensor).words(change.size)
    sums = []
    for k in range(SKETCHES):
        minus = (words >> np.uint64(k)) & np.uint64(1)
        sums.append(float(np.sum(change.reshape(-1) * (1.0 - 2.0 * minus.astype(np.float64)))))
    return sums


def rounded(values):
    return [float(f"{v:.7e}") for v in values]


def stored(tensor, values):
    if values.size <= WHOLE:
        return {"norm": float(np.linalg.norm(values)), "whole": rounded(values.reshape(-1).tolist())}
    return {"norm": float(np.linalg.norm(values)), "sketch": rounded(sketch(tensor, values))}


def main():
    pictures = [picture(n) for n in range(PICTURES)]
    mean = np.mean(pictures, axis=0)
    fixed = order()
    probes = [((37 * j + 11) % CROP, (91 * j + 5) % CROP, j % 3) for j in range(9)]
    views, batches = [], []
    for epoch in range(2):
        seen = []
        for place, n in enumerate(fixed):
            drawn = draw(epoch, place, n)
            seen.append((n, view(pictures[n], mean, drawn)))
            views.append(
                {
                    "epoch": epoch,
                    "picture": n,
                    "draw": [drawn[0], drawn[1], int(drawn[2])],
                    "probes": rounded(seen[-1][1][probe] for probe in probes),
                    "means": rounded(seen[-1][1].mean((0, 1))),
                }
            )
        batches += [seen[i : i + BATCH] for i in range(0, PICTURES, BATCH)]

    p = start()
    begin = [t.copy() for t in p]
    v = [np.zeros_like(t) for t in p]
    losses, tensors = [], [{"shape": list(t.shape), "after": []} for t in p]
    for step in range(STEPS):
        x = np.stack([pixels.transpose(2, 0, 1) for _, pixels in batches[step]])
        labels = np.array([n % CLASSES for n, _ in batches[step]])
        loss, grads = gradients(x, labels, p, step)
        losses.append(float(loss))
        for t in range(len(p)):
            rate, decay = (0.02, 0.0) if t % 2 else (0.01, 0.0005)
            v[t] = 0.9 * v[t] - decay * rate * p[t] - rate * grads[t]
            p[t] = p[t] + v[t]
            if step in (0, STEPS - 1):
                entry = {"step": step + 1, "momentum": stored(t, v[t]), "change": stored(t, p[t] - begin[t])}
                tensors[t]["after"].append(entry)
    print("losses", losses, "equal maxima above zero", pool.ties)
    for t, entry in enumerate(tensors):
        print(t, entry["shape"], [f"{a['momentum']['norm']:.2e}" for a in entry["after"]])
    epochs = [0, 24, 25, 50, 51, 66, 67, 71, 72, 78, 79, 90]
    golden = {
        "made_with": f"numpy {np.__version__}",
        "seed": SEED,
        "order": fixed,
        "mean": rounded(mean[y, x, c] for y, x, c in probes),
        "views": views,
        "rates": [{"epoch": e, "conv1": rates(e)[:2], "others": rates(e)[2:4], "noise": rates(e)[4]} for e in epochs],
        "losses": rounded(losses),
        "tensors": tensors,
    }
    path = pathlib.Path(__file__).parent / "krizhevsky-2012-code.json"
    text = json.dumps(golden, separators=(",", ":"))
    path.write_text(text.replace('{"epoch"', '\n{"epoch"').replace('{"shape"', '\n{"shape"') + "\n")


if __name__ == "__main__":
    main()
