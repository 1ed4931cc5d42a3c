//! Training: from a recipe, a network and pictures to weights and a run directory.

pub mod checkpoint;
pub mod durable;
pub mod init;
pub mod rates;
pub mod recipe;
pub mod run_directory;
pub mod schedule;
pub mod start;
pub mod tensor_file;
#[cfg(test)]
pub mod testing;
