//! The kinds of things: for each, which points of the plane belong to it.

use crate::rng::Stream;
use std::f64::consts::{PI, TAU};

/// No thing reaches farther from its centre.
pub const REACH: f64 = 1.05;

/// What a drawn picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the names say it
pub enum Kind {
    Arrow,
    Checkers,
    Crescent,
    Cross,
    Flower,
    Gear,
    Ladder,
    Lattice,
    Ring,
    Spiral,
    Star,
    Zigzag,
}

impl Kind {
    /// In the order of the labels.
    pub const ALL: [Kind; 12] = [
        Kind::Arrow,
        Kind::Checkers,
        Kind::Crescent,
        Kind::Cross,
        Kind::Flower,
        Kind::Gear,
        Kind::Ladder,
        Kind::Lattice,
        Kind::Ring,
        Kind::Spiral,
        Kind::Star,
        Kind::Zigzag,
    ];

    /// The class name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Arrow => "arrow",
            Kind::Checkers => "checkers",
            Kind::Crescent => "crescent",
            Kind::Cross => "cross",
            Kind::Flower => "flower",
            Kind::Gear => "gear",
            Kind::Ladder => "ladder",
            Kind::Lattice => "lattice",
            Kind::Ring => "ring",
            Kind::Spiral => "spiral",
            Kind::Star => "star",
            Kind::Zigzag => "zigzag",
        }
    }
}

/// A thing of its kind with proportions of its own.
pub struct Shape {
    kind: Kind,
    /// A number of parts: points, teeth, petals, cells.
    parts: f64,
    /// Two proportions; what they mean depends on the kind.
    a: f64,
    b: f64,
}

impl Shape {
    /// Draws the proportions.
    pub fn draw(kind: Kind, random: &mut Stream) -> Shape {
        let (parts, a, b) = match kind {
            Kind::Arrow => ((1, 1), (0.16, 0.26), (0.50, 0.68)), // half width of the shaft, of the head
            Kind::Checkers => ((4, 5), (0.68, 0.74), (0.0, 0.0)), // half side
            Kind::Crescent => ((1, 1), (0.32, 0.48), (0.80, 0.90)), // offset and radius of what is cut out
            Kind::Cross => ((4, 4), (0.20, 0.32), (0.0, 0.0)),   // half width of an arm
            Kind::Flower => ((5, 7), (0.28, 0.36), (0.0, 0.0)),  // radius of the eye's rim
            Kind::Gear => ((8, 10), (0.72, 0.78), (0.25, 0.40)), // radius of the body, of the hole
            Kind::Ladder => ((4, 5), (0.38, 0.50), (0.07, 0.10)), // half width, half thickness
            Kind::Lattice => ((3, 4), (0.68, 0.74), (0.06, 0.09)), // half side, half thickness
            Kind::Ring => ((1, 1), (0.55, 0.72), (0.0, 0.0)),    // inner radius
            Kind::Spiral => ((1, 1), (1.9, 2.4), (0.42, 0.55)),  // turns, share of a turn that is filled
            Kind::Star => ((5, 6), (0.38, 0.46), (0.0, 0.0)),    // radius of the inner corners
            Kind::Zigzag => ((2, 3), (0.36, 0.46), (0.11, 0.15)), // height of a tooth, half thickness
        };
        let (low, high): (u32, u32) = parts;
        let parts = f64::from(low) + random.below((high - low + 1) as usize) as f64;
        Shape { kind, parts, a: random.range(a.0, a.1), b: random.range(b.0, b.1) }
    }

    /// Whether the point belongs to the thing.
    pub fn contains(&self, u: f64, v: f64) -> bool {
        let (n, a, b) = (self.parts, self.a, self.b);
        let r = u.hypot(v);
        if r > REACH {
            return false;
        }
        match self.kind {
            Kind::Ring => r <= 1.0 && r >= a,
            Kind::Cross => (u.abs() <= a && v.abs() <= 1.0) || (v.abs() <= a && u.abs() <= 1.0),
            Kind::Crescent => r <= 1.0 && (u - a).hypot(v) >= b,
            Kind::Arrow => {
                let shaft = v.abs() <= a && (-1.0..=0.3).contains(&u);
                let head = (0.15..=1.0).contains(&u) && v.abs() <= b * (1.0 - u) / 0.85;
                shaft || head
            }
            Kind::Star => {
                // Within a sector, the edge runs straight from the point (1, 0) to the inner corner.
                let sector = PI / n;
                let angle = (v.atan2(u).rem_euclid(2.0 * sector) - sector).abs();
                let angle = sector - angle;
                let (x, y) = (r * angle.cos(), r * angle.sin());
                let corner = (a * sector.cos(), a * sector.sin());
                (corner.0 - 1.0) * y - corner.1 * (x - 1.0) >= 0.0
            }
            Kind::Gear => {
                let tooth = (v.atan2(u) * n).cos() > 0.0;
                r >= b && r <= if tooth { 1.0 } else { a }
            }
            Kind::Flower => {
                let petals = 0.62 + 0.38 * (v.atan2(u) * n / 2.0).cos().abs() * 2.0 - 0.38;
                let rim = (r - a).abs() <= 0.07;
                r <= petals && !rim
            }
            Kind::Spiral => {
                if r > 1.0 {
                    return false;
                }
                // Distance along the arm: one turn outward is 1/turns of the radius.
                let phase = (r * a - v.atan2(u) / TAU).rem_euclid(1.0);
                phase < b || r < 0.10
            }
            Kind::Checkers => {
                if u.abs().max(v.abs()) > a {
                    return false;
                }
                let cell = |x: f64| ((x + a) / (2.0 * a) * n).floor() as i64;
                (cell(u) + cell(v)) % 2 == 0
            }
            Kind::Lattice => {
                if u.abs().max(v.abs()) > a {
                    return false;
                }
                let bar = |x: f64| {
                    // n + 1 bars, the outer ones along the border.
                    let at = (x + a - b) / (2.0 * (a - b)) * n;
                    (at - at.round()).abs() * 2.0 * (a - b) / n <= b
                };
                bar(u) || bar(v)
            }
            Kind::Ladder => {
                let length = 0.90;
                if u.abs() > length || v.abs() > a {
                    return false;
                }
                let at = (u + length) / (2.0 * length) * n;
                let rung = (at - at.floor() - 0.5).abs() * 2.0 * length / n <= b;
                v.abs() >= a - 2.0 * b || rung
            }
            Kind::Zigzag => {
                let length = 0.95;
                if u.abs() > length {
                    return false;
                }
                // A triangle wave of n periods.
                let phase = (u + length) / (2.0 * length) * n;
                let wave = (phase - phase.floor() - 0.5).abs() * 4.0 - 1.0;
                let steep = (4.0 * a * n / (2.0 * length)).hypot(1.0);
                (v - a * wave).abs() <= b * steep.min(2.2)
            }
        }
    }
}
