//! What a trained network is worth, and its use: error rates ([`metrics`], [`views`]), predictions ([`predict`]) and
//! activations ([`features`]). [`model`] opens the network.

pub mod metrics;
