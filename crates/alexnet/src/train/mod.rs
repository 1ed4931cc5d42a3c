//! Training: from a recipe, a network and pictures to weights and a run directory.

pub mod init;
pub mod schedule;
#[cfg(test)]
pub mod testing;
