//! Which part of a picture a network sees, mirrored or not, in which light: pure functions of (seed, epoch,
//! picture). [`super::paint`] writes them out.

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
    /// Instead, one of the four corners or the centre, uniformly (Zeiler and Fergus).
    #[serde(default)]
    pub corners: bool,
    /// Mirrors half of the pictures.
    pub mirror: bool,
    /// c of x ← (x + c·Σ_k z_k σ_k p_k) / (1 + c), z ~ N(0, 1), on centred pixels; 0 is off (the paper's §4.1, with the
    /// division of the code).
    pub colour_noise: f32,
    /// σ and p of the colour noise; without them there is none.
    pub colour: Option<ColourAxes>,
    /// Consecutive pictures that share one draw of offset and mirror: 32 in the code of 2012, else 1.
    pub shared_by: usize,
    /// Instead of a crop of fixed size, a part of this share of the picture's area (smallest, largest) with aspect 3/4
    /// to 4/3, resized to the crop (torchvision's `RandomResizedCrop`).
    pub area: Option<[f64; 2]>,
}

impl Default for Augment {
    /// Random crop and mirror.
    fn default() -> Self {
        Augment {
            random_crop: true,
            corners: false,
            mirror: true,
            colour_noise: 0.0,
            colour: None,
            shared_by: 1,
            area: None,
        }
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

/// A part of a picture: left, top, width, height, pixels.
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
    /// The draw for a view of a picture of `width`×`height` pixels: `crop` is the side of what the network sees. The ten
    /// views are meant for squares.
    pub fn draw(&self, view: View, key: Key, (width, height): (usize, usize), crop: usize) -> Draw {
        // A part of random area may be enlarged to the crop; others fit.
        let (right, bottom) = (width.saturating_sub(crop), height.saturating_sub(crop));
        let at = |left, top| Region { left, top, width: crop, height: crop };
        let centre = at(right / 2, bottom / 2);
        let still = |region, mirrored| Draw { region, mirrored, colour: [0.0; 3] };
        let of_five = |k: u8| match k % 5 {
            0 => at(0, 0),
            1 => at(right, 0),
            2 => centre,
            3 => at(0, bottom),
            _ => at(right, bottom),
        };
        match view {
            View::Centre => still(centre, false),
            View::Fixed(k) => still(of_five(k), k >= 5),
            View::Train => {
                // Streams of their own, so that neither draw depends on whether the other is made. Picture indices
                // have 32 bits; what lies above tells the streams apart.
                let place = match self.shared_by {
                    0 | 1 => u64::from(key.picture),
                    n => (1 << 63) | (key.position / n as u64),
                };
                let mut random = Stream::new(key.seed, Purpose::Augment, key.epoch, place);
                let (top, left) = (random.below(bottom + 1), random.below(right + 1));
                let mirrored = random.next_u32() & 1 == 1 && self.mirror;
                let region = match (self.area, self.random_crop) {
                    (Some(area), _) => random_part(&mut random, area, width, height),
                    (None, _) if self.corners => of_five(random.below(5) as u8),
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

/// A part of random area and aspect (log-uniform between 3/4 and 4/3) at a random place. If ten draws do not fit: the
/// middle, as much of it as has such an aspect.
fn random_part(random: &mut Stream, area: [f64; 2], width: usize, height: usize) -> Region {
    let (narrowest, widest) = (3.0 / 4.0, 4.0 / 3.0);
    for _ in 0..10 {
        let pixels = random.range(area[0], area[1]) * (width * height) as f64;
        let aspect = random.range(f64::ln(narrowest), f64::ln(widest)).exp();
        let (w, h) = ((pixels * aspect).sqrt().round() as usize, (pixels / aspect).sqrt().round() as usize);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let (top, left) = (random.below(height - h + 1), random.below(width - w + 1));
            return Region { left, top, width: w, height: h };
        }
    }
    let aspect = width as f64 / height as f64;
    let (w, h) = if aspect < narrowest {
        (width, (width as f64 / narrowest).round() as usize)
    } else if aspect > widest {
        ((height as f64 * widest).round() as usize, height)
    } else {
        (width, height)
    };
    // Rounding cannot lead beyond the picture, but for a sliver of a pixel.
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 20;
    const CROP: usize = 14;

    fn key(picture: u32) -> Key {
        Key { seed: 5, epoch: 2, picture, position: u64::from(picture) }
    }

    #[test]
    fn the_ten_views_are_the_papers() {
        let augment = Augment::default();
        let places: Vec<_> = View::TEN
            .iter()
            .map(|&v| augment.draw(v, key(0), (SIDE, SIDE), CROP))
            .map(|d| (d.region.left, d.region.top, d.mirrored))
            .collect();
        let corners = [(0, 0), (6, 0), (3, 3), (0, 6), (6, 6)];
        let want: Vec<_> =
            [false, true].iter().flat_map(|&m| corners.iter().map(move |&(l, t)| (l, t, m))).collect();
        assert_eq!(places, want);
        assert_eq!(
            augment.draw(View::Centre, key(0), (SIDE, SIDE), CROP),
            augment.draw(View::Fixed(2), key(9), (SIDE, SIDE), CROP)
        );
    }

    #[test]
    fn crops_reach_every_offset_evenly_and_half_are_mirrored() {
        let augment = Augment::default();
        let mut count = [[0u32; 7]; 7];
        let mut mirrored = 0;
        let n = 49 * 200;
        for i in 0..n {
            let d = augment.draw(View::Train, key(i), (SIDE, SIDE), CROP);
            count[d.region.top][d.region.left] += 1;
            mirrored += u32::from(d.mirrored);
        }
        // 200 expected in each, standard deviation 14.
        assert!(count.iter().flatten().all(|&c| (130..270).contains(&c)), "{count:?}");
        assert!((mirrored as f64 / f64::from(n) - 0.5).abs() < 0.03);
    }

    #[test]
    fn corners_and_centre_are_drawn_evenly() {
        let augment = Augment { corners: true, ..Augment::default() };
        let mut count = std::collections::BTreeMap::new();
        for i in 0..5000 {
            let d = augment.draw(View::Train, key(i), (SIDE, SIDE), CROP);
            *count.entry((d.region.top, d.region.left, d.mirrored)).or_insert(0) += 1;
        }
        // Ten views, 500 expected of each, standard deviation 21.
        assert_eq!(count.len(), 10, "{count:?}");
        assert!(count.values().all(|n| (390..610).contains(n)), "{count:?}");
    }

    #[test]
    fn parts_of_random_area_lie_in_the_picture_and_have_their_area_and_aspect() {
        let augment = Augment { area: Some([0.08, 1.0]), ..Default::default() };
        let mut shares = Vec::new();
        for i in 0..4000 {
            let r = augment.draw(View::Train, key(i), (400, 300), CROP).region;
            assert!(r.left + r.width <= 400 && r.top + r.height <= 300, "{r:?}");
            let aspect = r.width as f64 / r.height as f64;
            assert!((0.74..1.35).contains(&aspect), "{r:?}");
            shares.push((r.width * r.height) as f64 / 120_000.0);
        }
        assert!(shares.iter().all(|s| (0.079..1.001).contains(s)));
        let mean = shares.iter().sum::<f64>() / 4000.0;
        // 0.54 if every draw fitted; large ones fit less often.
        assert!((0.40..0.54).contains(&mean), "{mean}");
        // A strip in which nothing fits: the middle, at the widest aspect.
        let strip = augment.draw(View::Train, key(1), (2000, 10), CROP).region;
        assert_eq!((strip.left, strip.top, strip.width, strip.height), (993, 0, 13, 10));
    }

    #[test]
    fn draws_hang_on_seed_epoch_and_picture_alone() {
        let augment =
            Augment { colour: Some(ColourAxes::imagenet()), colour_noise: 0.1, ..Default::default() };
        let base = Key { seed: 1, epoch: 1, picture: 1, position: 1 };
        let draw = |k| augment.draw(View::Train, k, (256, 256), 224);
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
                    (256, 256),
                    224,
                )
            })
            .collect();
        for group in draws.chunks(32) {
            assert!(group.iter().all(|d| d == &group[0]));
        }
        assert!(draws[0] != draws[32] || draws[32] != draws[64]);
    }
}
