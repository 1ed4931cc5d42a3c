//! AMX for machines that lack it: the tile instructions trap, and a signal handler does what they would have done, to
//! eight tiles that every thread keeps in memory. So the kernel's own instructions, their encodings and operands, are
//! tested wherever there is AVX-512; only their speed is not.
//!
//! Decodes what the kernel uses: VEX-encoded LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED and
//! TDPBF16PS with base + index (+ displacement) addresses. Anything else is left to the default action of the signal.

use alexnet_kernels::bf16::Engine;
use std::cell::UnsafeCell;

/// Rows of 16 elements.
type Tile = [[u32; 16]; 16];

thread_local! {
    static TILES: UnsafeCell<([Tile; 8], bool)> = const { UnsafeCell::new(([[[0; 16]; 16]; 8], false)) };
}

/// The machine's own AMX if it has it, else the emulated one; `None` without AVX-512.
pub fn engine() -> Option<Engine> {
    if let Ok(engine) = Engine::by_name("amx") {
        return Some(engine);
    }
    // What the engine needs besides is not emulated.
    let avx512 = alexnet_kernels::Isa::by_name("avx512").ok()?;
    if !is_x86_feature_detected!("avx512bf16") {
        eprintln!("skipped on AMX: this processor lacks AVX-512-BF16");
        return None;
    }
    static INSTALL: std::sync::Once = std::sync::Once::new();
    INSTALL.call_once(|| {
        // SAFETY: a plain installation of a handler; the structure is zeroed as the system expects.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    // SAFETY: AVX-512-BF16 was found, and the handler is installed.
    Some(unsafe { Engine::assume_amx(avx512) })
}

extern "C" fn on_illegal(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes the interrupted thread's registers, which stay valid while the handler runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // SAFETY: the instruction pointer points to an instruction, the longest of which has 15 bytes.
    let code = unsafe { std::slice::from_raw_parts(registers[libc::REG_RIP as usize] as *const u8, 15) };
    match emulate(code, registers) {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        None => {
            // SAFETY: the default action ends the process at the same instruction.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Registers in the order of their numbers in an encoding.
const ORDER: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Executes one instruction; its length, or `None` if it is none of those known.
fn emulate(code: &[u8], registers: &[i64]) -> Option<usize> {
    // Three-byte VEX: C4, inverted R X B and the map, W and inverted vvvv and L and the prefix, opcode, ModRM.
    if code[0] != 0xc4 || code[1] & 0x1f != 2 {
        return None;
    }
    let (x, b) = (usize::from(code[1] & 0x40 == 0) * 8, usize::from(code[1] & 0x20 == 0) * 8);
    let (prefix, third) = (code[2] & 3, usize::from(!(code[2] >> 3) & 15));
    let (opcode, modrm) = (code[3], code[4]);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    // SAFETY: only this thread touches its tiles, and no instruction within the handler traps.
    let (tiles, configured) = TILES.with(|t| unsafe { &mut *t.get() });
    if mode == 3 {
        match (opcode, prefix) {
            // TILERELEASE
            (0x49, 0) => *configured = false,
            // TILEZERO
            (0x49, 3) => tiles[reg] = [[0; 16]; 16],
            // TDPBF16PS: ModRM.reg += ModRM.rm · VEX.vvvv
            (0x5c, 2) => {
                assert!(*configured, "tiles are not configured");
                let (a, b) = (tiles[rm], tiles[third]);
                multiply(&mut tiles[reg], &a, &b);
            }
            _ => return None,
        }
        return Some(5);
    }
    // A memory operand: base, or base + index·scale, with a displacement of 0, 1 or 4 bytes.
    let mut length = 5;
    let (base, stride) = if rm == 4 {
        let sib = code[5];
        length += 1;
        if sib & 7 == 5 && mode == 0 {
            return None;
        }
        let index = usize::from(sib >> 3 & 7) + x;
        let stride = if index == 4 { 0 } else { registers[ORDER[index] as usize] << (sib >> 6) };
        (usize::from(sib & 7) + b, stride)
    } else if rm == 5 && mode == 0 {
        return None;
    } else {
        (rm + b, 0)
    };
    let displacement = match mode {
        0 => 0,
        1 => {
            length += 1;
            i64::from(code[length - 1] as i8)
        }
        _ => {
            length += 4;
            i64::from(i32::from_le_bytes(code[length - 4..length].try_into().unwrap()))
        }
    };
    let address = (registers[ORDER[base] as usize] + displacement) as usize;
    match (opcode, prefix) {
        // LDTILECFG
        (0x49, 0) => {
            // SAFETY: the operand of the instruction is 64 bytes.
            let config = unsafe { std::slice::from_raw_parts(address as *const u8, 64) };
            assert!(config[0] == 1 && config[16..32].chunks(2).all(|w| w == [64, 0]), "full tiles");
            assert!(config[48..56].iter().all(|rows| *rows == 16), "full tiles");
            *configured = true;
            *tiles = [[[0; 16]; 16]; 8];
        }
        // TILELOADDT1, TILESTORED, TILELOADD
        (0x4b, 1..=3) => {
            assert!(*configured, "tiles are not configured");
            for (i, row) in tiles[reg].iter_mut().enumerate() {
                let memory = (address as i64 + i as i64 * stride) as *mut [u32; 16];
                // SAFETY: the operand of the instruction is 16 rows of 64 bytes.
                unsafe {
                    if prefix == 2 { memory.write_unaligned(*row) } else { *row = memory.read_unaligned() }
                }
            }
        }
        _ => return None,
    }
    Some(length)
}

/// c += a·b, even halves and odd halves apart and then together; denormal operands and sums count as zero. A product of two
/// bf16 is exact in f32, so that multiplying and adding rounds once, as the instruction does.
fn multiply(c: &mut Tile, a: &Tile, b: &Tile) {
    let flush = |v: f32| if v.abs() < f32::MIN_POSITIVE { 0.0 } else { v };
    let halves = |pair: u32| [flush(f32::from_bits(pair << 16)), flush(f32::from_bits(pair & 0xffff_0000))];
    let b: [[[f32; 16]; 2]; 16] =
        std::array::from_fn(|k| std::array::from_fn(|half| std::array::from_fn(|n| halves(b[k][n])[half])));
    for (c, a) in c.iter_mut().zip(a) {
        let mut sums = [c.map(f32::from_bits), [0.0; 16]];
        for (a, b) in a.iter().zip(&b) {
            let a = halves(*a);
            for half in 0..2 {
                for n in 0..16 {
                    sums[half][n] = flush(sums[half][n] + a[half] * b[half][n]);
                }
            }
        }
        for n in 0..16 {
            c[n] = flush(sums[0][n] + sums[1][n]).to_bits();
        }
    }
}
