//! The complete AlexNet system: every published form of the network, its data pipeline, training recipe,
//! evaluation, and fast executors. `ARCHITECTURE.md` is the map; [`net`] is the file to open first.

pub mod data;
pub mod error;
pub mod eval;
pub mod exec;
pub mod interchange;
pub mod net;
pub mod netfile;
pub mod ops;
pub mod rng;
mod toml_error;
pub mod train;
pub mod zoo;

pub use error::{Error, Result};
pub use net::Network;
