//! Views of stored pictures as numbers, written straight into the layout that the first layer reads: crop, mirror,
//! colour, mean and scale in one pass over the pixels.

use super::augment::{Augment, Key, Region, View};
use super::pack::Keep;
use super::preprocess::{MeanAt, Preprocess};
use super::resize::{Filter, Fit, Frame, Squarer};
use crate::exec::contract::InputLayout;
use alexnet_kernels::bf16::convert::round_values;
use alexnet_kernels::parallel::ChunkWork;
use alexnet_kernels::pixels::copy_row;
use alexnet_kernels::{Context, Isa};
use std::borrow::Cow;

/// Writes views of stored pictures as numbers for a network.
#[derive(Clone, Debug)]
pub struct Painter {
    side: usize,
    keep: Keep,
    fit: Fit,
    resize: Filter,
    crop: usize,
    factor: [f32; 3],
    offset: [f32; 3],
    /// The mean picture times the factor, (side, side, 3), and after it the same mirrored; a row of zeros with channel means.
    mean: Vec<f32>,
    has_mean: bool,
    mean_at: MeanAt,
    augment: Augment,
}

/// A view, drawn and ready to be written row by row.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    /// Of the crop's size.
    frame: Frame<'a>,
    mirrored: bool,
    /// Of each channel, again and again.
    factor: [f32; LONGEST_RUN],
    /// The same of what is added.
    offset: [f32; LONGEST_RUN],
    /// What the mean picture is multiplied by: 1, or 1/(1 + c) under colour noise.
    mean_factor: f32,
    /// Which part of the mean picture is subtracted: left, top, mirrored.
    mean_part: (usize, usize, bool),
}

impl<'a> Prepared<'a> {
    /// Its pixels alone.
    pub(super) fn into_frame(self) -> Frame<'a> {
        self.frame
    }
}

/// Most numbers of a picture that lie side by side in a layout and are written at once: 16 columns, three vectors of 16.
const LONGEST_RUN: usize = 48;

/// Rows under construction; one a thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// A row of each picture, (pictures, W, C), mirrored where the view is.
    bytes: Vec<u8>,
    /// Where in the painter's mean what is subtracted from each begins.
    means: Vec<usize>,
    /// A row in f32, before it is rounded.
    row: Vec<f32>,
}

/// What pixels become.
pub trait Value: Copy + Default + Send {
    /// As [`Painter::write_rows`].
    fn write_rows(
        painter: &Painter,
        views: &[Option<Prepared>],
        layout: &InputLayout,
        first: usize,
        rows: &mut [Self],
        scratch: &mut Scratch,
    );
}

impl Value for f32 {
    fn write_rows(
        painter: &Painter,
        views: &[Option<Prepared>],
        layout: &InputLayout,
        first: usize,
        rows: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let mut ctx = any_tier();
        for (y, row) in (first..painter.crop).zip(rows.chunks_exact_mut(layout.row_len())) {
            painter.write_row(&mut ctx, views, y, layout, row, scratch);
        }
    }
}

/// The best instructions, for one thread: all yield the same bits.
fn any_tier() -> Context {
    Context::new(Isa::all()[0], 1)
}

/// The bits of a bf16. Padding and the places of pictures that are not there become zero.
impl Value for u16 {
    fn write_rows(
        painter: &Painter,
        views: &[Option<Prepared>],
        layout: &InputLayout,
        first: usize,
        rows: &mut [u16],
        scratch: &mut Scratch,
    ) {
        let mut row = std::mem::take(&mut scratch.row);
        row.clear();
        row.resize(layout.row_len(), 0.0);
        let mut ctx = any_tier();
        for (y, rounded) in (first..painter.crop).zip(rows.chunks_exact_mut(layout.row_len())) {
            painter.write_row(&mut ctx, views, y, layout, &mut row, scratch);
            round_values(&mut ctx, &row, rounded);
        }
        scratch.row = row;
    }
}

impl Painter {
    /// For one preparation and one set of variations.
    pub fn new(preprocess: &Preprocess, augment: &Augment) -> Self {
        let (factor, offset) = preprocess.affine();
        let (mean, side) = (preprocess.scaled_mean(), preprocess.side);
        let has_mean = !mean.is_empty();
        let mean = if has_mean {
            let mirrored = mean.chunks_exact(side * 3).flat_map(|row| row.rchunks_exact(3).flatten());
            mean.iter().chain(mirrored).copied().collect()
        } else {
            vec![0.0; preprocess.crop * 3]
        };
        Painter {
            side,
            keep: preprocess.keep,
            fit: preprocess.fit,
            resize: preprocess.resize,
            crop: preprocess.crop,
            factor,
            offset,
            mean,
            has_mean,
            mean_at: preprocess.mean_at,
            augment: augment.clone(),
        }
    }

    /// How much of a picture a view needs: the square for fixed views, and for training what the preparation says, if
    /// anything is random.
    pub fn needs(&self, view: View) -> Keep {
        match (view, self.augment.area, self.augment.random_crop) {
            (View::Train, Some(_), _) => self.keep,
            // Originals are brought to the stored size first, as torchvision's `Resize` before `RandomCrop`.
            (View::Train, None, true) if self.fit == Fit::CentralSquare => self.keep.min(Keep::Whole),
            _ => Keep::Square,
        }
    }

    /// Draws what is to be drawn for a view of a picture, as much of which is given as [`Painter::needs`] says. The view
    /// borrows pixels that the frame borrows, if they need no resizing, and else has pixels of its own.
    pub fn prepare<'a>(
        &self,
        frame: &Frame<'a>,
        view: View,
        key: Key,
        squarer: &mut Squarer,
    ) -> Prepared<'a> {
        let draw = self.augment.draw(view, key, (frame.width, frame.height), self.crop);
        let noisy = view == View::Train && self.augment.colour.is_some() && self.augment.colour_noise != 0.0;
        let damp = if noisy { 1.0 / (1.0 + self.augment.colour_noise) } else { 1.0 };
        let factor = self.factor.map(|f| f * damp);
        let offset: [f32; 3] = std::array::from_fn(|c| self.offset[c] * damp + draw.colour[c] * factor[c]);
        let Region { left, top, width, height } = draw.region;
        let of_square = (frame.width, frame.height) == (self.side, self.side);
        let mean_part = match self.mean_at {
            MeanAt::View if of_square && (width, height) == (self.crop, self.crop) => {
                (left, top, draw.mirrored)
            }
            // A resampled part, or one of a whole picture, has no place in the mean picture.
            _ => ((self.side - self.crop) / 2, (self.side - self.crop) / 2, false),
        };
        let part = Frame {
            pixels: Cow::Borrowed(&frame.pixels[..]),
            row_px: frame.row_px,
            left: frame.left + left,
            top: frame.top + top,
            width,
            height,
        };
        let frame = match frame.pixels {
            Cow::Borrowed(pixels) if (width, height) == (self.crop, self.crop) => {
                Frame { pixels: Cow::Borrowed(pixels), ..part }
            }
            _ => {
                Frame::whole(squarer.resized(&part, self.crop, self.crop, self.resize), self.crop, self.crop)
            }
        };
        Prepared {
            frame,
            mirrored: draw.mirrored,
            factor: std::array::from_fn(|i| factor[i % 3]),
            offset: std::array::from_fn(|i| offset[i % 3]),
            mean_factor: damp,
            mean_part,
        }
    }

    /// Writes views as rows of the pictures of a block, (rows, columns, block, fold·C), the first of which has number `first`.
    /// Padding is left as it is, and so are the places of pictures that are not there.
    pub fn write_rows<T: Value>(
        &self,
        views: &[Option<Prepared>],
        layout: &InputLayout,
        first: usize,
        rows: &mut [T],
        scratch: &mut Scratch,
    ) {
        T::write_rows(self, views, layout, first, rows, scratch);
    }

    /// Writes row `y` of all pictures.
    fn write_row(
        &self,
        ctx: &mut Context,
        views: &[Option<Prepared>],
        y: usize,
        layout: &InputLayout,
        row: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.gather(ctx, views, y, scratch);
        let len = row.len();
        ctx.for_each_chunk_in_vectors(row, len, &Row { painter: self, views, layout, scratch });
    }

    /// Row `y` of all pictures as bytes, and where what is subtracted from each begins.
    fn gather(&self, ctx: &mut Context, views: &[Option<Prepared>], y: usize, scratch: &mut Scratch) {
        let len = self.crop * 3;
        scratch.bytes.resize(views.len() * len, 0);
        scratch.means.clear();
        for (view, bytes) in views.iter().zip(scratch.bytes.chunks_exact_mut(len)) {
            if let Some(view) = view {
                let frame = &view.frame;
                let start = ((frame.top + y) * frame.row_px + frame.left) * 3;
                let below = frame.pixels.len().min(start + frame.row_px * 3);
                let next = &frame.pixels[below..frame.pixels.len().min(below + len)];
                copy_row(ctx, &frame.pixels[start..][..len], view.mirrored, bytes, next);
            }
            scratch.means.push(view.as_ref().map_or(0, |view| self.mean_start(view, y)));
        }
    }

    /// Where in the mean what is subtracted from row `y` of a view begins.
    fn mean_start(&self, view: &Prepared, y: usize) -> usize {
        let (left, top, mirrored) = view.mean_part;
        match (self.has_mean, mirrored) {
            (false, _) => 0,
            (true, false) => ((top + y) * self.side + left) * 3,
            (true, true) => ((self.side + top + y + 1) * self.side - left - self.crop) * 3,
        }
    }

    /// Writes `RUN` numbers of picture `n`, whole pixels from `from` on of its row: factor · byte + offset − mean.
    #[inline(always)]
    fn write_run<const RUN: usize>(
        &self,
        view: &Prepared,
        n: usize,
        from: usize,
        to: &mut [f32],
        scratch: &Scratch,
    ) {
        let bytes = &scratch.bytes[n * self.crop * 3 + from..];
        let bytes: &[u8; RUN] = bytes.first_chunk().expect("a run within the row");
        let mean = &self.mean[scratch.means[n] + from..];
        let mean: &[f32; RUN] = mean.first_chunk().expect("a run within the row");
        let factor: &[f32; RUN] = view.factor.first_chunk().expect("no run is longer");
        let offset: &[f32; RUN] = view.offset.first_chunk().expect("no run is longer");
        let to: &mut [f32; RUN] = to.first_chunk_mut().expect("a run within the block's row");
        for i in 0..RUN {
            to[i] = f32::from(bytes[i]) * factor[i] + offset[i] - view.mean_factor * mean[i];
        }
    }
}

/// A row of all pictures, gathered as bytes.
struct Row<'a> {
    painter: &'a Painter,
    views: &'a [Option<Prepared<'a>>],
    layout: &'a InputLayout,
    scratch: &'a Scratch,
}

impl ChunkWork<f32> for Row<'_> {
    /// The pictures interleave, column by column: the memory is written from one end to the other.
    #[inline(always)]
    fn chunk(&self, _: usize, row: &mut [f32]) {
        let Row { painter, views, layout, scratch } = *self;
        // A picture alone in its block has all its columns side by side.
        let (fold, pad) = if layout.block == 1 { (LONGEST_RUN / 3, 0) } else { (layout.fold, layout.pad) };
        let (run, width) = (fold * 3, painter.crop);
        // Columns up to the first whole fold, then whole folds, then the rest.
        let first = ((fold - pad % fold) % fold).min(width);
        let whole = if matches!(run, 3 | 6 | 12 | LONGEST_RUN) { (width - first) / fold } else { 0 };
        let at = layout.offset_in_row(0, first);
        for (n, view) in views.iter().enumerate() {
            let Some(view) = view else { continue };
            for x in (0..first).chain(first + whole * fold..width) {
                let to = layout.offset_in_row(n, x);
                painter.write_run::<3>(view, n, x * 3, &mut row[to..], scratch);
            }
        }
        for fold_x in 0..whole {
            let (x, at) = ((first + fold_x * fold) * 3, at + fold_x * layout.block * run);
            for (n, view) in views.iter().enumerate() {
                let Some(view) = view else { continue };
                let to = &mut row[at + n * run..];
                match run {
                    3 => painter.write_run::<3>(view, n, x, to, scratch),
                    6 => painter.write_run::<6>(view, n, x, to, scratch),
                    12 => painter.write_run::<12>(view, n, x, to, scratch),
                    _ => painter.write_run::<LONGEST_RUN>(view, n, x, to, scratch),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::{ColourAxes, Draw};
    use crate::data::preprocess::Mean;
    use crate::net::Shape;
    use crate::rng::{Purpose, Stream};

    const SIDE: usize = 20;
    const CROP: usize = 14;

    fn stored(seed: u64) -> Vec<u8> {
        let mut random = Stream::new(seed, Purpose::Synthetic, 0, 0);
        (0..SIDE * SIDE * 3).map(|_| random.below(256) as u8).collect()
    }

    fn plain() -> Preprocess {
        Preprocess { side: SIDE, crop: CROP, ..Preprocess::torchvision() }
    }

    fn key(picture: u32) -> Key {
        Key { seed: 5, epoch: 2, picture, position: u64::from(picture) }
    }

    /// One view in plain (H, W, C).
    fn paint(preprocess: &Preprocess, augment: &Augment, pixels: &[u8], view: View, key: Key) -> Vec<f32> {
        let painter = Painter::new(preprocess, augment);
        let layout = InputLayout::nhwc(1, Shape { c: 3, h: CROP, w: CROP });
        let mut block = vec![0.0; layout.len()];
        let frame = Frame::whole(pixels, SIDE, SIDE);
        let view = painter.prepare(&frame, view, key, &mut Squarer::default());
        painter.write_rows(&[Some(view)], &layout, 0, &mut block, &mut Scratch::default());
        block
    }

    /// (pixel · scale − mean) / std from first principles.
    fn expected(pixels: &[u8], draw: &Draw, y: usize, x: usize, c: usize) -> f32 {
        let x = if draw.mirrored { CROP - 1 - x } else { x };
        let p = f32::from(pixels[((draw.region.top + y) * SIDE + draw.region.left + x) * 3 + c]);
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        (p / 255.0 - mean[c]) / std[c]
    }

    #[test]
    fn every_layout_receives_the_same_picture() {
        let (pre, augment) = (plain(), Augment::default());
        let painter = Painter::new(&pre, &augment);
        let shape = Shape { c: 3, h: CROP, w: CROP };
        for block in [1, 3] {
            for (fold, pad) in [(1, 0), (1, 2), (2, 1), (4, 0), (4, 2), (4, 5), (5, 3), (8, 1)] {
                let columns = (CROP + pad).div_ceil(fold) + 1;
                let layout = InputLayout { block, fold, pad, columns, ..InputLayout::nhwc(block, shape) };
                let mut buffer = vec![f32::NAN; layout.len()];
                let mut touched = vec![false; layout.len()];
                let pictures: Vec<Vec<u8>> = (0..block).map(|n| stored(n as u64)).collect();
                let frames: Vec<Frame> =
                    pictures.iter().map(|pixels| Frame::whole(&pixels[..], SIDE, SIDE)).collect();
                // The second of three is not there.
                let there = |n: usize| n != 1;
                let views: Vec<Option<Prepared>> = frames
                    .iter()
                    .enumerate()
                    .map(|(n, frame)| {
                        let key = key(n as u32);
                        there(n).then(|| painter.prepare(frame, View::Train, key, &mut Squarer::default()))
                    })
                    .collect();
                painter.write_rows(&views, &layout, 0, &mut buffer, &mut Scratch::default());
                for n in (0..block).filter(|&n| there(n)) {
                    let pixels = &pictures[n];
                    let draw = augment.draw(View::Train, key(n as u32), (SIDE, SIDE), CROP);
                    for (y, x, c) in (0..CROP * CROP * 3).map(|i| (i / 3 / CROP, i / 3 % CROP, i % 3)) {
                        let at = layout.offset(n, c, y, x);
                        let want = expected(pixels, &draw, y, x, c);
                        assert!(
                            (buffer[at] - want).abs() < 1e-5,
                            "fold {fold} pad {pad}: {} {want}",
                            buffer[at]
                        );
                        touched[at] = true;
                    }
                }
                // Nothing else was written.
                assert!(buffer.iter().zip(&touched).all(|(v, t)| *t || v.is_nan()), "fold {fold} pad {pad}");
            }
        }
    }

    #[test]
    fn the_mean_picture_is_subtracted_at_the_centre() {
        let pixels = stored(1);
        let mean = stored(2).iter().map(|&p| f32::from(p)).collect();
        let pre = Preprocess::paper(SIDE, CROP, mean);
        let Mean::Picture(mean) = &pre.mean else { unreachable!() };
        let augment = Augment::default();
        let draw = augment.draw(View::Fixed(9), key(0), (SIDE, SIDE), CROP);
        let got = paint(&pre, &augment, &pixels, View::Fixed(9), key(0));
        for (i, v) in got.iter().enumerate() {
            let (y, x, c) = (i / 3 / CROP, i / 3 % CROP, i % 3);
            let p = pixels[((draw.region.top + y) * SIDE + draw.region.left + CROP - 1 - x) * 3 + c];
            assert_eq!(*v, f32::from(p) - mean[((3 + y) * SIDE + 3 + x) * 3 + c]);
        }
    }

    /// Caffe subtracts before it mirrors, at the place of the view: a picture that is its own mean is zero in every view.
    #[test]
    fn the_mean_picture_is_subtracted_where_the_view_is() {
        let pixels = stored(1);
        let mean: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
        let pre = Preprocess { mean_at: MeanAt::View, ..Preprocess::paper(SIDE, CROP, mean) };
        for view in View::TEN.into_iter().chain([View::Train, View::Centre]) {
            let got = paint(&pre, &Augment::default(), &pixels, view, key(3));
            assert!(got.iter().all(|v| *v == 0.0), "{view:?}");
        }
    }

    #[test]
    fn colour_noise_is_the_formula() {
        let pixels = stored(1);
        let mean = vec![100.0; SIDE * SIDE * 3];
        let pre = Preprocess::paper(SIDE, CROP, mean);
        let quiet = Augment { random_crop: false, mirror: false, ..Default::default() };
        let noisy = Augment { colour: Some(ColourAxes::imagenet()), colour_noise: 0.1, ..quiet.clone() };
        let draw = noisy.draw(View::Train, key(3), (SIDE, SIDE), CROP);
        let (a, b) = (
            paint(&pre, &quiet, &pixels, View::Train, key(3)),
            paint(&pre, &noisy, &pixels, View::Train, key(3)),
        );
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((b - (a + draw.colour[i % 3]) / 1.1).abs() < 1e-3);
        }
        // No noise where there is no training.
        assert_eq!(
            paint(&pre, &quiet, &pixels, View::Centre, key(3)),
            paint(&pre, &noisy, &pixels, View::Centre, key(3))
        );
        // Its covariance is c²·Σ σ² p pᵀ: on the first axis 12.2 grey levels.
        let first = ColourAxes::imagenet().axes[0];
        let along = |i| {
            let d = noisy.draw(View::Train, key(i), (SIDE, SIDE), CROP);
            (0..3).map(|c| d.colour[c] * first[c]).sum::<f32>()
        };
        let n = 4000;
        let deviation = ((0..n).map(along).map(|v| v * v).sum::<f32>() / n as f32).sqrt();
        assert!((deviation - 12.178).abs() < 5.0 * 12.178 / (2.0 * n as f32).sqrt(), "{deviation}");
    }

    #[test]
    fn a_resized_part_is_bilinear() {
        // A plane is reproduced by bilinear interpolation, away from the part's border.
        let plane: Vec<u8> =
            (0..SIDE * SIDE).flat_map(|i| [(i % SIDE) as u8 * 10, (i / SIDE) as u8 * 10, 7]).collect();
        let pre = Preprocess { scale: 1.0, mean: Mean::Channels([0.0; 3]), std: [1.0; 3], ..plain() };
        let augment = Augment { area: Some([0.3, 0.5]), ..Default::default() };
        for picture in 0..50 {
            let Draw { region: r, mirrored, .. } =
                augment.draw(View::Train, key(picture), (SIDE, SIDE), CROP);
            let share = (r.width * r.height) as f64 / (SIDE * SIDE) as f64;
            assert!((0.25..0.56).contains(&share), "{r:?}");
            assert!(r.left + r.width <= SIDE && r.top + r.height <= SIDE);
            let got = paint(&pre, &augment, &plane, View::Train, key(picture));
            for (i, p) in got.chunks_exact(3).enumerate() {
                let at = |i: usize, start: usize, n: usize| {
                    let inside = ((i as f64 + 0.5) * n as f64 / CROP as f64 - 0.5).clamp(0.0, n as f64 - 1.0);
                    (start as f64 + inside) as f32 * 10.0
                };
                let x = if mirrored { CROP - 1 - i % CROP } else { i % CROP };
                // Pixels are rounded, and a part larger than the crop is smoothed at its border.
                let border = |i: usize, n: usize| n > CROP && !(1..CROP - 1).contains(&i);
                assert!(border(x, r.width) || (p[0] - at(x, r.left, r.width)).abs() <= 1.0);
                assert!(border(i / CROP, r.height) || (p[1] - at(i / CROP, r.top, r.height)).abs() <= 1.0);
                assert!((p[2] - 7.0).abs() < 1e-4);
            }
        }
    }
}
