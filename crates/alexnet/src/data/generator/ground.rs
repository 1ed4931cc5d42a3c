//! Grounds, clutter, materials and colours. Nothing here knows which kind of thing is drawn.

use crate::rng::Stream;
use std::f64::consts::TAU;

/// Red, green, blue, 0 to 1.
pub type Colour = [f64; 3];

fn draw_colour(random: &mut Stream) -> Colour {
    // From hue, saturation and value: more saturated colours than uniform RGB gives.
    let (hue, saturation, value) = (random.range(0.0, 6.0), random.range(0.1, 0.9), random.range(0.15, 0.95));
    std::array::from_fn(|c| {
        let k = (hue + [5.0, 3.0, 1.0][c]) % 6.0;
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

fn mix(a: Colour, b: Colour, t: f64) -> Colour {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t)
}

fn luminance(c: Colour) -> f64 {
    0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]
}

/// Smooth noise between 0 and 1 on a lattice of random values.
struct Cloud {
    values: Vec<f64>,
    cells: usize,
}

impl Cloud {
    fn draw(random: &mut Stream, cells: usize) -> Cloud {
        Cloud { values: (0..(cells + 1) * (cells + 1)).map(|_| random.uniform()).collect(), cells }
    }

    /// At a point of −1 to 1 both ways; beyond, the border's value.
    fn at(&self, x: f64, y: f64) -> f64 {
        let place = |p: f64| {
            let at = ((p + 1.0) / 2.0 * self.cells as f64).clamp(0.0, self.cells as f64 - 1e-9);
            let t = at.fract();
            (at as usize, t * t * (3.0 - 2.0 * t))
        };
        let ((x, s), (y, t)) = (place(x), place(y));
        let v = |x: usize, y: usize| self.values[y * (self.cells + 1) + x];
        let (top, bottom) =
            (v(x, y) + (v(x + 1, y) - v(x, y)) * s, v(x, y + 1) + (v(x + 1, y + 1) - v(x, y + 1)) * s);
        top + (bottom - top) * t
    }
}

/// A regular texture between 0 and 1.
enum Pattern {
    Plain,
    Stripes { direction: [f64; 2], phase: f64 },
    Spots { pitch: f64 },
    Checks { pitch: f64 },
    Cloudy(Cloud),
}

impl Pattern {
    fn draw(random: &mut Stream) -> Pattern {
        let pitch = random.range(0.16, 0.34);
        match random.below(5) {
            0 => Pattern::Plain,
            1 => {
                let angle = random.range(0.0, TAU);
                let per_unit = TAU / pitch;
                let direction = [angle.cos() * per_unit, angle.sin() * per_unit];
                Pattern::Stripes { direction, phase: random.range(0.0, TAU) }
            }
            2 => Pattern::Spots { pitch },
            3 => Pattern::Checks { pitch },
            _ => Pattern::Cloudy(Cloud::draw(random, 8)),
        }
    }

    fn at(&self, x: f64, y: f64) -> f64 {
        match self {
            Pattern::Plain => 0.0,
            Pattern::Stripes { direction, phase } => {
                0.5 + 0.5 * (direction[0] * x + direction[1] * y + phase).sin()
            }
            Pattern::Spots { pitch } => {
                let from_centre = |p: f64| (p / pitch).rem_euclid(1.0) - 0.5;
                f64::from(u8::from(from_centre(x).hypot(from_centre(y)) < 0.3))
            }
            Pattern::Checks { pitch } => {
                (((x / pitch).floor() + (y / pitch).floor()) as i64).rem_euclid(2) as f64
            }
            Pattern::Cloudy(cloud) => cloud.at(x, y),
        }
    }
}

/// What a thing is made of: two colours and a texture.
pub struct Material {
    main: Colour,
    second: Colour,
    pattern: Pattern,
}

impl Material {
    /// Stands out from a ground of this mean colour, lighter or darker.
    pub fn draw(random: &mut Stream, ground: Colour) -> Material {
        let mut main = draw_colour(random);
        // About half of all draws differ enough; sixteen in vain are one in 2^16.
        for _ in 0..16 {
            if (luminance(main) - luminance(ground)).abs() >= 0.30 {
                break;
            }
            main = draw_colour(random);
        }
        let second = mix(main, draw_colour(random), random.range(0.10, 0.50));
        Material { main, second, pattern: Pattern::draw(random) }
    }

    /// The colour at a point of the thing.
    pub fn at(&self, u: f64, v: f64) -> Colour {
        mix(self.main, self.second, self.pattern.at(u, v))
    }
}

/// Something small that lies about.
enum Scrap {
    /// A straight stroke between two points, half thickness.
    Stroke([f64; 2], [f64; 2], f64),
    /// A disc.
    Blob([f64; 2], f64),
    /// A part of a circle's line: centre, radius, half thickness, direction of its middle, half angle.
    Arc([f64; 2], f64, f64, f64, f64),
    /// A square piece of a texture, with its half side.
    Patch([f64; 2], f64, f64, Pattern),
}

impl Scrap {
    fn draw(random: &mut Stream) -> Scrap {
        let centre = [random.range(-1.0, 1.0), random.range(-1.0, 1.0)];
        let angle = random.range(0.0, TAU);
        match random.below(4) {
            0 => {
                let (length, thickness) = (random.range(0.15, 0.5), random.range(0.015, 0.05));
                let end = [centre[0] + 2.0 * length * angle.cos(), centre[1] + 2.0 * length * angle.sin()];
                Scrap::Stroke(centre, end, thickness)
            }
            1 => Scrap::Blob(centre, random.range(0.05, 0.2)),
            2 => Scrap::Arc(
                centre,
                random.range(0.15, 0.4),
                random.range(0.015, 0.05),
                angle,
                random.range(0.5, 1.3),
            ),
            _ => Scrap::Patch(centre, random.range(0.10, 0.24), angle, Pattern::draw(random)),
        }
    }

    /// A circle around it.
    fn bounds(&self) -> ([f64; 2], f64) {
        match self {
            Scrap::Stroke([ax, ay], [bx, by], thickness) => {
                ([(ax + bx) / 2.0, (ay + by) / 2.0], (bx - ax).hypot(by - ay) / 2.0 + thickness)
            }
            Scrap::Blob(centre, radius) => (*centre, *radius),
            Scrap::Arc(centre, radius, thickness, ..) => (*centre, radius + thickness),
            Scrap::Patch(centre, half, ..) => (*centre, half * 1.5),
        }
    }

    /// How much of its second colour there is at a point; `None` beside it.
    fn at(&self, x: f64, y: f64) -> Option<f64> {
        match self {
            Scrap::Stroke([ax, ay], [bx, by], thickness) => {
                let (dx, dy) = (bx - ax, by - ay);
                let along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
                ((x - ax - along * dx).hypot(y - ay - along * dy) <= *thickness).then_some(0.0)
            }
            Scrap::Blob([cx, cy], radius) => ((x - cx).hypot(y - cy) <= *radius).then_some(0.0),
            Scrap::Arc([cx, cy], radius, thickness, middle, half) => {
                let (dx, dy) = (x - cx, y - cy);
                let on_line = (dx.hypot(dy) - radius).abs() <= *thickness;
                (on_line && ((dy.atan2(dx) - middle + TAU / 2.0).rem_euclid(TAU) - TAU / 2.0).abs() <= *half)
                    .then_some(0.0)
            }
            Scrap::Patch([cx, cy], half, angle, pattern) => {
                let (dx, dy) = (x - cx, y - cy);
                if dx.abs().max(dy.abs()) > half * 1.5 {
                    return None;
                }
                let (s, c) = angle.sin_cos();
                let (u, v) = (c * dx + s * dy, c * dy - s * dx);
                (u.abs().max(v.abs()) <= *half).then(|| pattern.at(u * 2.0, v * 2.0))
            }
        }
    }
}

/// Everything around a thing.
pub struct Ground {
    colours: [Colour; 2],
    direction: [f64; 2],
    clouds: [Cloud; 2],
    /// How much the clouds and the texture show.
    strength: [f64; 3],
    pattern: Pattern,
    scraps: Vec<(Scrap, [Colour; 2])>,
    /// How many of the scraps lie over the thing: the last ones.
    over: usize,
}

impl Ground {
    /// Draws a ground with its clutter.
    pub fn draw(random: &mut Stream) -> Ground {
        let first = draw_colour(random);
        let second = mix(first, draw_colour(random), random.range(0.1, 0.5));
        let angle = random.range(0.0, TAU);
        let clouds = [Cloud::draw(random, 3), Cloud::draw(random, 10)];
        let strength = [random.range(0.1, 0.5), random.range(0.0, 0.4), random.range(0.0, 0.5)];
        let pattern = Pattern::draw(random);
        let scraps = (0..random.below(6) + 2)
            .map(|_| {
                let scrap = Scrap::draw(random);
                let main = mix(first, draw_colour(random), random.range(0.3, 0.9));
                (scrap, [main, mix(main, draw_colour(random), random.range(0.3, 0.8))])
            })
            .collect();
        let over = usize::from(random.below(4) == 0);
        Ground {
            colours: [first, second],
            direction: [angle.cos(), angle.sin()],
            clouds,
            strength,
            pattern,
            scraps,
            over,
        }
    }

    /// What the thing must stand out from.
    pub fn mean_colour(&self) -> Colour {
        mix(self.colours[0], self.colours[1], 0.5)
    }

    /// The colour of the bare ground.
    pub fn base(&self, x: f64, y: f64) -> Colour {
        let slope = 0.5 + 0.35 * (self.direction[0] * x + self.direction[1] * y);
        let wave = |k: usize| (self.clouds[k].at(x, y) - 0.5) * self.strength[k];
        let fine = wave(1);
        let t = slope + wave(0) + fine + (self.pattern.at(x, y) - 0.5) * self.strength[2];
        mix(self.colours[0], self.colours[1], t).map(|c| (c + 0.5 * fine).clamp(0.0, 1.0))
    }

    /// The colour of clutter that lies under the thing, if there is any here.
    pub fn under(&self, x: f64, y: f64) -> Option<Colour> {
        topmost(&self.scraps[..self.scraps.len() - self.over], x, y)
    }

    /// The colour of clutter that lies over the thing, if there is any here.
    pub fn over(&self, x: f64, y: f64) -> Option<Colour> {
        topmost(&self.scraps[self.scraps.len() - self.over..], x, y)
    }

    /// Whether any clutter is within `margin` of a point.
    pub fn has_scrap_near(&self, x: f64, y: f64, margin: f64) -> bool {
        self.scraps.iter().any(|(scrap, _)| {
            let ([cx, cy], radius) = scrap.bounds();
            (x - cx).abs().max((y - cy).abs()) <= radius + margin
        })
    }
}

fn topmost(scraps: &[(Scrap, [Colour; 2])], x: f64, y: f64) -> Option<Colour> {
    scraps.iter().rev().find_map(|(scrap, colours)| scrap.at(x, y).map(|t| mix(colours[0], colours[1], t)))
}
