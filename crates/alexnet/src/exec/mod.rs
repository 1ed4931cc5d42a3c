//! How a network is run. [`contract`] says what every executor does; [`mod@reference`] computes the ops one by one and
//! is the specification; [`cpu`] is the fast one.

pub mod contract;
pub mod reference;
