//! What the machine says about itself.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Instruction sets that matter here, as /proc/cpuinfo spells them.
const INSTRUCTION_SETS: [&str; 13] = [
    "sse4_2",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
];

/// The processor's name and those of its instruction sets that matter here, as the system lists them.
pub fn processor() -> (String, Vec<String>) {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        info.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            names.contains(&key.trim()).then(|| value.trim().to_string())
        })
    };
    let name = field(&["model name", "Model"]).unwrap_or_else(|| std::env::consts::ARCH.to_string());
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let sets = flags.split_whitespace().filter(|f| INSTRUCTION_SETS.contains(f)).map(str::to_string);
    (name, sets.collect())
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory: installed (or allowed to this process's control group), and free for use now.
pub fn memory() -> (Option<u64>, Option<u64>) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let allowed = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let limit = allowed("/sys/fs/cgroup/memory.max")
        .or_else(|| allowed("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let used = allowed("/sys/fs/cgroup/memory.current").unwrap_or(0);
    let (total, available) = (field("MemTotal:"), field("MemAvailable:"));
    let least = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    (least(total, limit), least(available, limit.map(|l| l.saturating_sub(used))))
}

/// Largest resident memory of this process so far, bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// How long a mebibyte takes to reach the disk that holds `folder`: written and synced in a new file, which is
/// removed again.
pub fn sync_time(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(format!(".alexnet-doctor-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    let start = Instant::now();
    let written = file.write_all(&vec![0x5a; 1 << 20]).and_then(|()| file.sync_all());
    let took = start.elapsed();
    std::fs::remove_file(&path)?;
    written.map(|()| took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_timed_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(sync_time(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(sync_time(&folder.path().join("absent")).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says_what_it_has() {
        assert!(memory().0.is_some_and(|bytes| bytes > 1 << 20));
        assert!(peak_resident_bytes().is_some_and(|bytes| bytes > 1 << 16));
        assert!(cores() >= 1);
    }
}
