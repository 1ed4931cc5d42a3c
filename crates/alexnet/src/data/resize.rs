//! From a picture of any size to the stored square, to the whole picture at the stored size, or to the part that a
//! network sees.

use super::decode::Picture;
use super::resample::{Part, Rule, resample};
use super::spare::Spare;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
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

/// How a picture is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// A triangle, widened by the reduction: Pillow's `BILINEAR`, torchvision's antialiased resize.
    #[default]
    Bilinear,
    /// The mean of the area that each new pixel covers: OpenCV's `INTER_AREA` when shrinking.
    Area,
    /// Keys' cubic with a = −1/2, widened by the reduction: Pillow's and torchvision's `BICUBIC`.
    Cubic,
    /// The tool of 2014 (cuda-convnet2's `make-data`): OpenCV's `INTER_AREA` when shrinking and its `INTER_CUBIC`
    /// (a = −3/4) when enlarging; the longer side is rounded and the square's offset rounded down.
    AreaCubic,
    /// Caffe's `convert_imageset`: OpenCV's `INTER_LINEAR`, between the nearest pixels whatever the reduction.
    Linear,
}

/// How pictures are brought to the stored size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Side of the square and shorter side of the whole picture, pixels.
    pub side: usize,
    /// How a picture becomes a square.
    pub fit: Fit,
    /// How it is resized.
    pub resize: Filter,
}

/// Pictures longer than this many times their shorter side are cut to it first: a strip of 65,500×1 must not become
/// 16,768,000×256.
pub(super) const LONGEST_ASPECT: usize = 8;

/// A rectangle of decoded RGB pixels, borrowed from where they are stored or decoded for the purpose.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// Three bytes a pixel, rows from the top.
    pub pixels: std::borrow::Cow<'a, [u8]>,
    /// Pixels from one row to the next.
    pub row_px: usize,
    /// Columns left of the rectangle.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
}

impl<'a> Frame<'a> {
    /// All of a picture, (height, width, 3).
    pub fn whole(pixels: impl Into<std::borrow::Cow<'a, [u8]>>, width: usize, height: usize) -> Self {
        Frame { pixels: pixels.into(), row_px: width, left: 0, top: 0, width, height }
    }

    /// The pixels of a picture that has been decoded.
    pub fn of(picture: Picture) -> Frame<'static> {
        Frame::whole(picture.pixels, picture.width, picture.height)
    }

    /// The square of `side` pixels in its middle, as `filter`'s tool places it.
    pub fn central_square(mut self, side: usize, filter: Filter) -> Self {
        self.left += middle(self.width - side, filter);
        self.top += middle(self.height - side, filter);
        (self.width, self.height) = (side, side);
        self
    }

    /// The pixels alone, (height, width, 3).
    pub fn to_pixels(&self) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(self.width * self.height * 3);
        for y in self.top..self.top + self.height {
            let start = (y * self.row_px + self.left) * 3;
            pixels.extend_from_slice(&self.pixels[start..start + self.width * 3]);
        }
        pixels
    }

    fn part(&self) -> Part<'_> {
        let Frame { ref pixels, row_px, left, top, width, height } = *self;
        Part { pixels, row_px, left, top, width, height }
    }
}

/// A rectangle of a picture that has been resized, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// Resizes pictures; holds the resizer's buffers and those of pictures that are done with, so keep one a thread.
#[derive(Debug, Default)]
pub struct Squarer {
    resizer: Resizer,
    spare: Spare,
}

impl Squarer {
    /// Memory for `len` bytes, used before if there is such; what is in it is arbitrary.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        self.spare.take(len)
    }

    /// Takes back pixels, or other bytes, that are done with: the next results are put there.
    pub fn give(&mut self, bytes: Vec<u8>) {
        self.spare.give(bytes);
    }

    /// The square of `side`×`side` RGB pixels, rows from the top.
    ///
    /// Sizes and offsets are torchvision's (the longer side becomes ⌊side·long/short⌋, the square's offset is half of
    /// what is left, rounded to even), or those of the tool of 2014 with [`Filter::AreaCubic`].
    ///
    /// Panics if `side` is 0 or the picture has no pixels or not 3 bytes for each.
    pub fn square(&mut self, picture: &Picture, framing: Framing) -> Vec<u8> {
        let Framing { side, fit, resize } = framing;
        if fit == Fit::Warp {
            let frame = Frame::whole(&picture.pixels[..], picture.width, picture.height);
            assert!(side > 0, "a square of no pixels");
            return self.resized(&frame, side, side, resize);
        }
        let (frame, width, height) = scaled(picture, framing);
        let (left, top) = (middle(width - side, resize), middle(height - side, resize));
        self.resized_part(&frame, (width, height), Window { left, top, width: side, height: side }, resize)
    }

    /// The whole picture with its shorter side resized to `side`, whatever `fit` says: pixels, width, height. What is
    /// more than eight times as long as it is wide is cut to that in the middle.
    ///
    /// Panics as [`Squarer::square`].
    pub fn whole(&mut self, picture: &Picture, framing: Framing) -> (Vec<u8>, usize, usize) {
        let (frame, width, height) = scaled(picture, framing);
        (self.resized(&frame, width, height, framing.resize), width, height)
    }

    /// A rectangle resized to `new_w`×`new_h`. What lies around it has no influence.
    pub fn resized(&mut self, frame: &Frame, new_w: usize, new_h: usize, filter: Filter) -> Vec<u8> {
        let all = Window { left: 0, top: 0, width: new_w, height: new_h };
        self.resized_part(frame, (new_w, new_h), all, filter)
    }

    /// As much of a rectangle, resized to `new` (width, height), as shows in the window: the pixels that cutting it from
    /// all of them would give.
    fn resized_part(
        &mut self,
        frame: &Frame,
        new: (usize, usize),
        window: Window,
        filter: Filter,
    ) -> Vec<u8> {
        let rule = match filter {
            _ if (frame.width, frame.height) == new => return self.cut(frame, window),
            Filter::Bilinear => return self.convolve(frame, new, window, FilterType::Bilinear),
            Filter::Cubic => return self.cubic(frame, new, window),
            Filter::AreaCubic if new.0 > frame.width || new.1 > frame.height => Rule::Cubic,
            Filter::Linear => Rule::Linear,
            Filter::Area | Filter::AreaCubic => Rule::Area,
        };
        let pixels = resample(frame.part(), new.0, new.1, rule);
        if (window.width, window.height) == new {
            return pixels;
        }
        self.cut(&Frame::whole(pixels, new.0, new.1), window)
    }

    fn cut(&mut self, frame: &Frame, window: Window) -> Vec<u8> {
        let Window { left, top, width, height } = window;
        let mut pixels = self.spare.take(width * height * 3);
        pixels.clear();
        for y in frame.top + top..frame.top + top + height {
            let start = (y * frame.row_px + frame.left + left) * 3;
            pixels.extend_from_slice(&frame.pixels[start..start + width * 3]);
        }
        pixels
    }

    /// Pillow clips what a cubic overshoots after the rows and again after the columns.
    fn cubic(&mut self, frame: &Frame, new: (usize, usize), window: Window) -> Vec<u8> {
        if new.0 == frame.width || new.1 == frame.height {
            return self.convolve(frame, new, window, FilterType::CatmullRom);
        }
        let of_rows = Window { top: 0, height: frame.height, ..window };
        let rows = self.convolve(frame, (new.0, frame.height), of_rows, FilterType::CatmullRom);
        let rows = Frame::whole(rows, window.width, frame.height);
        let of_columns = Window { left: 0, ..window };
        let pixels = self.convolve(&rows, (window.width, new.1), of_columns, FilterType::CatmullRom);
        self.spare.give(rows.pixels.into_owned());
        pixels
    }

    fn convolve(
        &mut self,
        frame: &Frame,
        new: (usize, usize),
        window: Window,
        filter: FilterType,
    ) -> Vec<u8> {
        // Begin and length of the part of `from` source pixels that becomes `length` of `to` pixels from `begin` on.
        let part = |from: usize, to: usize, begin: usize, length: usize| {
            let begin = (begin * from) as f64 / to as f64;
            (begin, ((length * from) as f64 / to as f64).min(from as f64 - begin))
        };
        let (left, width) = part(frame.width, new.0, window.left, window.width);
        let (top, height) = part(frame.height, new.1, window.top, window.height);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(filter))
            .use_alpha(false)
            .crop(left, top, width, height);
        let px = |v: usize| u32::try_from(v).expect("decoded pictures are below 2^32 pixels");
        let rows = frame.pixels.len() / (frame.row_px * 3);
        let source = TypedImageRef::<U8x3>::from_buffer(px(frame.row_px), px(rows), &frame.pixels)
            .expect("three bytes a pixel");
        let (left, top) = (px(frame.left), px(frame.top));
        let source = TypedCroppedImage::from_ref(&source, left, top, px(frame.width), px(frame.height))
            .expect("the part lies inside");
        let mut pixels = self.spare.take_filled(window.width * window.height * 3);
        let mut target = TypedImage::<U8x3>::from_buffer(px(window.width), px(window.height), &mut pixels)
            .expect("three bytes a pixel");
        // Views that know their pixels' type: of one that does not, the compiler makes code for all fifteen.
        self.resizer
            .resize_typed(&source, &mut target, &options)
            .expect("both have at least a pixel, and the window lies inside");
        pixels
    }
}

/// What of a picture is resized, and its new width and height.
fn scaled(picture: &Picture, framing: Framing) -> (Frame<'_>, usize, usize) {
    let Framing { side, resize, .. } = framing;
    let (w, h) = (picture.width, picture.height);
    assert!(side > 0 && w > 0 && h > 0 && picture.pixels.len() == w * h * 3, "a picture of {w}×{h} pixels");
    let short = w.min(h);
    let (width, height) = (w.min(short * LONGEST_ASPECT), h.min(short * LONGEST_ASPECT));
    let (left, top) = ((w - width) / 2, (h - height) / 2);
    let frame = Frame { left, top, width, height, ..Frame::whole(&picture.pixels[..], w, h) };
    let scaled = |length: usize| match resize {
        Filter::AreaCubic => (side * length * 2 + short) / (2 * short),
        _ => side * length / short,
    };
    (frame, scaled(width), scaled(height))
}

/// Where a square begins when `room` pixels are left over.
fn middle(room: usize, filter: Filter) -> usize {
    match filter {
        Filter::AreaCubic => room / 2,
        _ => half_to_even(room),
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
    use crate::rng::{Purpose, Stream};

    fn gradient(width: usize, height: usize) -> Picture {
        let pixels = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x ^ y) as u8]))
            .collect();
        Picture { width, height, pixels }
    }

    fn framing(side: usize) -> Framing {
        Framing { side, fit: Fit::CentralSquare, resize: Filter::Bilinear }
    }

    #[test]
    fn a_square_of_the_right_size_is_untouched() {
        let p = gradient(64, 64);
        assert_eq!(Squarer::default().square(&p, framing(64)), p.pixels);
    }

    #[test]
    fn only_cropping_keeps_the_pixels() {
        // 100×64 at side 64: scale 1, offset 18.
        let p = gradient(100, 64);
        let square = Squarer::default().square(&p, framing(64));
        assert_eq!(square[0..3], [18, 0, 18]);
        assert_eq!(square.len(), 64 * 64 * 3);
        assert_eq!(square[(63 * 64 + 63) * 3], 81);
    }

    #[test]
    fn a_square_is_the_middle_of_the_whole() {
        let mut squarer = Squarer::default();
        let mut random = Stream::new(8, Purpose::Synthetic, 0, 0);
        for (w, h) in [(50, 37), (37, 50), (500, 375), (80, 33), (33, 64), (21, 20), (17, 120), (40, 33)] {
            let pixels = (0..w * h * 3).map(|_| random.below(256) as u8).collect();
            let picture = Picture { width: w, height: h, pixels };
            for resize in [Filter::Bilinear, Filter::Cubic, Filter::Area, Filter::AreaCubic, Filter::Linear] {
                for side in [16, 33, 64] {
                    let framing = Framing { side, fit: Fit::CentralSquare, resize };
                    let (whole, width, height) = squarer.whole(&picture, framing);
                    let middle = Frame::whole(whole, width, height).central_square(side, resize);
                    let square = squarer.square(&picture, framing);
                    let cut = middle.to_pixels();
                    // The weights, which the resizer rounds, begin at another place.
                    let rounding = u8::from(matches!(resize, Filter::Bilinear | Filter::Cubic));
                    let most = square.iter().zip(&cut).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                    let other = square.iter().zip(&cut).filter(|(a, b)| a != b).count();
                    assert!(
                        square.len() == cut.len() && most <= rounding && other * 50 <= square.len(),
                        "{w}×{h} to {side}, {resize:?}: {other} differ, by at most {most}"
                    );
                    // Memory that is used again changes nothing.
                    squarer.give(square);
                    squarer.give(middle.pixels.into_owned());
                }
            }
        }
    }

    #[test]
    fn extreme_strips_stay_small() {
        for (w, h) in [(65_500, 1), (1, 65_500), (1, 1), (9, 1), (3, 2)] {
            let p = Picture { width: w, height: h, pixels: vec![77; w * h * 3] };
            for fit in [Fit::CentralSquare, Fit::Warp] {
                for resize in
                    [Filter::Bilinear, Filter::Area, Filter::Cubic, Filter::AreaCubic, Filter::Linear]
                {
                    let framing = Framing { side: 256, fit, resize };
                    let square = Squarer::default().square(&p, framing);
                    assert_eq!(square.len(), 256 * 256 * 3);
                    assert!(square.iter().all(|&v| v == 77));
                    let (whole, width, height) = Squarer::default().whole(&p, framing);
                    assert_eq!((whole.len(), width.min(height)), (width * height * 3, 256));
                    assert!(width.max(height) <= 256 * LONGEST_ASPECT);
                }
            }
        }
    }

    #[test]
    fn the_tool_of_2014_rounds_the_longer_side() {
        // 100×30 at side 10 is 33.3×10; 50×30 is 16.7×10, which torchvision makes 16 and the tool 17.
        let size = |w: usize, resize| {
            let p = Picture { width: w, height: 30, pixels: vec![1; w * 30 * 3] };
            Squarer::default().whole(&p, Framing { resize, ..framing(10) }).1
        };
        assert_eq!([size(100, Filter::AreaCubic), size(50, Filter::AreaCubic)], [33, 17]);
        assert_eq!([size(100, Filter::Bilinear), size(50, Filter::Bilinear)], [33, 16]);
    }

    #[test]
    fn offsets_are_rounded_as_python_does() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 4]);
    }
}
