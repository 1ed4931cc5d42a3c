//! Hand-tuned arithmetic for AlexNet: it knows matrices and maps, no networks.
//!
//! Each kernel is written once, over [`simd::Simd`], and spelled for AVX-512, AVX2 and portable code; [`Isa`] is proof
//! that the processor has a tier. Functions are safe: they check the lengths of what they are given and cut the work
//! into units that write disjoint memory, so that no result depends on the number of threads.
//!
//! Maps are (blocks, H, W, block, C): pictures in blocks, the pictures of a block interleaved at every position. Those of
//! [`bf16`] hold pairs of channels and lie otherwise.

pub mod arena;
pub mod batch_norm;
pub mod bf16;
pub mod conv;
pub mod isa;
pub mod limits;
pub mod linear;
pub mod lrn;
pub mod lrn_pool;
pub mod panel;
pub mod parallel;
pub mod pixels;
pub mod pooling;
pub mod sgd;
pub mod simd;
pub mod spatial_lrn;
pub mod strips;
pub mod threads;
pub mod threefold;
mod tile;

pub use isa::Isa;
pub use parallel::Context;
