//! Every engine that can be tested: those that the processor has, and AMX, emulated where it lacks it.

#[cfg(target_arch = "x86_64")]
#[path = "../amx_emulator/mod.rs"]
mod amx_emulator;

use alexnet_kernels::bf16::Engine;

/// The engines, AMX last.
pub fn engines() -> Vec<Engine> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
    let mut engines: Vec<Engine> = Engine::all().into_iter().filter(|e| e.name() != "amx").collect();
    #[cfg(target_arch = "x86_64")]
    engines.extend(amx_emulator::engine());
    engines
}
