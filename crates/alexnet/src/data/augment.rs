//! Which part of a picture a network sees, mirrored or not, in which light: pure functions of (seed, epoch,
//! picture), written straight into the layout that the first layer reads.

use super::preprocess::Preprocess;
use crate::exec::contract::InputLayout;
use crate::rng::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Principal axes of a training set's colours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColourAxes {
    /// σ_k: standard deviations along the axes (roots of the eigenvalues), on pixels in 0–255.
    pub sigma: [f32; 3],
    /// p_k: unit vectors in R, G, B, one a row.
    pub axes: [[f32; 3]; 3],
}

impl ColourAxes {
    /// Of ImageNet's training pictures, as stored in cuda-convnet2's `input_meta`.
    pub fn imagenet() -> Self {
        ColourAxes {
            sigma: [121.780, 37.094, 19.721],
            axes: [
                [-0.56351, -0.57618, -0.59200],
                [-0.71258, -0.02354, 0.70120],
                [0.41796, -0.81698, 0.39731],
            ],
        }
    }
}

/// What is varied at random in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Crops at every offset, uniformly; else the centre.
    pub random_crop: bool,
    /// Mirrors half of the pictures.
    pub mirror: bool,
    /// c of x ← (x + c·Σ_k z_k σ_k p_k) / (1 + c), z ~ N(0, 1), on centred pixels; 0 is off (the paper's §4.1, with the
    /// division of the code).
    pub colour_noise: f32,
    /// σ and p of the colour noise; without them there is none.
    pub colour: Option<ColourAxes>,
    /// Consecutive pictures that share one draw of offset and mirror: 32 in the code of 2012, else 1.
    pub shared_by: usize,
    /// Instead of a crop of fixed size, a part of this share of the square's area (smallest, largest) with aspect 3/4
    /// to 4/3, resampled bilinearly (torchvision's `RandomResizedCrop`).
    pub area: Option<[f64; 2]>,
}

impl Default for Augment {
    /// Random crop and mirror.
    fn default() -> Self {
        Augment { random_crop: true, mirror: true, colour_noise: 0.0, colour: None, shared_by: 1, area: None }
    }
}

impl Augment {
    /// Nothing is varied.
    pub fn none() -> Self {
        Augment { random_crop: false, mirror: false, ..Default::default() }
    }
}

/// Which part of a picture is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum View {
    /// At random, as [`Augment`] says.
    Train,
    /// The central crop.
    Centre,
    /// One of the ten views of the paper: 0–4 top left, top right, centre, bottom left, bottom right; 5–9 mirrored.
    Fixed(u8),
}

impl View {
    /// The ten views of the paper.
    pub const TEN: [View; 10] = [
        View::Fixed(0),
        View::Fixed(1),
        View::Fixed(2),
        View::Fixed(3),
        View::Fixed(4),
        View::Fixed(5),
        View::Fixed(6),
        View::Fixed(7),
        View::Fixed(8),
        View::Fixed(9),
    ];
}

/// What the random draws of a picture hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// The picture's index in the pack.
    pub picture: u32,
    /// Its place in the epoch; counts only if draws are shared.
    pub position: u64,
}

/// A part of the stored square: left, top, width, height, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Columns left of it.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// In columns.
    pub width: usize,
    /// In rows.
    pub height: usize,
}

/// What was drawn for a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The part that is taken.
    pub region: Region,
    /// Whether it is mirrored.
    pub mirrored: bool,
    /// Added to R, G, B, on pixels in 0–255, before the division by 1 + c.
    pub colour: [f32; 3],
}

impl Augment {
    /// The draw for a view of a picture: `side` of the stored square, `crop` of the network's.
    pub fn draw(&self, view: View, key: Key, side: usize, crop: usize) -> Draw {
        let room = side - crop;
        let at = |left, top| Region { left, top, width: crop, height: crop };
        let centre = at(room / 2, room / 2);
        let still = |region, mirrored| Draw { region, mirrored, colour: [0.0; 3] };
        match view {
            View::Centre => still(centre, false),
            View::Fixed(k) => {
                let region = match k % 5 {
                    0 => at(0, 0),
                    1 => at(room, 0),
                    2 => centre,
                    3 => at(0, room),
                    _ => at(room, room),
                };
                still(region, k >= 5)
            }
            View::Train => {
                // Streams of their own, so that neither draw depends on whether the other is made. Picture indices
                // have 32 bits; what lies above tells the streams apart.
                let place = match self.shared_by {
                    0 | 1 => u64::from(key.picture),
                    n => (1 << 63) | (key.position / n as u64),
                };
                let mut random = Stream::new(key.seed, Purpose::Augment, key.epoch, place);
                let (top, left) = (random.below(room + 1), random.below(room + 1));
                let mirrored = random.next_u32() & 1 == 1 && self.mirror;
                let region = match (self.area, self.random_crop) {
                    (Some(area), _) => random_part(&mut random, area, side),
                    (None, true) => at(left, top),
                    (None, false) => centre,
                };
                let mut colour = [0.0; 3];
                if let (Some(axes), true) = (&self.colour, self.colour_noise != 0.0) {
                    let own = (1 << 32) | u64::from(key.picture);
                    let mut random = Stream::new(key.seed, Purpose::Augment, key.epoch, own);
                    for k in 0..3 {
                        let z = random.normal() as f32 * self.colour_noise * axes.sigma[k];
                        for c in 0..3 {
                            colour[c] += z * axes.axes[k][c];
                        }
                    }
                }
                Draw { region, mirrored, colour }
            }
        }
    }
}

/// A part of random area and aspect (log-uniform between 3/4 and 4/3) at a random place; the whole square if ten
/// draws do not fit.
fn random_part(random: &mut Stream, area: [f64; 2], side: usize) -> Region {
    for _ in 0..10 {
        let pixels = random.range(area[0], area[1]) * (side * side) as f64;
        let aspect = random.range((3f64 / 4.0).ln(), (4f64 / 3.0).ln()).exp();
        let (width, height) =
            ((pixels * aspect).sqrt().round() as usize, (pixels / aspect).sqrt().round() as usize);
        if (1..=side).contains(&width) && (1..=side).contains(&height) {
            let (top, left) = (random.below(side - height + 1), random.below(side - width + 1));
            return Region { left, top, width, height };
        }
    }
    Region { left: 0, top: 0, width: side, height: side }
}

/// Writes views of stored pictures as numbers for a network.
#[derive(Clone, Debug)]
pub struct Painter {
    side: usize,
    crop: usize,
    factor: [f32; 3],
    offset: [f32; 3],
    /// Times the factor, (crop, crop, 3); empty with channel means.
    mean: Vec<f32>,
    augment: Augment,
}

/// A view, drawn and ready to be written row by row.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    pixels: &'a [u8],
    draw: Draw,
    factor: [f32; 3],
    offset: [f32; 3],
    /// What the mean picture is multiplied by: 1, or 1/(1 + c) under colour noise.
    mean_factor: f32,
    /// For each column of a resampled view: the offsets of its two source pixels in a row, and the second's share.
    columns: Vec<(u32, u32, f32)>,
}

/// Rows under construction; one a thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    blend: Vec<f32>,
    line: Vec<f32>,
}

impl Painter {
    /// For one preparation and one set of variations.
    pub fn new(preprocess: &Preprocess, augment: &Augment) -> Self {
        let (factor, offset) = preprocess.affine();
        let mean = preprocess.central_mean();
        Painter {
            side: preprocess.side,
            crop: preprocess.crop,
            factor,
            offset,
            mean,
            augment: augment.clone(),
        }
    }

    /// Draws what is to be drawn for a view of `pixels`, (side, side, 3).
    pub fn prepare<'a>(&self, pixels: &'a [u8], view: View, key: Key) -> Prepared<'a> {
        assert_eq!(pixels.len(), self.side * self.side * 3, "a stored square of side {}", self.side);
        let draw = self.augment.draw(view, key, self.side, self.crop);
        let noisy = view == View::Train && self.augment.colour.is_some() && self.augment.colour_noise != 0.0;
        let damp = if noisy { 1.0 / (1.0 + self.augment.colour_noise) } else { 1.0 };
        let factor = self.factor.map(|f| f * damp);
        let offset = std::array::from_fn(|c| self.offset[c] * damp + draw.colour[c] * factor[c]);
        let Region { left, width, .. } = draw.region;
        let columns = if self.is_plain(&draw.region) {
            Vec::new()
        } else {
            let column = |x: usize| {
                let (x0, x1, share) = between(x, width, self.crop);
                (((left + x0) * 3) as u32, ((left + x1) * 3) as u32, share)
            };
            (0..self.crop).map(column).collect()
        };
        Prepared { pixels, draw, factor, offset, mean_factor: damp, columns }
    }

    /// No resampling: the part has the crop's size.
    fn is_plain(&self, region: &Region) -> bool {
        region.width == self.crop && region.height == self.crop
    }

    /// Writes row `y` of the view as picture `n` of a block into that block's row, (columns, block, fold·C).
    pub fn write_row(
        &self,
        view: &Prepared,
        y: usize,
        n: usize,
        layout: &InputLayout,
        row: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let len = self.crop * 3;
        scratch.line.resize(len, 0.0);
        let region = view.draw.region;
        if self.is_plain(&region) {
            let start = ((region.top + y) * self.side + region.left) * 3;
            let source = &view.pixels[start..start + len];
            if view.draw.mirrored {
                scratch.bytes.resize(len, 0);
                for (to, from) in scratch.bytes.chunks_exact_mut(3).zip(source.rchunks_exact(3)) {
                    to.copy_from_slice(from);
                }
                affine_bytes(&scratch.bytes, view.factor, view.offset, &mut scratch.line);
            } else {
                affine_bytes(source, view.factor, view.offset, &mut scratch.line);
            }
        } else {
            self.resample(view, y, scratch);
        }
        if !self.mean.is_empty() {
            let mean = &self.mean[y * len..(y + 1) * len];
            for (v, m) in scratch.line.iter_mut().zip(mean) {
                *v -= view.mean_factor * m;
            }
        }
        scatter(&scratch.line, n, layout, row);
    }

    /// Row `y` of a resampled part: two rows blended, then two columns of the blend for each pixel.
    fn resample(&self, view: &Prepared, y: usize, scratch: &mut Scratch) {
        let region = view.draw.region;
        let (y0, y1, share) = between(y, region.height, self.crop);
        let stride = self.side * 3;
        let row = |y: usize| &view.pixels[(region.top + y) * stride..][..stride];
        scratch.blend.clear();
        scratch.blend.extend(
            row(y0).iter().zip(row(y1)).map(|(&a, &b)| f32::from(a) * (1.0 - share) + f32::from(b) * share),
        );
        let blend = &scratch.blend;
        for (x, to) in scratch.line.chunks_exact_mut(3).enumerate() {
            let x = if view.draw.mirrored { self.crop - 1 - x } else { x };
            let (x0, x1, share) = view.columns[x];
            let (a, b) = (&blend[x0 as usize..x0 as usize + 3], &blend[x1 as usize..x1 as usize + 3]);
            for c in 0..3 {
                let v = a[c] * (1.0 - share) + b[c] * share;
                to[c] = v * view.factor[c] + view.offset[c];
            }
        }
    }
}

/// The two source positions around the centre of target `i` when `from` positions become `to`, and the second's
/// share.
fn between(i: usize, from: usize, to: usize) -> (usize, usize, f32) {
    let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
    let first = at.floor() as usize;
    (first, (first + 1).min(from - 1), (at - first as f64) as f32)
}

/// line = factor · pixels + offset, three channels side by side.
fn affine_bytes(pixels: &[u8], factor: [f32; 3], offset: [f32; 3], line: &mut [f32]) {
    // 48 values are a whole number of pixels and of vectors of any width up to 16.
    const RUN: usize = 48;
    let factors: [f32; RUN] = std::array::from_fn(|i| factor[i % 3]);
    let offsets: [f32; RUN] = std::array::from_fn(|i| offset[i % 3]);
    let whole = pixels.len() / RUN * RUN;
    for (to, from) in line[..whole].chunks_exact_mut(RUN).zip(pixels[..whole].chunks_exact(RUN)) {
        for i in 0..RUN {
            to[i] = f32::from(from[i]) * factors[i] + offsets[i];
        }
    }
    for (i, (to, &from)) in line[whole..].iter_mut().zip(&pixels[whole..]).enumerate() {
        *to = f32::from(from) * factors[i] + offsets[i];
    }
}

/// Spreads a row of pixels, (W, C), over the block's row, (columns, block, fold·C).
fn scatter(line: &[f32], n: usize, layout: &InputLayout, row: &mut [f32]) {
    let c = layout.shape.c;
    let run = layout.fold * c;
    // Pixels up to the first whole fold, then whole folds, then the rest.
    let first = ((layout.fold - layout.pad % layout.fold) % layout.fold * c).min(line.len());
    if first > 0 {
        let at = layout.offset_in_row(n, 0);
        row[at..at + first].copy_from_slice(&line[..first]);
    }
    let rest = &line[first..];
    if rest.is_empty() {
        return;
    }
    let at = layout.offset_in_row(n, first / c);
    match run {
        3 => scatter_runs::<3>(rest, layout.block * run, &mut row[at..]),
        6 => scatter_runs::<6>(rest, layout.block * run, &mut row[at..]),
        12 => scatter_runs::<12>(rest, layout.block * run, &mut row[at..]),
        24 => scatter_runs::<24>(rest, layout.block * run, &mut row[at..]),
        _ => {
            for (from, to) in rest.chunks(run).zip(row[at..].chunks_mut(layout.block * run)) {
                to[..from.len()].copy_from_slice(from);
            }
        }
    }
}

fn scatter_runs<const RUN: usize>(line: &[f32], step: usize, row: &mut [f32]) {
    for (from, to) in line.chunks(RUN).zip(row.chunks_mut(step)) {
        match (from.first_chunk::<RUN>(), to.first_chunk_mut::<RUN>()) {
            (Some(from), Some(to)) => *to = *from,
            _ => to[..from.len()].copy_from_slice(from),
        }
    }
}

/// Writes one view as picture `n` of a block, (H, columns, block, fold·C). Padding is left as it is.
pub fn write_view(
    painter: &Painter,
    view: &Prepared,
    n: usize,
    layout: &InputLayout,
    block: &mut [f32],
    scratch: &mut Scratch,
) {
    for (y, row) in block.chunks_exact_mut(layout.row_len()).enumerate().take(painter.crop) {
        painter.write_row(view, y, n, layout, row, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::preprocess::Mean;
    use crate::net::Shape;

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
        let view = painter.prepare(pixels, view, key);
        write_view(&painter, &view, 0, &layout, &mut block, &mut Scratch::default());
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
                let layout = InputLayout { batch: block, shape, block, fold, pad, columns };
                let mut buffer = vec![f32::NAN; layout.len()];
                let mut touched = vec![false; layout.len()];
                for n in 0..block {
                    let pixels = stored(n as u64);
                    let view = painter.prepare(&pixels, View::Train, key(n as u32));
                    write_view(&painter, &view, n, &layout, &mut buffer, &mut Scratch::default());
                    for (y, x, c) in (0..CROP * CROP * 3).map(|i| (i / 3 / CROP, i / 3 % CROP, i % 3)) {
                        let at = layout.offset(n, c, y, x);
                        let want = expected(&pixels, &view.draw, y, x, c);
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
    fn the_ten_views_are_the_papers() {
        let augment = Augment::default();
        let places: Vec<_> = View::TEN
            .iter()
            .map(|&v| augment.draw(v, key(0), SIDE, CROP))
            .map(|d| (d.region.left, d.region.top, d.mirrored))
            .collect();
        let corners = [(0, 0), (6, 0), (3, 3), (0, 6), (6, 6)];
        let want: Vec<_> =
            [false, true].iter().flat_map(|&m| corners.iter().map(move |&(l, t)| (l, t, m))).collect();
        assert_eq!(places, want);
        assert_eq!(
            augment.draw(View::Centre, key(0), SIDE, CROP),
            augment.draw(View::Fixed(2), key(9), SIDE, CROP)
        );
    }

    #[test]
    fn crops_reach_every_offset_evenly_and_half_are_mirrored() {
        let augment = Augment::default();
        let mut count = [[0u32; 7]; 7];
        let mut mirrored = 0;
        let n = 49 * 200;
        for i in 0..n {
            let d = augment.draw(View::Train, key(i), SIDE, CROP);
            count[d.region.top][d.region.left] += 1;
            mirrored += u32::from(d.mirrored);
        }
        // 200 expected in each, standard deviation 14.
        assert!(count.iter().flatten().all(|&c| (130..270).contains(&c)), "{count:?}");
        assert!((mirrored as f64 / f64::from(n) - 0.5).abs() < 0.03);
    }

    #[test]
    fn draws_hang_on_seed_epoch_and_picture_alone() {
        let augment =
            Augment { colour: Some(ColourAxes::imagenet()), colour_noise: 0.1, ..Default::default() };
        let base = Key { seed: 1, epoch: 1, picture: 1, position: 1 };
        let draw = |k| augment.draw(View::Train, k, 256, 224);
        assert_eq!(draw(base), draw(Key { position: 77, ..base }));
        for other in [Key { seed: 2, ..base }, Key { epoch: 2, ..base }, Key { picture: 2, ..base }] {
            assert_ne!(draw(base), draw(other));
        }
    }

    #[test]
    fn shared_draws_change_every_so_many_pictures() {
        let augment = Augment { shared_by: 32, ..Default::default() };
        let draws: Vec<Draw> = (0..128)
            .map(|i| {
                augment.draw(
                    View::Train,
                    Key { seed: 1, epoch: 0, picture: 500 - i, position: i.into() },
                    256,
                    224,
                )
            })
            .collect();
        for group in draws.chunks(32) {
            assert!(group.iter().all(|d| d == &group[0]));
        }
        assert!(draws[0] != draws[32] || draws[32] != draws[64]);
    }

    #[test]
    fn the_mean_picture_is_subtracted_at_the_centre() {
        let pixels = stored(1);
        let mean = stored(2).iter().map(|&p| f32::from(p)).collect();
        let pre = Preprocess::paper(SIDE, CROP, mean);
        let Mean::Picture(mean) = &pre.mean else { unreachable!() };
        let augment = Augment::default();
        let draw = augment.draw(View::Fixed(9), key(0), SIDE, CROP);
        let got = paint(&pre, &augment, &pixels, View::Fixed(9), key(0));
        for (i, v) in got.iter().enumerate() {
            let (y, x, c) = (i / 3 / CROP, i / 3 % CROP, i % 3);
            let p = pixels[((draw.region.top + y) * SIDE + draw.region.left + CROP - 1 - x) * 3 + c];
            assert_eq!(*v, f32::from(p) - mean[((3 + y) * SIDE + 3 + x) * 3 + c]);
        }
    }

    #[test]
    fn colour_noise_is_the_formula() {
        let pixels = stored(1);
        let mean = vec![100.0; SIDE * SIDE * 3];
        let pre = Preprocess::paper(SIDE, CROP, mean);
        let quiet = Augment { random_crop: false, mirror: false, ..Default::default() };
        let noisy = Augment { colour: Some(ColourAxes::imagenet()), colour_noise: 0.1, ..quiet.clone() };
        let draw = noisy.draw(View::Train, key(3), SIDE, CROP);
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
            let d = noisy.draw(View::Train, key(i), SIDE, CROP);
            (0..3).map(|c| d.colour[c] * first[c]).sum::<f32>()
        };
        let n = 4000;
        let deviation = ((0..n).map(along).map(|v| v * v).sum::<f32>() / n as f32).sqrt();
        assert!((deviation - 12.178).abs() < 5.0 * 12.178 / (2.0 * n as f32).sqrt(), "{deviation}");
    }

    #[test]
    fn a_resampled_part_is_bilinear() {
        // A plane is reproduced exactly by bilinear interpolation, away from the part's border.
        let plane: Vec<u8> =
            (0..SIDE * SIDE).flat_map(|i| [(i % SIDE) as u8 * 10, (i / SIDE) as u8 * 10, 7]).collect();
        let pre = Preprocess { scale: 1.0, mean: Mean::Channels([0.0; 3]), std: [1.0; 3], ..plain() };
        let augment = Augment { area: Some([0.3, 0.5]), ..Default::default() };
        for picture in 0..50 {
            let Draw { region: r, mirrored, .. } = augment.draw(View::Train, key(picture), SIDE, CROP);
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
                assert!((p[0] - at(x, r.left, r.width)).abs() < 1e-3);
                assert!((p[1] - at(i / CROP, r.top, r.height)).abs() < 1e-3);
                assert!((p[2] - 7.0).abs() < 1e-4);
            }
        }
    }
}
