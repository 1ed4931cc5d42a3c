//! What a trained network is worth, and its use: error rates ([`metrics`], [`views`]), which pictures are wrong
//! ([`mistakes`]), several networks as one ([`ensemble`], over the pictures that they have in common: [`align`]),
//! which output is which class of some data ([`classes`]),
//! predictions for files ([`files`]) and activations ([`features`]). [`model`] opens the network. Answers are kept in
//! files of rows ([`rows`]): [`features`], [`predictions`]; and in ILSVRC's form: [`submission`].

pub mod align;
pub mod classes;
pub mod ensemble;
pub mod features;
pub mod files;
pub mod metrics;
pub mod mistakes;
pub mod model;
pub mod predictions;
pub mod rows;
pub mod submission;
pub mod views;

pub use metrics::Tally;
