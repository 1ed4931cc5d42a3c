//! What a trained network is worth, and its use: error rates ([`metrics`], [`views`]), predictions for files
//! ([`files`]) and activations ([`features`]). [`model`] opens the network.

pub mod features;
pub mod files;
pub mod metrics;
pub mod model;
pub mod views;

pub use metrics::Tally;
