//! Runs a parser on many inputs and holds it to the limits.

use crate::meter::{Taken, measure};
use crate::mutate::{Random, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The most that a parser may hold for a hostile file, beyond the file itself.
pub const LIMIT_BYTES: usize = 64 << 20;
/// The longest that it may compute.
pub const LIMIT_CPU: Duration = Duration::from_millis(100);
/// The longest that it may take by the clock: a machine may be busy, but nothing may wait.
const LIMIT_WALL: Duration = Duration::from_secs(10);
/// The largest seed, so that a change has a good chance to hit what matters.
const LIMIT_SEED_BYTES: usize = 4096;
/// Mutants when `ALEXNET_HOSTILE_INPUTS` does not say otherwise.
const INPUTS: u64 = 100_000;

/// How far a parser came with an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// An index of [`Target::stages`].
    pub stage: usize,
    /// The message of the refusal; `None` if the input was accepted.
    pub error: Option<String>,
}

impl Reached {
    /// Accepted, which is the last of `stages`.
    pub fn end(stages: &[&str]) -> Self {
        Reached { stage: stages.len() - 1, error: None }
    }

    /// Refused after `stage`.
    pub fn refused(stage: usize, error: impl std::fmt::Display) -> Self {
        Reached { stage, error: Some(error.to_string()) }
    }
}

/// A parser with all that is needed to attack it.
pub struct Target<'a> {
    /// What is parsed.
    pub name: &'a str,
    /// Valid files of at most 4 KB, of every form that the parser knows.
    pub seeds: Vec<Vec<u8>>,
    /// Pieces that mean something in this format, put in at random.
    pub tokens: Vec<Vec<u8>>,
    /// Whether the format is a text, or is one for its largest part (a JSON header): changes then keep to its words and
    /// fields, mostly.
    pub text: bool,
    /// Makes checksums right again, so that a change is not refused at the door. One mutant in eight is left as it is.
    pub repair: &'a dyn Fn(&mut Vec<u8>),
    /// How far an input can come, from the door to the end; the last is "accepted".
    pub stages: &'a [&'a str],
    /// At least this share of the mutants must come at least as far as this stage: otherwise the door alone is tested.
    pub deep: (usize, f64),
    /// Parses and says how far it came.
    pub parse: &'a dyn Fn(&[u8]) -> Reached,
}

/// Mutants for each parser.
fn inputs() -> u64 {
    match std::env::var("ALEXNET_HOSTILE_INPUTS") {
        Ok(text) => text.parse().expect("ALEXNET_HOSTILE_INPUTS is a number"),
        Err(_) => INPUTS,
    }
}

impl Target<'_> {
    /// Runs every seed, which must be accepted, and then the mutants, and prints how deep they came.
    ///
    /// Panics if a seed is refused, if a mutant makes the parser panic or break a limit (the mutant is then in a file
    /// that the message names), or if too few come deep.
    pub fn run(&self) {
        for (i, seed) in self.seeds.iter().enumerate() {
            assert!(seed.len() <= LIMIT_SEED_BYTES, "{}: seed {i} has {} bytes", self.name, seed.len());
            let reached = (self.parse)(seed);
            assert_eq!(reached, Reached::end(self.stages), "{}: seed {i} must be accepted", self.name);
            let mut repaired = seed.clone();
            (self.repair)(&mut repaired);
            assert_eq!((self.parse)(&repaired), reached, "{}: seed {i}, repaired without need", self.name);
        }
        let watch = Watch::start(self.name.to_string());
        let key = self.name.bytes().fold(7u64, |k, b| k.wrapping_mul(131).wrapping_add(u64::from(b)));
        let mut counts = vec![0u64; self.stages.len()];
        let mut most = Taken::default();
        let total = inputs();
        for i in 0..total {
            let mut random = Random::new(key ^ i.wrapping_mul(0x2545_f491_4f6c_dd1d));
            let mut mutant = mutate(&self.seeds, &self.tokens, self.text, &mut random);
            if random.below(8) > 0 {
                (self.repair)(&mut mutant);
            }
            watch.now_at(i);
            let (reached, taken) = examine(&format!("{} mutant {i}", self.name), &mutant, self.parse);
            counts[reached.stage] += 1;
            most = most.max(taken);
        }
        let share = |n: u64| 100.0 * n as f64 / total as f64;
        let words: Vec<String> =
            self.stages.iter().zip(&counts).map(|(stage, &n)| format!("{stage} {:.1} %", share(n))).collect();
        println!(
            "{}: {total} mutants of {} seeds; ended at: {}; at most {} KiB and {:.1} ms",
            self.name,
            self.seeds.len(),
            words.join(", "),
            most.peak_bytes >> 10,
            most.cpu.as_secs_f64() * 1e3
        );
        let (stage, needed) = self.deep;
        let deep = counts[stage..].iter().sum::<u64>() as f64 / total as f64;
        assert!(
            deep >= needed,
            "{}: only {deep:.3} of the mutants come to {}",
            self.name,
            self.stages[stage]
        );
    }
}

/// A forged file must be refused within the limits, with a message that has every one of `words` in it.
///
/// Panics if it is not.
pub fn refused(name: &str, bytes: &[u8], words: &[&str], parse: impl Fn(&[u8]) -> Reached) -> String {
    let (reached, taken) = examine(name, bytes, &parse);
    let Some(error) = reached.error else { panic!("{name}: accepted") };
    for word in words {
        assert!(error.contains(word), "{name}: {word:?} is not in the message {error:?}");
    }
    println!("{name}: {error} ({} KiB, {:.2} ms)", taken.peak_bytes >> 10, taken.cpu.as_secs_f64() * 1e3);
    error
}

/// Runs the parser once and checks the limits and the message.
fn examine(name: &str, bytes: &[u8], parse: &dyn Fn(&[u8]) -> Reached) -> (Reached, Taken) {
    let (result, taken) = measure(|| catch_unwind(AssertUnwindSafe(|| parse(bytes))));
    let fault = match &result {
        Err(_) => Some("the parser panicked".to_string()),
        Ok(_) if taken.peak_bytes > LIMIT_BYTES => Some(format!("{} bytes were held", taken.peak_bytes)),
        Ok(_) if taken.cpu > LIMIT_CPU => Some(format!("it computed for {:?}", taken.cpu)),
        Ok(_) if taken.wall > LIMIT_WALL => Some(format!("it took {:?}", taken.wall)),
        Ok(Reached { error: Some(error), .. }) => unclear(error),
        Ok(_) => None,
    };
    if let Some(fault) = fault {
        let file = std::env::temp_dir().join(format!("hostile-{}.bin", name.replace([' ', '/'], "-")));
        let kept = match std::fs::write(&file, bytes) {
            Ok(()) => format!("; the input is in {}", file.display()),
            Err(error) => format!("; the input could not be kept: {error}"),
        };
        panic!("{name}: {fault}{kept}");
    }
    (result.expect("a panic has been reported above"), taken)
}

/// What is wrong with a message, if anything is: it must have words, be of a length that a terminal can show, and have
/// no control characters that the file put there.
fn unclear(error: &str) -> Option<String> {
    let control = |c: char| c.is_control() && c != '\n';
    match error {
        e if e.split_whitespace().count() < 2 => Some(format!("the message {e:?} says nothing")),
        e if e.len() > 2000 => Some(format!("the message has {} bytes", e.len())),
        e if e.contains(control) => Some(format!("the message {e:?} has control characters in it")),
        _ => None,
    }
}

/// Ends the tests when a parser does not come back: a test that never ends says less than one that fails.
struct Watch {
    at: std::sync::Arc<(AtomicU64, AtomicBool)>,
}

impl Watch {
    fn start(name: String) -> Self {
        let at = std::sync::Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let shared = at.clone();
        std::thread::spawn(move || {
            let mut last = u64::MAX;
            let mut still = 0;
            while !shared.1.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                let now = shared.0.load(Ordering::Relaxed);
                still = if now == last { still + 1 } else { 0 };
                last = now;
                if still >= 60 {
                    eprintln!("{name} mutant {now}: the parser does not come back");
                    std::process::abort();
                }
            }
        });
        Watch { at }
    }

    fn now_at(&self, mutant: u64) {
        self.at.0.store(mutant, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.at.1.store(true, Ordering::Relaxed);
    }
}

/// A file that is written again and again for parsers that open paths: in memory where the system offers it.
pub struct Scratch {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Scratch {
    /// A file of this name in a folder of its own.
    pub fn new(name: &str) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir().then(|| tempfile::tempdir_in(memory)) {
            Some(Ok(folder)) => folder,
            _ => tempfile::tempdir().expect("a folder for temporary files"),
        };
        let path = folder.path().join(name);
        Scratch { _folder: folder, path }
    }

    /// Puts these bytes in the file.
    pub fn put(&self, bytes: &[u8]) -> &std::path::Path {
        std::fs::write(&self.path, bytes).expect("room for 4 KB");
        &self.path
    }
}

#[test]
#[should_panic(expected = "the parser panicked")]
fn a_panic_is_noticed() {
    examine("panics", b"x", &|_| panic!("a parser's fault"));
}

#[test]
#[should_panic(expected = "bytes were held")]
fn memory_is_noticed() {
    examine("hoards", b"x", &|_| {
        let hoard = vec![1u8; LIMIT_BYTES + 1];
        Reached { stage: usize::from(hoard[5]), error: None }
    });
}

#[test]
#[should_panic(expected = "it computed for")]
fn time_is_noticed() {
    examine("spins", b"x", &|_| {
        let start = std::time::Instant::now();
        let mut n = 0u64;
        while start.elapsed() < 20 * LIMIT_CPU {
            n = std::hint::black_box(n + 1);
        }
        Reached { stage: n as usize, error: None }
    });
}

#[test]
#[should_panic(expected = "control characters")]
fn an_unclear_message_is_noticed() {
    examine("speaks", b"x", &|_| Reached::refused(0, "no tensor \u{1b}[2J here"));
}
