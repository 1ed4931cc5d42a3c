//! From a picture of any size to the stored square.

use super::decode::Picture;
use fast_image_resize::images::{CroppedImage, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

/// How a picture becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The shorter side is resized to the square's side and the central square is kept (the paper, §2).
    #[default]
    CentralSquare,
    /// The whole picture is squeezed into the square (Caffe's guide to ImageNet).
    Warp,
}

/// Pictures longer than this many times their shorter side are cut to it first: only the central square is used,
/// and a strip of 65,500×1 must not become 16,768,000×256.
const LONGEST_ASPECT: usize = 8;

/// Resizes pictures; holds the resizer's buffers, so keep one a thread.
#[derive(Default)]
pub struct Squarer(Resizer);

impl Squarer {
    /// The square of `side`×`side` RGB pixels, rows from the top.
    ///
    /// The filter is a triangle widened by the reduction (Pillow's `BILINEAR`, torchvision's antialiased resize);
    /// sizes and offsets are torchvision's: the longer side becomes ⌊side·long/short⌋, the square's offset is half
    /// of what is left, rounded to even.
    ///
    /// Panics if `side` is 0 or the picture has no pixels or not 3 bytes for each.
    pub fn square(&mut self, picture: &Picture, side: usize, fit: Fit) -> Vec<u8> {
        let (w, h) = (picture.width, picture.height);
        assert!(
            side > 0 && w > 0 && h > 0 && picture.pixels.len() == w * h * 3,
            "a picture of {w}×{h} pixels"
        );
        if fit == Fit::Warp {
            return self.resize(picture, (0, 0, w, h), side, side);
        }
        let short = w.min(h);
        let (cut_w, cut_h) = (w.min(short * LONGEST_ASPECT), h.min(short * LONGEST_ASPECT));
        let part = ((w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h);
        let (new_w, new_h) = (side * cut_w / short, side * cut_h / short);
        let resized = self.resize(picture, part, new_w, new_h);
        let (left, top) = (half_to_even(new_w - side), half_to_even(new_h - side));
        if (new_w, new_h) == (side, side) {
            return resized;
        }
        let mut square = Vec::with_capacity(side * side * 3);
        for y in top..top + side {
            let start = (y * new_w + left) * 3;
            square.extend_from_slice(&resized[start..start + side * 3]);
        }
        square
    }

    /// Resizes the part (left, top, width, height) to `new_w`×`new_h`.
    fn resize(
        &mut self,
        picture: &Picture,
        part: (usize, usize, usize, usize),
        new_w: usize,
        new_h: usize,
    ) -> Vec<u8> {
        let (left, top, w, h) = part;
        if part == (0, 0, new_w, new_h) && (picture.width, picture.height) == (new_w, new_h) {
            return picture.pixels.clone();
        }
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        let px = |v: usize| u32::try_from(v).expect("decoded pictures are below 2^32 pixels");
        let source = ImageRef::new(px(picture.width), px(picture.height), &picture.pixels, PixelType::U8x3)
            .expect("three bytes a pixel");
        let source =
            CroppedImage::new(&source, px(left), px(top), px(w), px(h)).expect("the part lies inside");
        let mut target = fast_image_resize::images::Image::new(px(new_w), px(new_h), PixelType::U8x3);
        self.0
            .resize(&source, &mut target, &options)
            .expect("both have the same pixel type and at least a pixel");
        target.into_vec()
    }
}

/// Half of `n`, a half rounded to even: Python's `int(round(n / 2))`.
fn half_to_even(n: usize) -> usize {
    let half = n / 2;
    if n % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Picture {
        let pixels = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x ^ y) as u8]))
            .collect();
        Picture { width, height, pixels }
    }

    #[test]
    fn a_square_of_the_right_size_is_untouched() {
        let p = gradient(64, 64);
        assert_eq!(Squarer::default().square(&p, 64, Fit::CentralSquare), p.pixels);
    }

    #[test]
    fn only_cropping_keeps_the_pixels() {
        // 100×64 at side 64: scale 1, offset 18.
        let p = gradient(100, 64);
        let square = Squarer::default().square(&p, 64, Fit::CentralSquare);
        assert_eq!(square[0..3], [18, 0, 18]);
        assert_eq!(square.len(), 64 * 64 * 3);
        assert_eq!(square[(63 * 64 + 63) * 3], 81);
    }

    #[test]
    fn extreme_strips_stay_small() {
        for (w, h) in [(65_500, 1), (1, 65_500), (1, 1), (9, 1), (3, 2)] {
            let p = Picture { width: w, height: h, pixels: vec![77; w * h * 3] };
            for fit in [Fit::CentralSquare, Fit::Warp] {
                let square = Squarer::default().square(&p, 256, fit);
                assert_eq!(square.len(), 256 * 256 * 3);
                assert!(square.iter().all(|&v| v == 77));
            }
        }
    }

    #[test]
    fn offsets_are_rounded_as_python_does() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 4]);
    }
}
