#!/usr/bin/env python3
"""Rounding of Winograd's minimal filtering in f32, by its points: why `kernels/src/conv/winograd/points.rs` has those it has.

    python3 bench/winograd_points.py

For m outputs of r taps along both axes: the error of forward pass and weight gradient in f32, root mean square and greatest,
over the root mean square of what is computed, on numbers uniform in +-1 (NumPy; ten seconds). The first line of each size
is the choice; others are its neighbours among small fractions, best first.
"""

import itertools
from fractions import Fraction

import numpy as np

HALF = Fraction(1, 2)
CHANNELS = 48
TILES = 200


def matrices(points, m, r):
    """A, B^T, G of m + r - 1 points, infinity being the last; quotients are in A."""
    points = [Fraction(p) for p in points]
    n = m + r - 1
    assert len(points) == n - 1
    last = [Fraction(0)] * n

    def product(without):
        poly = [Fraction(1)]
        for j, q in enumerate(points):
            if j != without:
                poly = [a - q * b for a, b in zip([Fraction(0)] + poly, poly + [Fraction(0)])]
        return poly + [Fraction(0)] * (n - len(poly))

    def powers(p, count):
        return [p**k for k in range(count)]

    a, b, g = [], [], []
    for i, p in enumerate(points):
        norm = Fraction(1)
        for j, q in enumerate(points):
            norm *= p - q if j != i else 1
        a.append([v / norm for v in powers(p, m)])
        b.append(product(i))
        g.append(powers(p, r))
    a.append(last[: m - 1] + [Fraction(1)])
    b.append(product(None))
    g.append(last[: r - 1] + [Fraction(1)])
    return [np.array([[float(v) for v in row] for row in matrix]) for matrix in (a, b, g)]


def errors(points, m, r):
    rng = np.random.default_rng(1980)
    n = m + r - 1
    d, g, dy = (rng.uniform(-1, 1, (TILES, CHANNELS, k, k)).astype(np.float32) for k in (n, r, m))

    def compute(kind):
        A, B, G = (matrix.astype(kind) for matrix in matrices(points, m, r))
        v = B @ d.astype(kind) @ B.T
        forward = A.T @ (v * (G @ g.astype(kind) @ G.T)).sum(1) @ A
        gradient = G.T @ (v * (A @ dy.astype(kind) @ A.T)).sum(1) @ G
        return forward, gradient

    result = []
    for got, want in zip(compute(np.float32), compute(np.float64)):
        scale = np.sqrt((want**2).mean())
        error = np.abs(got - want) / scale
        result += [np.sqrt((error**2).mean()), error.max()]
    return result


def main():
    chosen = [0, 1, -1, HALF, -2, -HALF, 2]
    others = [Fraction(a, b) for a, b in ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2), (3, 4), (4, 3), (2, 5), (5, 2))]
    others += [-p for p in others]
    for m, r in ((2, 3), (4, 3), (2, 5), (4, 5)):
        print(f"\n{m} outputs of {r} taps          forward: rms      max   gradient: rms      max")
        points = chosen[: m + r - 2]
        rows = [points]
        if len(points) > 3:
            free = len(points) - 3
            # Of five and more free points, those in pairs of opposite sign: all would take hours.
            sets = (c for c in itertools.combinations(others, free) if free < 4 or len({abs(p) for p in c}) == 2)
            rows += sorted((chosen[:3] + list(c) for c in sets), key=lambda p: max(errors(p, m, r)[::2]))[:4]
        for points in rows:
            text = ", ".join(map(str, points))
            print(f"{text:36s}" + "  ".join(f"{value:9.2e}" for value in errors(points, m, r)))


if __name__ == "__main__":
    main()
