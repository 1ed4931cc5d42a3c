//! Drawn pictures, for where there are none: twelve kinds of things at any place, size, angle, colour and light, on
//! cluttered grounds. What tells the kinds apart is their structure alone: colours, materials, light and clutter are
//! drawn from the same distributions for all, so that histograms of colours or of gradients say little.
//!
//! A picture is a function of (seed, kind, index): the same whatever else is drawn.

mod ground;
mod shapes;

use super::pack::{NewPicture, Pack, PackOptions};
use super::split::Split;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use ground::{Colour, Ground, Material};
pub use shapes::Kind;
use shapes::Shape;

/// Side of the stored pictures that the demonstration uses: for crops of 64 pixels.
pub const SIDE: usize = 72;
/// Training pictures of each kind in the demonstration.
pub const TRAIN_PER_CLASS: usize = 450;
/// Validation pictures of each kind in the demonstration.
pub const VAL_PER_CLASS: usize = 100;

/// Sample points a pixel in each direction.
const SAMPLES: usize = 2;
/// Validation pictures are counted from here, so that neither side's size changes the other.
const FIRST_VAL: u64 = 1 << 32;

/// A pack in memory of `train` and `val` pictures of each kind, with that split, of `side`×`side` pixels.
///
/// # Errors
/// [`Error::Config`] if `side` is below 16 or there are no pictures.
pub fn drawn_pack(seed: u64, train: usize, val: usize, side: usize) -> Result<Pack> {
    if side < 16 || train + val == 0 {
        return Err(Error::Config(format!(
            "{train} + {val} drawn pictures a kind of {side} pixels: at least one of at least 16 pixels"
        )));
    }
    let mut plan = Vec::new();
    for label in 0..Kind::ALL.len() {
        plan.extend((0..train as u64).map(|i| (label, i, Split::Train)));
        plan.extend((0..val as u64).map(|i| (label, FIRST_VAL + i, Split::Val)));
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = plan.len().div_ceil(threads);
    let drawn: Vec<Vec<NewPicture>> = std::thread::scope(|scope| {
        let part = |part: &[(usize, u64, Split)]| {
            part.iter()
                .map(|&(label, index, split)| {
                    let kind = Kind::ALL[label];
                    let folder = if split == Split::Train { "train" } else { "val" };
                    NewPicture {
                        path: format!("{folder}/{}/{:05}", kind.name(), index % FIRST_VAL),
                        label: label as u32,
                        split: Some(split),
                        pixels: Ok(draw(seed, kind, index, side)),
                    }
                })
                .collect()
        };
        let workers: Vec<_> = plan.chunks(share).map(|p| scope.spawn(move || part(p))).collect();
        workers.into_iter().map(|w| w.join().expect("drawing does not panic")).collect()
    });
    let classes = Kind::ALL.iter().map(|k| k.name().to_string()).collect();
    Pack::from_pictures(classes, &PackOptions { side, ..Default::default() }, drawn.into_iter().flatten())
}

/// Where a thing is and how it is turned; the picture spans −1 to 1 both ways.
struct Pose {
    centre: [f64; 2],
    /// From picture to thing: turns, scales and slants.
    inverse: [[f64; 2]; 2],
    /// No part of the thing is farther from its centre, in the picture.
    reach: f64,
}

impl Pose {
    fn draw(random: &mut Stream) -> Pose {
        let size = random.range(0.52, 0.90);
        let room = (0.95 - size).max(0.0) + 0.06;
        let centre = [random.range(-room, room), random.range(-room, room)];
        let angle = random.range(0.0, std::f64::consts::TAU);
        // One side seen a little from the side.
        let squeeze = random.range(0.82, 1.0);
        let slant = random.range(0.0, std::f64::consts::TAU);
        let mirror = if random.next_u32() & 1 == 1 { -1.0 } else { 1.0 };
        let turn = |a: f64| [[a.cos(), a.sin()], [-a.sin(), a.cos()]];
        let scale = |x: f64, y: f64| [[x, 0.0], [0.0, y]];
        let squeezed = times(turn(-slant), times(scale(1.0, 1.0 / squeeze), turn(slant)));
        let inverse = times(times(scale(mirror / size, 1.0 / size), turn(angle)), squeezed);
        Pose { centre, inverse, reach: size * shapes::REACH }
    }

    /// Whether a point is no more than `margin` beyond the thing's reach.
    fn is_near(&self, x: f64, y: f64, margin: f64) -> bool {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let reach = self.reach + margin;
        dx * dx + dy * dy <= reach * reach
    }

    fn local(&self, x: f64, y: f64) -> [f64; 2] {
        let (x, y) = (x - self.centre[0], y - self.centre[1]);
        self.inverse.map(|row| row[0] * x + row[1] * y)
    }
}

fn times(a: [[f64; 2]; 2], b: [[f64; 2]; 2]) -> [[f64; 2]; 2] {
    std::array::from_fn(|i| std::array::from_fn(|j| a[i][0] * b[0][j] + a[i][1] * b[1][j]))
}

/// Draws one picture, (side, side, 3).
fn draw(seed: u64, kind: Kind, index: u64, side: usize) -> Vec<u8> {
    let mut random = Stream::new(seed, Purpose::Generator, kind as u64, index);
    let pose = Pose::draw(&mut random);
    let shape = Shape::draw(kind, &mut random);
    let ground = Ground::draw(&mut random);
    let material = Material::draw(&mut random, ground.mean_colour());
    let light = Light::draw(&mut random);
    let shadow = [random.range(-0.06, 0.06), random.range(-0.06, 0.06)];
    let step = 2.0 / side as f64;
    let scene = Scene { pose, shape, ground, material, shadow, margin: step };
    let mut pixels = Vec::with_capacity(side * side * 3);
    for py in 0..side {
        for px in 0..side {
            let at = |p: usize| (p as f64 + 0.5) * step - 1.0;
            let (x, y) = (at(px), at(py));
            let colour = scene.pixel(x, y, step);
            let brightness = light.at(x, y);
            for c in colour {
                // Noise of a small sensor.
                let noise = light.noise * (random.uniform() + random.uniform() - 1.0);
                pixels.push(((c * brightness + noise) * 255.0).round().clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels
}

/// Everything in a picture.
struct Scene {
    pose: Pose,
    shape: Shape,
    ground: Ground,
    material: Material,
    /// How far the thing's shadow is from it.
    shadow: [f64; 2],
    /// What is farther than this from a pixel's centre is not in it.
    margin: f64,
}

impl Scene {
    /// The mean colour of a pixel: edges are sampled finely, the ground and the shadow, which are smooth, once.
    fn pixel(&self, x: f64, y: f64, step: f64) -> Colour {
        let mut ground = self.ground.base(x, y);
        let (sx, sy) = (x - self.shadow[0], y - self.shadow[1]);
        if self.pose.is_near(sx, sy, 0.0) {
            let [u, v] = self.pose.local(sx, sy);
            if self.shape.contains(u, v) {
                ground = ground.map(|c| c * 0.75);
            }
        }
        let thing = self.pose.is_near(x, y, self.margin);
        if !thing && !self.ground.has_scrap_near(x, y, self.margin) {
            return ground;
        }
        let mut sum = [0.0; 3];
        for sample in 0..SAMPLES * SAMPLES {
            let offset = |s: usize| ((s as f64 + 0.5) / SAMPLES as f64 - 0.5) * step;
            let (x, y) = (x + offset(sample % SAMPLES), y + offset(sample / SAMPLES));
            let colour = self.surface(x, y, thing).unwrap_or(ground);
            for c in 0..3 {
                sum[c] += colour[c] / (SAMPLES * SAMPLES) as f64;
            }
        }
        sum
    }

    /// The colour of what lies on the ground at a point: what lies over everything, the thing, what lies under it.
    fn surface(&self, x: f64, y: f64, thing: bool) -> Option<Colour> {
        if let Some(over) = self.ground.over(x, y) {
            return Some(over);
        }
        if thing {
            let [u, v] = self.pose.local(x, y);
            if self.shape.contains(u, v) {
                return Some(self.material.at(u, v));
            }
        }
        self.ground.under(x, y)
    }
}

/// Light that falls off across the picture.
struct Light {
    level: f64,
    slope: [f64; 2],
    noise: f64,
}

impl Light {
    fn draw(random: &mut Stream) -> Light {
        let (angle, fall) = (random.range(0.0, std::f64::consts::TAU), random.range(0.0, 0.25));
        Light {
            level: random.range(0.75, 1.15),
            slope: [fall * angle.cos(), fall * angle.sin()],
            noise: random.range(0.0, 0.04),
        }
    }

    fn at(&self, x: f64, y: f64) -> f64 {
        self.level * (1.0 + self.slope[0] * x + self.slope[1] * y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_hangs_on_seed_kind_and_index_alone() {
        let few = drawn_pack(3, 2, 1, 24).unwrap();
        let many = drawn_pack(3, 5, 4, 24).unwrap();
        let find = |pack: &Pack, path: &str| {
            (0..pack.len())
                .find(|&i| pack.path(i) == path)
                .and_then(|i| pack.picture(i).map(<[u8]>::to_vec))
                .unwrap()
        };
        for path in ["train/star/00001", "val/gear/00000"] {
            assert_eq!(find(&few, path), find(&many, path));
        }
        assert_ne!(find(&many, "train/star/00001"), find(&many, "val/star/00001"));
        let other = drawn_pack(4, 2, 1, 24).unwrap();
        assert_ne!(find(&few, "train/star/00001"), find(&other, "train/star/00001"));
    }

    #[test]
    fn the_split_is_as_asked() {
        let pack = drawn_pack(1, 3, 2, 16).unwrap();
        assert_eq!((pack.len(), pack.classes().len()), (12 * 5, 12));
        let sides = super::super::split(&pack, &super::super::SplitRule::Given).unwrap();
        assert_eq!((sides.train.len(), sides.val.len()), (36, 24));
        assert!(drawn_pack(1, 0, 0, 64).is_err() && drawn_pack(1, 1, 1, 8).is_err());
    }

    #[test]
    fn every_kind_covers_a_sensible_part_of_its_frame() {
        for kind in Kind::ALL {
            for i in 0..20 {
                let shape = Shape::draw(kind, &mut Stream::new(i, Purpose::Synthetic, 0, 0));
                let mut inside = 0;
                for k in 0..10_000 {
                    let at = |n: usize| n as f64 / 50.0 * 1.3 - 1.3;
                    let (u, v) = (at(k % 100), at(k / 100));
                    if shape.contains(u, v) {
                        inside += 1;
                        assert!(u.hypot(v) <= shapes::REACH + 0.02, "{kind:?} reaches {u} {v}");
                    }
                }
                let share = f64::from(inside) / 10_000.0 * 2.6 * 2.6 / std::f64::consts::PI;
                assert!((0.10..0.85).contains(&share), "{kind:?} {i}: {share}");
            }
        }
    }
}
