//! Hostile files: every parser is given damaged and forged input, and must refuse it (or make sense of it) without a
//! panic, in little time and memory, with a message that says what is wrong.
//!
//! Two kinds of test, both on `harness`: *mutated* input (`Target`: seeds of at most 4 KB, changed at random but
//! always in the same way, checksums made right again so that the change reaches the depth) and *directed* input
//! (`refused`: one forged file for each known attack). A parser is one file here: a function that makes its seeds,
//! one that repairs a mutant, one that parses and says how deep it came.
//!
//! `ALEXNET_HOSTILE_INPUTS=1000000` sets the number of mutants for each parser (100,000 by default), and
//! `-- --nocapture` shows how deep they reached.

mod checkpoint;
mod harness;
#[path = "../common/sources.rs"]
mod make;
mod meter;
mod mutate;
mod sources;
mod tars;
mod text;
mod weights;
