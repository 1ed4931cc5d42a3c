//! Products in f32's grade on tiles of bf16. Every operand x becomes h + l, where h is x rounded to bf16 and l what is left of it,
//! rounded again: 16 bits of x in all. A product is then h·h' + h·l' + l·h', three products of bf16 that are exact in the f32 in
//! which they are added up; what is left out, l·l', is at most 2⁻¹⁶ of it.
//!
//! Maps stay what they are in f32, (blocks, H, W, block, C). Before a convolution reads one, it is split ([`Rows`]): high and low
//! parts of every picture's rows. Pictures are the rows of the left operand, packed weights the right one.

pub mod conv;
pub mod linear;
pub mod weight;

mod cells;
mod rows;

pub use rows::{Rows, split};
