//! Changing bytes at random, but always in the same way: a mutant is a function of (target, number).

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Numbers at which sizes go wrong.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    4,
    7,
    8,
    16,
    64,
    127,
    128,
    255,
    256,
    4095,
    65_535,
    65_536,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Changes a seed in one to four ways: bits flipped, bytes set, cut, a piece taken out, doubled or put in, a number
/// set to an edge (as 1, 2, 4 or 8 bytes of either order, as a protobuf varint, or as decimal digits), a token put
/// in or over, or the end of another seed put behind the beginning of this one.
///
/// In a `text`, three changes of four keep to its pieces: a word for another word, a line or field taken out, doubled
/// or moved.
pub fn mutate(seeds: &[Vec<u8>], tokens: &[Vec<u8>], text: bool, random: &mut Random) -> Vec<u8> {
    let mut bytes = random.of(seeds).clone();
    // One change in half of the mutants, two in a quarter, and so on to four.
    let changes = 1 + (random.next() | 8).trailing_zeros();
    for _ in 0..changes {
        if bytes.is_empty() {
            bytes.push(random.next() as u8);
        }
        let at = random.below(bytes.len());
        if text && random.below(4) > 0 {
            change_pieces(&mut bytes, at, seeds, tokens, random);
            continue;
        }
        match random.below(16) {
            0..=2 => {
                for _ in 0..1 + random.below(3) {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            3 | 4 => bytes[at] = random.next() as u8,
            5 => bytes[at] = *random.of(&[0, 1, 0x7f, 0x80, 0xff]),
            6 => bytes.truncate(at),
            7 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            8 => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            9 => {
                let piece: Vec<u8> = (0..1 + random.below(8)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, piece);
            }
            10..=12 => set_number(&mut bytes, at, random),
            13 => set_digits(&mut bytes, at, random),
            14 if !tokens.is_empty() => {
                let token = random.of(tokens).clone();
                let over = if random.below(2) == 0 { token.len() } else { 0 };
                let end = (at + over).min(bytes.len());
                bytes.splice(at..end, token);
            }
            _ => {
                let other = random.of(seeds);
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

/// Sets a number at `at` to an edge, near the length of the file, or near what it was.
fn set_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let size = *random.of(&[1, 2, 4, 8]);
    let place = at..(at + size).min(bytes.len());
    let mut old = [0; 8];
    old[..place.len()].copy_from_slice(&bytes[place.clone()]);
    let number = match random.below(4) {
        0 | 1 => *random.of(&EDGES),
        2 => (bytes.len() as u64).wrapping_add(random.below(17) as u64).wrapping_sub(8),
        _ => u64::from_le_bytes(old).wrapping_add(random.below(17) as u64).wrapping_sub(8),
    };
    match random.below(5) {
        // A varint may be longer than what it replaces.
        0 => {
            let mut varint = Vec::new();
            let mut left = number;
            while left >= 0x80 {
                varint.push(left as u8 | 0x80);
                left >>= 7;
            }
            varint.push(left as u8);
            bytes.splice(at..at + 1, varint);
        }
        1 => bytes[place.clone()].copy_from_slice(&number.to_be_bytes()[8 - place.len()..]),
        _ => bytes[place.clone()].copy_from_slice(&number.to_le_bytes()[..place.len()]),
    }
}

/// A change that keeps most of a text's grammar.
fn change_pieces(bytes: &mut Vec<u8>, at: usize, seeds: &[Vec<u8>], tokens: &[Vec<u8>], random: &mut Random) {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    let field = |b: u8| !b"\n,".contains(&b);
    match random.below(8) {
        0 | 1 => set_digits(bytes, at, random),
        2..=4 => {
            let place = piece(bytes, at, word);
            let other = random.of(seeds);
            let new = match random.below(4) {
                0 if !tokens.is_empty() => random.of(tokens).clone(),
                _ if other.is_empty() => vec![],
                _ => other[piece(other, random.below(other.len()), word)].to_vec(),
            };
            bytes.splice(place, new);
        }
        5 => {
            let place = piece(bytes, at, field);
            bytes.drain(place);
        }
        _ => {
            let taken = bytes[piece(bytes, at, field)].to_vec();
            let place = piece(bytes, random.below(bytes.len()), field);
            if random.below(2) == 0 {
                bytes.splice(place, taken);
            } else {
                let mut twice = bytes[place.clone()].to_vec();
                twice.push(b"\n,"[random.below(2)]);
                twice.extend(taken);
                bytes.splice(place, twice);
            }
        }
    }
}

/// The longest run of bytes around `at` that all belong to a piece; at least the one at `at`.
fn piece(bytes: &[u8], at: usize, belongs: impl Fn(u8) -> bool) -> std::ops::Range<usize> {
    let start = bytes[..at].iter().rposition(|&b| !belongs(b)).map_or(0, |i| i + 1);
    let end = bytes[at..].iter().position(|&b| !belongs(b)).map_or(bytes.len(), |i| at + i);
    start..end.max(start)
}

/// Replaces the decimal number nearest after `at` by an edge, in the forms that parsers of text stumble over.
fn set_digits(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else { return };
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    let edge = *random.of(&EDGES);
    let text = match random.below(5) {
        0 => format!("-{edge}"),
        1 => format!("{edge}.5e30"),
        2 => "99999999999999999999999999".into(),
        _ => edge.to_string(),
    };
    bytes.splice(start..end, text.into_bytes());
}

#[test]
fn a_mutant_is_a_function_of_its_number() {
    let seeds = [b"{\"shape\":[3,4]}".to_vec(), vec![0; 40]];
    let tokens = [b"token".to_vec()];
    let make = |i| mutate(&seeds, &tokens, i % 2 == 0, &mut Random::new(i));
    let all: Vec<Vec<u8>> = (0..2000).map(make).collect();
    assert!(all.iter().zip(0..).all(|(m, i)| *m == make(i)));
    let different = all.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(different > 1000, "{different} different of 2000");
    assert!(all.iter().any(|m| m.windows(5).any(|w| w == b"token")));
}
