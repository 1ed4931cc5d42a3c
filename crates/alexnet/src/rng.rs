//! Counter-based random numbers: every draw is a pure function of a key and a counter, so that the same seed
//! gives the same bits whatever the threads, the order of the work or an interruption in between.
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// What a stream of random numbers is for. Streams with different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `a` = parameter index.
    Init = 1,
    /// The order of the pictures; `a` = epoch.
    Shuffle = 2,
    /// Crop, mirror and colour of one picture; `a` = epoch, `b` = picture.
    Augment = 3,
    /// Dropout masks; `a` = step, `b` = layer index.
    Dropout = 4,
    /// Drawn pictures; `a` = class, `b` = picture.
    Generator = 5,
    /// Synthetic inputs of tests and benchmarks.
    Synthetic = 6,
}

/// The constants of Philox4x32 (SC 2011, table 2 and §4.3).
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The Philox4x32-10 block: 128 random bits for a counter and a key.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox`] of `N` counters side by side, word by word, in loops that compilers turn into vectors.
#[inline(always)]
pub fn philox_lanes<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        for n in 0..N {
            let p0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0][n]);
            let p1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2][n]);
            counter[0][n] = (p1 >> 32) as u32 ^ counter[1][n] ^ key[0];
            counter[1][n] = p1 as u32;
            counter[2][n] = (p0 >> 32) as u32 ^ counter[3][n] ^ key[1];
            counter[3][n] = p0 as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A stream of random numbers, addressed by (seed, purpose, a, b) and read in order or at any index.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    /// The high half of the counter: what the stream is for.
    stream: [u32; 2],
    index: u64,
    block: [u32; 4],
}

impl Stream {
    /// The stream for one purpose; `a` and `b` as [`Purpose`] says.
    pub fn new(seed: u64, purpose: Purpose, a: u64, b: u64) -> Self {
        // One Philox block hashes the address into a key, so that no two addresses share a stream.
        let h = philox(
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32],
            [seed as u32, (seed >> 32) as u32],
        );
        Stream { key: [h[0], h[1]], stream: [h[2], purpose as u32 ^ h[3]], index: 0, block: [0; 4] }
    }

    /// The 32 random bits at `index`, without moving the stream.
    #[inline]
    pub fn at(&self, index: u64) -> u32 {
        self.block_at(index >> 2)[(index & 3) as usize]
    }

    /// The four words at indices `4 * block ..`, without moving the stream.
    #[inline]
    pub fn block_at(&self, block: u64) -> [u32; 4] {
        philox([block as u32, (block >> 32) as u32, self.stream[0], self.stream[1]], self.key)
    }

    /// [`Stream::block_at`] of several blocks, word by word.
    #[inline(always)]
    pub fn blocks_at<const N: usize>(&self, blocks: [u64; N]) -> [[u32; N]; 4] {
        let words = [blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32)];
        philox_lanes([words[0], words[1], [self.stream[0]; N], [self.stream[1]; N]], self.key)
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.index & 3 == 0 {
            self.block = self.block_at(self.index >> 2);
        }
        self.index += 1;
        self.block[((self.index - 1) & 3) as usize]
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n. The bias of the multiply-shift reduction is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box-Muller, the cosine branch).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A uniformly random permutation in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the authors' Random123 library (`kat_vectors`, philox4x32 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn reading_in_order_equals_reading_by_index() {
        let mut s = Stream::new(7, Purpose::Init, 3, 9);
        let fixed = s.clone();
        for i in 0..100 {
            assert_eq!(s.next_u32(), fixed.at(i));
        }
    }

    #[test]
    fn normal_has_mean_zero_and_deviation_one() {
        let mut s = Stream::new(1, Purpose::Synthetic, 0, 0);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        // Five standard errors.
        assert!(mean.abs() < 5.0 / f64::from(n).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / f64::from(n)).sqrt(), "{variance}");
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..1000).collect();
        Stream::new(5, Purpose::Shuffle, 0, 0).shuffle(&mut items);
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
