//! The complete AlexNet system: every published form of the network, its data pipeline, training recipe,
//! evaluation, and fast executors. `ARCHITECTURE.md` is the map; [`net`] is the file to open first.

pub mod data;
pub mod error;
pub mod exec;
pub mod net;
pub mod rng;

pub use error::{Error, Result};
pub use net::Network;
