//! Training: from a recipe, a network and pictures to weights and a run directory.
//!
//! [`recipe`] says how, [`start`] gives the first weights, [`trainer`] is the loop, [`schedule`] and [`rates`] say how
//! fast, [`checkpoint`] and [`run_directory`] hold what comes of it.

pub mod checkpoint;
pub mod durable;
pub mod health;
pub mod init;
pub mod observer;
pub mod rates;
pub mod recipe;
pub mod run_directory;
pub mod schedule;
pub mod start;
pub mod tensor_file;
#[cfg(test)]
pub mod testing;
pub mod trainer;
