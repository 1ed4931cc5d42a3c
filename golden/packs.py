"""Makes the fixtures that pin decoding, resizing and colour statistics to Pillow, torchvision, OpenCV and NumPy.

    python golden/packs.py

writes, into crates/alexnet/tests/fixtures:
  kinds/*          one small picture in many forms of file, 40x24 (one 37x21)
  kinds.bin        Pillow's RGB of each, in the order of the names, (height, width, 3)
  framed.bin       resize-in.png (of pictures.py, 97x61) resized and cut by the rules below, RGB bytes one after the other
and golden/statistics.json: NumPy's statistics of pictures that both languages compute.

Made with Pillow 13.0.0, torch 2.15.0, torchvision 0.29.2, opencv-python-headless 5.0.0, numpy 2.4.6. The pictures are
computed here; nobody else's are used.
"""

import io
import json
import pathlib

import cv2
import numpy as np
import torch
import torchvision.transforms.functional as pil_functional
import torchvision.transforms.v2.functional as functional
from PIL import Image
from torchvision.transforms import InterpolationMode

golden = pathlib.Path(__file__).resolve().parent
fixtures = golden.parent / "crates/alexnet/tests/fixtures"
kinds = fixtures / "kinds"
kinds.mkdir(parents=True, exist_ok=True)

# ---- forms of files: slow waves, one sharp coloured edge so that chroma upsampling shows.
y, x = np.mgrid[0:24, 0:40]
waves = np.stack([127 + 90 * np.sin(x / (7 + 3 * c) + y / (9 - c) + c) for c in range(4)], -1)
waves = waves.clip(0, 255).astype(np.uint8)
scene = waves[..., :3].copy()
scene[6:15, 11:26] = [200, 40, 90]
rgb = Image.fromarray(scene)


def save(name, picture, **options):
    picture.save(kinds / name, **options)


save("baseline-420.jpg", rgb, quality=90, subsampling=2)
save("baseline-422.jpg", rgb, quality=90, subsampling=1)
save("baseline-444.jpg", rgb, quality=90, subsampling=0)
save("odd-size-420.jpg", rgb.crop((0, 0, 37, 21)), quality=90, subsampling=2)
save("progressive-420.jpg", rgb, quality=90, subsampling=2, progressive=True)
save("progressive-444.jpg", rgb, quality=90, subsampling=0, progressive=True)
save("restart-420.jpg", rgb, quality=90, subsampling=2, restart_marker_blocks=1)
save("restart-rows-444.jpg", rgb, quality=90, subsampling=0, restart_marker_rows=1)
save("gray.jpg", rgb.convert("L"), quality=90)
save("rgb.jpg", rgb, quality=90, keep_rgb=True)
save("palette.png", rgb.quantize(16))
save("one-bit.png", rgb.convert("1"))
save("gray-alpha.png", Image.merge("LA", [rgb.convert("L"), Image.fromarray(waves[..., 3])]))
save("alpha.png", Image.merge("RGBA", [*rgb.split(), Image.fromarray(waves[..., 3])]))
transparent = rgb.quantize(16)
save("palette-transparent.png", transparent, transparency=3)
save("palette.gif", rgb.quantize(64))
save("lossless.webp", rgb, lossless=True)
save("plain.bmp", rgb)
save("tiled.tif", rgb, compression="tiff_lzw")
# Adobe YCCK with halved chroma, as Photoshop writes it: CMYK inverted, the transform byte 2.
buffer = io.BytesIO()
Image.fromarray(waves, "CMYK").save(buffer, "JPEG", quality=95, subsampling=0)
cmyk = buffer.getvalue()
at = cmyk.index(b"Adobe") + 11
(kinds / "ycck.jpg").write_bytes(cmyk[:at] + b"\x02" + cmyk[at + 1 :])
(kinds / "cmyk.jpg").write_bytes(cmyk)
# Sixteen bits: what Pillow cannot show as RGB itself is compared with the value over 257.
deep = (waves[..., 0].astype(np.uint16) * 257 + (x + y).astype(np.uint16)).astype(np.uint16)
Image.fromarray(deep).save(kinds / "sixteen-bit-gray.png")
cv2.imwrite(str(kinds / "sixteen-bit-rgb.png"), np.ascontiguousarray(np.stack([deep, deep // 2, 65535 - deep], -1)[..., ::-1]))
expected = {}
for path in sorted(kinds.iterdir()):
    if path.name == "sixteen-bit-gray.png":
        shown = np.repeat(np.rint(deep / 257)[..., None], 3, -1).astype(np.uint8)
    elif path.name == "sixteen-bit-rgb.png":
        shown = np.rint(np.stack([deep, deep // 2, 65535 - deep], -1) / 257).astype(np.uint8)
    else:
        shown = np.asarray(Image.open(path).convert("RGB"))
    expected[path.name] = shown.tobytes()
(fixtures / "kinds.bin").write_bytes(b"".join(expected.values()))

# ---- resizing
photo = Image.open(fixtures / "resize-in.png").convert("RGB")
array = np.asarray(photo)
tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
out = []


def add(pixels):
    out.append(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())


def hwc(t):
    return t.permute(1, 2, 0).numpy()


# 1: torchvision on tensors, shorter side 40, central 40x40.
add(hwc(functional.center_crop(functional.resize(tensor, [40], antialias=True), [40, 40])))
# 2: the same, bicubic.
cubic = InterpolationMode.BICUBIC
add(hwc(functional.center_crop(functional.resize(tensor, [40], interpolation=cubic, antialias=True), [40, 40])))
# 3: Pillow, bicubic, squeezed to 30x30.
add(photo.resize((30, 30), Image.Resampling.BICUBIC))
# 4, 5: torchvision's resized_crop on Pillow pictures: a part of 50x40 at (31, 9) to 28x28, one of 15x11 at (70, 40).
add(pil_functional.resized_crop(photo, 9, 31, 40, 50, [28, 28]))
add(pil_functional.resized_crop(photo, 40, 70, 11, 15, [28, 28]))


def tool_of_2014(picture, side):
    """make-data of cuda-convnet2: sizes rounded, area or cubic, offset rounded down."""
    h, w = picture.shape[:2]
    scale = side / min(h, w)
    new_h, new_w = int(np.floor(scale * h + 0.5)), int(np.floor(scale * w + 0.5))
    how = cv2.INTER_LINEAR if scale == 1 else cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    big = cv2.resize(picture, (new_w, new_h), interpolation=how)
    top, left = (new_h - side) // 2, (new_w - side) // 2
    return big[top : top + side, left : left + side]


# 6, 7: the tool of 2014, shrinking to 40 and enlarging to 75.
add(tool_of_2014(array, 40))
add(tool_of_2014(array, 75))
# 8: OpenCV's area alone, to 33x20.
add(cv2.resize(array, (33, 20), interpolation=cv2.INTER_AREA))
# 9, 10: OpenCV's linear, as Caffe's convert_imageset: to 33x20 and to 130x70.
add(cv2.resize(array, (33, 20), interpolation=cv2.INTER_LINEAR))
add(cv2.resize(array, (130, 70), interpolation=cv2.INTER_LINEAR))
(fixtures / "framed.bin").write_bytes(b"".join(out))

# ---- statistics: n pictures of side 16, byte i of picture k is (i² + 31·i·k + 77·k + i div 7) mod 251.
n, side = 9, 16
i = np.arange(side * side * 3, dtype=np.int64)
pictures = np.stack([(i * i + 31 * i * k + 77 * k + i // 7) % 251 for k in range(n)]).astype(np.float64)
pictures = pictures.reshape(n, side, side, 3)
pixels = pictures.reshape(-1, 3)
covariance = np.cov(pixels, rowvar=False, bias=True)
values, vectors = np.linalg.eigh(covariance)
axes = vectors.T[::-1]
axes = axes * np.sign(axes[:, :1])
statistics = {
    "mean_picture": pictures.mean(0).ravel().tolist(),
    "channel_mean": pixels.mean(0).tolist(),
    "channel_std": pixels.std(0).tolist(),
    "covariance": covariance.tolist(),
    "sigma": np.sqrt(values[::-1]).tolist(),
    "axes": axes.tolist(),
}
(golden / "statistics.json").write_text(json.dumps(statistics) + "\n")
print(len(expected), "files,", sum(map(len, out)), "bytes of resized pictures")
