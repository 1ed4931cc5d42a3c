//! Training: from a recipe, a network and pictures to weights and a run directory.
//!
//! | file | says |
//! |---|---|
//! | [`recipe`] | how to train: a TOML file, built in or the user's |
//! | [`schedule`], [`rates`] | how fast each tensor moves in each step |
//! | [`init`], [`start`] | the first weights, and what is measured on the pictures |
//! | [`trainer`] | the loop; [`observer`] is told about it, [`health`] watches it |
//! | [`checkpoint`], [`tensor_file`], [`durable`] | one file that holds a run, whole or not at all |
//! | [`run_directory`] | everything else that a run leaves behind |
//!
//! A new run, in order: [`recipe::load`] (and flags), [`recipe::Recipe::bring_preprocessing`], the pictures packed as
//! [`recipe::Recipe::pack_options`] says, the network for their classes through [`recipe::Recipe::apply`],
//! [`crate::data::split()`], [`recipe::Recipe::measure`], [`start::weights`], [`run_directory::RunDirectory::create`] with
//! its configuration, [`trainer::train`]. A resumed one: [`run_directory::RunDirectory::open`], its configuration and
//! [`checkpoint::Store::newest`], then [`trainer::train`] with [`trainer::Start::Resume`]; a run that ended before
//! its first checkpoint ([`checkpoint::Store::is_empty`]) begins anew in the same directory.

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
