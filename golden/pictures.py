"""Makes the picture fixtures of the data tests: what Pillow decodes and resizes is what the library must.

    python golden/pictures.py

writes, into crates/alexnet/tests/fixtures:
  cmyk.jpg         Adobe CMYK (inverted, as Photoshop writes it), 40x24
  ycck.jpg         the same samples marked as YCCK
  decoded.bin      Pillow's RGB of cmyk.jpg and then of ycck.jpg, 2 x 24 x 40 x 3 bytes
  orient-N.jpg     EXIF orientation N = 1..8 of one scene, stored so that all show the same upright picture
  resize-in.png    a drawn picture, 97x61
  resize-out.bin   Pillow's BILINEAR of it: to 63x40, then 16x16, then 130x130, RGB bytes

Made with Pillow 13.0.0 and numpy 2.4.6. The pictures are computed here; nobody else's are used.
"""

import io
import pathlib

import numpy as np
from PIL import Image

here = pathlib.Path(__file__).resolve().parent.parent / "crates/alexnet/tests/fixtures"
here.mkdir(parents=True, exist_ok=True)


def smooth(height, width, channels):
    """Slow waves, so that JPEG keeps them nearly exactly."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (7 + 3 * c) + y / (9 - c) + c) for c in range(channels)]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)


# CMYK and YCCK differ in the transform byte of the Adobe segment alone: 0 and 2.
buffer = io.BytesIO()
Image.fromarray(smooth(24, 40, 4), "CMYK").save(buffer, "JPEG", quality=95, subsampling=0)
cmyk = buffer.getvalue()
at = cmyk.index(b"Adobe") + 11
assert cmyk[at] == 0
ycck = cmyk[:at] + b"\x02" + cmyk[at + 1 :]
(here / "cmyk.jpg").write_bytes(cmyk)
(here / "ycck.jpg").write_bytes(ycck)
decoded = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in (cmyk, ycck)]
assert np.abs(decoded[0].astype(int) - decoded[1]).max() > 50  # they do differ
(here / "decoded.bin").write_bytes(b"".join(d.tobytes() for d in decoded))

# Orientation: what is stored is the upright picture taken back through the turn that the mark asks for.
upright = Image.fromarray(smooth(16, 32, 3))
back = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
for mark, turn in back.items():
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = mark
    stored.save(here / f"orient-{mark}.jpg", quality=95, subsampling=0, exif=exif)

# Resizing: edges, fine texture and slow waves.
y, x = np.mgrid[0:61, 0:97]
scene = smooth(61, 97, 3).astype(int)
scene[(x // 3 + y // 3) % 2 == 0] += 60
scene[20:40, 30:70] = [250, 10, 128]
scene[(x - y) % 17 == 0] = 0
scene = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
scene.save(here / "resize-in.png", optimize=True)
sizes = [(63, 40), (16, 16), (130, 130)]
(here / "resize-out.bin").write_bytes(
    b"".join(scene.resize(s, Image.Resampling.BILINEAR).tobytes() for s in sizes)
)
