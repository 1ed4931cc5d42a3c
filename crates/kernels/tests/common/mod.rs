//! Random operands for the kernel tests.
#![allow(dead_code)] // each test file uses a part

pub mod convolution;
pub mod maps;

/// A small generator with a full period of 2^64: reproducible, and independent of the library under test.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Integers from −3 to 3: sums of products below 2^24 are exact in f32.
    pub fn integers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(7) as f32 - 3.0).collect()
    }

    /// Uniform in ±1.
    pub fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// Fails unless |got − want| ≤ tolerance everywhere.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(g) - w).abs() <= tolerance,
            "{what}: element {i} is {g}, not {w} (± {tolerance:e})"
        );
    }
}
