//! Training: from a recipe, a network and pictures to weights and a run directory.

pub mod init;
#[cfg(test)]
pub mod testing;
