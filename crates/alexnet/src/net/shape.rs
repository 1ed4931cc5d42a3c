//! Sizes of maps, and the zeros around them.

use serde::{Deserialize, Serialize};

/// Channels × height × width of one picture's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Channels (maps).
    pub c: usize,
    /// Height, pixels.
    pub h: usize,
    /// Width, pixels.
    pub w: usize,
}

impl Shape {
    /// A shape from its three sizes.
    pub const fn new(c: usize, h: usize, w: usize) -> Self {
        Shape { c, h, w }
    }

    /// Elements in one picture's activation.
    pub const fn len(&self) -> usize {
        self.c * self.h * self.w
    }

    /// True if there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.c, self.h, self.w)
    }
}

/// Zeros around a map, the same for rows and columns. In TOML `pad = 2` or `pad = [0, 3]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PadForm", into = "PadForm")]
pub struct Pad {
    /// Above and left of the map, pixels.
    pub before: usize,
    /// Below and right of the map, pixels.
    pub after: usize,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum PadForm {
    Both(usize),
    Each([usize; 2]),
}

impl From<PadForm> for Pad {
    fn from(form: PadForm) -> Self {
        match form {
            PadForm::Both(p) => Pad { before: p, after: p },
            PadForm::Each([before, after]) => Pad { before, after },
        }
    }
}

impl From<Pad> for PadForm {
    fn from(p: Pad) -> Self {
        if p.before == p.after { PadForm::Both(p.before) } else { PadForm::Each([p.before, p.after]) }
    }
}
