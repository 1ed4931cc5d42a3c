//! The mean picture and the colour statistics of a training set. All sums are integers, so that the result does
//! not depend on the threads or the order.

use super::augment::ColourAxes;
use super::pack::{Keep, Pack};
use super::resize::{Frame, Squarer};
use crate::error::{Error, Result};

/// Statistics of pixels in 0–255.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Mean of each position and channel, (side, side, 3).
    pub mean_picture: Vec<f32>,
    /// Mean of each channel, R, G, B.
    pub channel_mean: [f64; 3],
    /// Standard deviation of each channel over all pixels.
    pub channel_std: [f64; 3],
    /// Covariance of the channels over all pixels.
    pub covariance: [[f64; 3]; 3],
    /// Principal axes of the covariance, largest first: what the colour noise moves along.
    pub axes: ColourAxes,
}

/// Sums over some pictures, all of them integers: exact, so the same in any order and for any division of the work.
///
/// They cannot overflow: a product is at most 255² < 2¹⁶, so 64 bits hold the products of 2⁴⁸ pixels, which are
/// 4·10⁹ pictures of 256² (pictures have 32-bit indices); ImageNet's 1.28 million have 8.4·10¹⁰.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    /// Of each position and channel, (side, side, 3).
    pub position: Vec<u64>,
    /// Of c·c' for RR, RG, RB, GG, GB, BB over all pixels.
    pub products: [u64; 6],
    /// How many pictures.
    pub pictures: u64,
    /// Of each position and channel, what is not in [`Sums::position`] yet; may be empty. In 16 bits, because vectors
    /// hold four times as many of them as of 64.
    recent: Vec<u16>,
    recent_pictures: u16,
}

/// Pictures whose values 16 bits can add up: 255 · 257 < 2¹⁶.
const RECENT_PICTURES: u16 = 257;
/// Bytes whose products are gathered side by side before they are sorted by channel: whole pixels, whole vectors, and
/// few enough that their sums stay in registers.
const LANES: usize = 24;
/// Bytes whose products 32 bits can add up: 255² · (8192 · 3 / 24) < 2³², because a lane sees every eighth pixel.
const PIECE: usize = 3 * 8192;

impl Sums {
    /// Numbers beside the positions: pictures and products.
    pub const MOMENTS: usize = 7;

    pub fn new(side: usize) -> Self {
        Sums::from_parts(vec![0; side * side * 3], &[0; Sums::MOMENTS])
    }

    /// Number of pictures, then the products.
    pub fn moments(&self) -> Vec<u64> {
        std::iter::once(self.pictures).chain(self.products).collect()
    }

    /// The other way round; `moments` has [`Sums::MOMENTS`] numbers.
    pub fn from_parts(position: Vec<u64>, moments: &[u64]) -> Self {
        let products = std::array::from_fn(|i| moments[1 + i]);
        Sums { position, products, pictures: moments[0], recent: Vec::new(), recent_pictures: 0 }
    }

    /// Adds a square of this side.
    pub fn add(&mut self, square: &Frame) {
        let row_len = square.width * 3;
        self.recent.resize(self.position.len(), 0);
        let begin = (square.top * square.row_px + square.left) * 3;
        if square.row_px == square.width {
            // Without anything between the rows they are one.
            self.add_row(0, &square.pixels[begin..][..row_len * square.height]);
        } else {
            for y in 0..square.height {
                self.add_row(y * row_len, &square.pixels[begin + y * square.row_px * 3..][..row_len]);
            }
        }
        self.pictures += 1;
        self.recent_pictures += 1;
        if self.recent_pictures == RECENT_PICTURES {
            self.settle();
        }
    }

    /// Adds consecutive pixels, the first of which is at place `at` of [`Sums::position`].
    fn add_row(&mut self, at: usize, pixels: &[u8]) {
        for (sum, &p) in self.recent[at..].iter_mut().zip(pixels) {
            *sum += u16::from(p);
        }
        for piece in pixels.chunks(PIECE) {
            add_products(piece, &mut self.products);
        }
    }

    /// Moves the recent sums to the others.
    pub fn settle(&mut self) {
        for (sum, recent) in self.position.iter_mut().zip(&mut self.recent) {
            *sum += u64::from(std::mem::take(recent));
        }
        self.recent_pictures = 0;
    }

    /// Adds the sums of other pictures, which are settled.
    pub fn merge(&mut self, other: &Sums) {
        debug_assert_eq!(other.recent_pictures, 0, "sums that are not settled");
        for (a, b) in self.position.iter_mut().zip(&other.position) {
            *a += b;
        }
        for (a, b) in self.products.iter_mut().zip(other.products) {
            *a += b;
        }
        self.pictures += other.pictures;
    }
}

/// Adds the products of some pixels, at most [`PIECE`] bytes. Each byte is multiplied by itself and by the next two; which
/// channels these are follows from the place modulo 3, and the lanes stay in place, so that the loop runs on vectors.
fn add_products(pixels: &[u8], products: &mut [u64; 6]) {
    // RR, RG, RB, GG, GB, BB by shift and channel; products that cross from one pixel to the next are left alone.
    const WANTED: [(usize, usize); 6] = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)];
    let lanes: [[u32; LANES]; 3] = std::array::from_fn(|shift| lane_sums(pixels, shift));
    for (sum, (shift, channel)) in products.iter_mut().zip(WANTED) {
        *sum += lanes[shift].iter().skip(channel).step_by(3).map(|&v| u64::from(v)).sum::<u64>();
    }
    for p in pixels[runs(pixels.len()) * LANES..].chunks_exact(3) {
        let [r, g, b] = [u64::from(p[0]), u64::from(p[1]), u64::from(p[2])];
        for (sum, v) in products.iter_mut().zip([r * r, r * g, r * b, g * g, g * b, b * b]) {
            *sum += v;
        }
    }
}

/// Of so many bytes, the runs of [`LANES`] that have two bytes after them.
fn runs(bytes: usize) -> usize {
    bytes.saturating_sub(2) / LANES
}

/// Sums of the products of each byte with the one `shift` after it, one sum for each place in a run.
fn lane_sums(pixels: &[u8], shift: usize) -> [u32; LANES] {
    let mut lanes = [0; LANES];
    let (all, _) = pixels.as_chunks::<LANES>();
    let (shifted, _) = pixels[shift.min(pixels.len())..].as_chunks::<LANES>();
    for (a, b) in all.iter().zip(shifted).take(runs(pixels.len())) {
        for i in 0..LANES {
            lanes[i] += u32::from(u16::from(a[i]) * u16::from(b[i]));
        }
    }
    lanes
}

impl Stats {
    /// Over the squares of the readable pictures among `indices`, on `threads` threads. If these are the pictures that
    /// were summed up while the pack was made (the training side where the source says which it is, else all), no
    /// pixel is read again.
    ///
    /// # Errors
    /// [`Error::Data`] if none of them is readable, or one cannot be decoded again.
    pub fn compute(pack: &Pack, indices: &[u32], threads: usize) -> Result<Stats> {
        let sums = match pack.stored_sums(indices) {
            Some(sums) => sums.clone(),
            None => Stats::sums(pack, indices, threads)?,
        };
        if sums.pictures == 0 {
            return Err(Error::Data("no readable picture to take the mean of".into()));
        }
        Ok(finish(&sums))
    }

    pub(super) fn sums(pack: &Pack, indices: &[u32], threads: usize) -> Result<Sums> {
        let side = pack.side();
        let share = indices.len().div_ceil(threads.max(1)).max(1);
        let mut sums = Sums::new(side);
        std::thread::scope(|scope| {
            let workers: Vec<_> = indices
                .chunks(share)
                .map(|part| {
                    scope.spawn(move || -> Result<Sums> {
                        let (mut sums, mut squarer) = (Sums::new(side), Squarer::default());
                        for &i in part {
                            match pack.frame(i as usize, Keep::Square, &mut squarer) {
                                Some(Ok(square)) => sums.add(&square),
                                Some(Err(why)) => return Err(Error::Data(why)),
                                None => {}
                            }
                        }
                        sums.settle();
                        Ok(sums)
                    })
                })
                .collect();
            for worker in workers {
                sums.merge(&worker.join().expect("summing does not panic")?);
            }
            Ok(sums)
        })
    }
}

fn finish(sums: &Sums) -> Stats {
    let pictures = sums.pictures as f64;
    let mean_picture = sums.position.iter().map(|&s| (s as f64 / pictures) as f32).collect();
    let mut channel = [0u64; 3];
    for p in sums.position.chunks_exact(3) {
        for c in 0..3 {
            channel[c] += p[c];
        }
    }
    // n·Σcc' − Σc·Σc' is exact in integers; only the last division rounds.
    let n = i128::from(sums.pictures) * (sums.position.len() / 3) as i128;
    let [rr, rg, rb, gg, gb, bb] = sums.products;
    let products = [[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]];
    let mut covariance = [[0.0; 3]; 3];
    for a in 0..3 {
        for b in 0..3 {
            let exact = n * i128::from(products[a][b]) - i128::from(channel[a]) * i128::from(channel[b]);
            covariance[a][b] = exact as f64 / (n as f64 * n as f64);
        }
    }
    let (values, vectors) = eigen_symmetric(covariance);
    Stats {
        mean_picture,
        channel_mean: channel.map(|c| c as f64 / n as f64),
        channel_std: std::array::from_fn(|c| covariance[c][c].max(0.0).sqrt()),
        covariance,
        axes: ColourAxes {
            sigma: values.map(|v| v.max(0.0).sqrt() as f32),
            axes: vectors.map(|v| v.map(|x| x as f32)),
        },
    }
}

/// Eigenvalues, largest first, and unit eigenvectors of a symmetric matrix, by cyclic Jacobi rotations. The first
/// component of a vector that is not nearly zero is positive.
pub fn eigen_symmetric(mut m: [[f64; 3]; 3]) -> ([f64; 3], [[f64; 3]; 3]) {
    let mut v = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]; // columns are the vectors
    // Convergence is quadratic; a handful of sweeps reaches rounding.
    for _ in 0..32 {
        let off = m[0][1].abs() + m[0][2].abs() + m[1][2].abs();
        if off <= f64::EPSILON * 1e-3 * (m[0][0].abs() + m[1][1].abs() + m[2][2].abs()) {
            break;
        }
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            if m[p][q] == 0.0 {
                continue;
            }
            let theta = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);
            let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
            let c = 1.0 / t.hypot(1.0);
            let s = t * c;
            for k in 0..3 {
                (m[k][p], m[k][q]) = (c * m[k][p] - s * m[k][q], s * m[k][p] + c * m[k][q]);
            }
            for k in 0..3 {
                (m[p][k], m[q][k]) = (c * m[p][k] - s * m[q][k], s * m[p][k] + c * m[q][k]);
                (v[k][p], v[k][q]) = (c * v[k][p] - s * v[k][q], s * v[k][p] + c * v[k][q]);
            }
        }
    }
    let mut order = [0, 1, 2];
    order.sort_by(|&a, &b| m[b][b].total_cmp(&m[a][a]));
    let vectors = order.map(|i| {
        let vector = [v[0][i], v[1][i], v[2][i]];
        let sign = vector.iter().find(|x| x.abs() > 1e-9).map_or(1.0, |x| x.signum());
        vector.map(|x| x * sign)
    });
    (order.map(|i| m[i][i]), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::{NewPicture, PackOptions};
    use crate::rng::{Purpose, Stream};

    #[test]
    fn eigenvectors_satisfy_their_equation() {
        let mut random = Stream::new(3, Purpose::Synthetic, 0, 0);
        let mut cases =
            vec![[[0.0; 3]; 3], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]], [[1.0; 3]; 3]];
        for _ in 0..200 {
            let a: [f64; 6] = std::array::from_fn(|_| random.normal());
            cases.push([[a[0], a[1], a[2]], [a[1], a[3], a[4]], [a[2], a[4], a[5]]]);
        }
        for m in cases {
            let (values, vectors) = eigen_symmetric(m);
            assert!(values[0] >= values[1] && values[1] >= values[2]);
            for k in 0..3 {
                for i in 0..3 {
                    let mv: f64 = (0..3).map(|j| m[i][j] * vectors[k][j]).sum();
                    assert!((mv - values[k] * vectors[k][i]).abs() < 1e-12, "{m:?}");
                }
                for l in 0..3 {
                    let dot: f64 = (0..3).map(|i| vectors[k][i] * vectors[l][i]).sum();
                    assert!((dot - f64::from(u8::from(k == l))).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_one_pixel_after_the_other() {
        let mut random = Stream::new(4, Purpose::Synthetic, 0, 0);
        for side in [1, 2, 15, 16, 17, 33, 100] {
            let pixels: Vec<u8> = (0..side * side * 3)
                .map(|_| if side == 100 { 255 } else { random.below(256) as u8 })
                .collect();
            let mut sums = Sums::new(side);
            sums.add(&Frame::whole(&pixels[..], side, side));
            sums.settle();
            let sum = |a: usize, b: usize| -> u64 {
                pixels.chunks_exact(3).map(|p| u64::from(p[a]) * u64::from(p[b])).sum()
            };
            assert_eq!(sums.products, [sum(0, 0), sum(0, 1), sum(0, 2), sum(1, 1), sum(1, 2), sum(2, 2)]);
            let again = Sums::from_parts(sums.position.clone(), &sums.moments());
            assert_eq!((again.position, again.products, again.pictures), (sums.position, sums.products, 1));
        }
        // The longest piece, all white.
        let mut products = [0; 6];
        add_products(&[255; PIECE], &mut products);
        assert_eq!(products, [8192 * 65025; 6]);
    }

    #[test]
    fn many_white_pictures_and_parts_of_larger_ones_are_summed_up_exactly() {
        let mut sums = Sums::new(2);
        for _ in 0..700 {
            sums.add(&Frame::whole(&[255; 12][..], 2, 2));
        }
        sums.settle();
        assert_eq!((sums.position, sums.products), (vec![700 * 255; 12], [700 * 4 * 65025; 6]));

        let mut random = Stream::new(6, Purpose::Synthetic, 0, 0);
        let large: Vec<u8> = (0..50 * 40 * 3).map(|_| random.below(256) as u8).collect();
        let part = Frame { left: 7, top: 3, width: 33, height: 33, ..Frame::whole(&large[..], 50, 40) };
        let (mut apart, mut alone) = (Sums::new(33), Sums::new(33));
        apart.add(&part);
        alone.add(&Frame::whole(part.to_pixels(), 33, 33));
        assert_eq!(apart, alone);
    }

    #[test]
    fn statistics_of_known_pictures() {
        let side = 5;
        let mut random = Stream::new(1, Purpose::Synthetic, 0, 0);
        let pictures: Vec<Vec<u8>> =
            (0..7).map(|_| (0..side * side * 3).map(|_| random.below(256) as u8).collect()).collect();
        let all = pictures.iter().map(|p| NewPicture {
            path: String::new(),
            label: 0,
            split: None,
            pixels: Ok(p.clone()),
        });
        let pack =
            Pack::from_pictures(vec!["c".into()], &PackOptions { side, ..Default::default() }, all).unwrap();
        let indices = [0, 2, 3, 6];
        let stats = Stats::compute(&pack, &indices, 3).unwrap();
        assert_eq!(stats, Stats::compute(&pack, &indices, 1).unwrap());
        let chosen: Vec<&Vec<u8>> = indices.iter().map(|&i| &pictures[i as usize]).collect();
        let mean = |f: &dyn Fn(&[u8]) -> f64| {
            let pixels = chosen.iter().flat_map(|p| p.chunks_exact(3));
            pixels.clone().map(f).sum::<f64>() / pixels.count() as f64
        };
        for a in 0..3 {
            let ma = mean(&|p| f64::from(p[a]));
            assert!((stats.channel_mean[a] - ma).abs() < 1e-9);
            for b in 0..3 {
                let mb = mean(&|p| f64::from(p[b]));
                let cov = mean(&|p| (f64::from(p[a]) - ma) * (f64::from(p[b]) - mb));
                assert!((stats.covariance[a][b] - cov).abs() < 1e-6);
            }
        }
        let expected = chosen.iter().map(|p| f32::from(p[10])).sum::<f32>() / 4.0;
        assert!((stats.mean_picture[10] - expected).abs() < 1e-4);
    }
}
