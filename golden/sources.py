"""Makes the fixtures of the tests of data sources: files as other programs write them.

    python golden/sources.py

writes, into crates/alexnet/tests/fixtures:
  meta-2012.mat        five synsets, three of them classes, in the shape of ILSVRC-2012's meta.mat; compressed
  meta-2010.mat        the same for ILSVRC-2010, not compressed
  train.parquet        18 pictures of three classes as Hugging Face's `datasets` writes them, in two row groups
  validation.parquet   6 more
  plain.parquet        three pictures as plain bytes, labels as names, packed with Snappy and without metadata

Made with scipy 1.17.1, datasets 5.2.0, pyarrow 26.0.1 and Pillow 13.0.0; the pictures are computed here.
"""

import io
import pathlib

import datasets
import numpy as np
import pyarrow.parquet
import scipy.io
from PIL import Image

here = pathlib.Path(__file__).resolve().parent.parent / "crates/alexnet/tests/fixtures"

# Ids are in another order than the names; a synset with children is no class.
SYNSETS = [
    (1, "n00000030", "blue thing, azure thing", 0),
    (2, "n00000010", "green thing", 0),
    (3, "n00000020", "red thing", 0),
    (4, "n00000002", "thing", 2),
    (5, "n00000001", "entity", 1),
]


def meta(year, compressed):
    fields = [f"{year}_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"]
    synsets = np.zeros((len(SYNSETS), 1), dtype=[(f, object) for f in fields])
    for i, (number, wnid, words, children) in enumerate(SYNSETS):
        below = np.arange(1, children + 1, dtype=float).reshape(1, -1)
        row = [float(number), wnid, words, f"what is called {words}", float(children), below, 3.0, 12.0]
        synsets[i, 0] = tuple(row)
    path = here / f"meta-{year[-4:]}.mat"
    # Another variable stands before it, as in ILSVRC-2010's.
    scipy.io.savemat(path, {"cost_matrix": np.eye(3), "synsets": synsets}, do_compression=compressed)
    # The header begins with words and a date.
    path.write_bytes(b"MATLAB 5.0 MAT-file, written by scipy".ljust(116) + path.read_bytes()[116:])


def picture(label, i):
    """The scene of the tests of the program: noise, and one strong channel."""
    y, x = np.mgrid[0:20, 0:24]
    noise = (x * 7 + y * 13 + i * 31) % 50
    pixels = np.repeat(noise[..., None], 3, -1)
    pixels[..., 2 - label] = 180 + noise
    return Image.fromarray(pixels.astype(np.uint8))


def shard(name, numbers, group):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "green", "red"])}
    )
    rows = [{"image": picture(i % 3, i), "label": i % 3} for i in numbers]
    whole = datasets.Dataset.from_list(rows, features=features)
    whole.to_parquet(here / f"{name}.parquet", batch_size=group)
    print(name, pyarrow.parquet.ParquetFile(here / f"{name}.parquet").metadata)


meta("ILSVRC2012", True)
meta("ILSVRC2010", False)
shard("train", range(18), 10)
shard("validation", range(18, 24), 10)


def plain():
    def png(label):
        buffer = io.BytesIO()
        picture(label, label).save(buffer, "PNG")
        return buffer.getvalue()

    names = ["blue", "green", "red"]
    table = pyarrow.table({"class": names, "jpg": [png(label) for label in range(3)]})
    options = {"compression": "snappy", "store_schema": False}
    pyarrow.parquet.write_table(table, here / "plain.parquet", **options)


plain()
