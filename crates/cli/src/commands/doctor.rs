//! `alexnet doctor`: what this machine has, and what the program would use of it.

use crate::args::Doctor;
use crate::failure::Outcome;
use crate::machine;
use crate::terminal::{bytes, print_line, table};
use alexnet::data::{default_cache_dir, disk};
use alexnet::exec::{self, Device, Mode, Options, Precision};
use alexnet::zoo;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Runs `alexnet doctor`.
pub fn run(args: Doctor) -> Outcome {
    let (processor, sets) = machine::processor();
    let (memory, available) = machine::memory();
    let kernel = kernel_name();
    let here = Path::new(".");
    let free = disk::free_bytes(here);
    let sync = machine::sync_time(here);
    let cache = default_cache_dir();
    let cache_free = disk::free_bytes(&existing(&cache));
    if args.json {
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "processor": processor,
            "instruction_sets": sets,
            "kernel": kernel.as_ref().ok(),
            "threads": machine::cores(),
            "memory_bytes": memory,
            "memory_available_bytes": available,
            "disk_free_bytes": free,
            "sync_ms": sync.as_ref().ok().map(|t| t.as_secs_f64() * 1e3),
            "cache": cache.display().to_string(),
            "cache_free_bytes": cache_free,
            "gpu": null,
        });
        print_line(&object.to_string())?;
    } else {
        let size = |n: Option<u64>| n.map_or("unknown".into(), bytes);
        let rows = [
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("processor", processor),
            ("instruction sets", if sets.is_empty() { "none listed".into() } else { sets.join(" ") }),
            ("kernel", kernel.as_ref().map_or_else(|e| format!("none: {e}"), Clone::clone)),
            ("threads", machine::cores().to_string()),
            ("memory", format!("{}, {} available", size(memory), size(available))),
            ("disk, this folder", format!("{} free", size(free))),
            (
                "sync of 1 MiB",
                match sync {
                    Ok(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
                    Err(e) => format!("this folder cannot be written to ({e}); give --out when training"),
                },
            ),
            ("cache of packs", format!("{}, {} free", cache.display(), size(cache_free))),
            ("GPU", "not used by this version".into()),
        ];
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(what, says)| vec![what.into(), says]).collect();
        print_line(&table(&rows, &[false, false]))?;
    }
    kernel.map(|_| ()).map_err(Into::into)
}

/// The kernel that training would use.
fn kernel_name() -> alexnet::Result<String> {
    let mode = Mode::Train { frozen_below: 0 };
    let options =
        Options { batch: 1, mode, precision: Precision::Auto, device: Device::Auto, ..Options::default() };
    Ok(exec::compile(&zoo::alexnet_mini(10), &options)?.kernel_name())
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|f| f.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}
