//! The allocator of every program here, how long it keeps what is freed, and how much a process takes.
//!
//! A step of a small model makes thousands of small tensors on several threads; mimalloc's heaps a thread make that
//! cheap.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`, which the bindings leave out.
const PURGE_DELAY: c_int = 15;
const NEVER: c_long = -1;
/// Where Linux tells the bytes that a container's processes may take together, in its two ways of grouping them.
const CONTAINER_LIMITS: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// Keeps freed memory from now on. A training step frees and takes the same large buffers again; given back to the
/// system each time, their pages would be cleared anew, which takes longer than the arithmetic.
pub fn keep_freed() {
    // SAFETY: sets one number inside the allocator, which may be done at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER) }
}

/// Gives back to the system what is free now. Reading a model takes several times what the model keeps, and the allocator
/// would hold on to that until it is next asked for something.
pub fn give_back() {
    // SAFETY: looks through the allocator's own free lists, which may be done at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// The resident memory of a process in MiB, now, where the system tells; `process` is its number, or `self`.
pub fn resident_mib(process: &str) -> Option<u64> {
    of_process(process, "VmRSS:")
}

/// The most that this process has taken so far.
pub fn peak_mib() -> Option<u64> {
    of_process("self", "VmHWM:")
}

/// What the machine has left for all processes, in MiB.
pub fn available_mib() -> Option<u64> {
    mib_of("/proc/meminfo", "MemAvailable:")
}

/// What the machine has in all, or what the container lets its processes have, in MiB.
pub fn total_mib() -> Option<u64> {
    let machine = mib_of("/proc/meminfo", "MemTotal:");
    let container = CONTAINER_LIMITS.iter().find_map(|path| {
        let limit = std::fs::read_to_string(path).ok()?;
        Some(limit.trim().parse::<u64>().ok()? >> 20)
    });
    machine.into_iter().chain(container).min()
}

/// Lets this process take at most so many bytes more than it has; an allocation beyond them fails. Nothing is bounded
/// where the system does not tell what it has.
pub fn bound_growth(bytes: u64) -> std::io::Result<()> {
    let Some(taken) = of_process("self", "VmData:") else {
        return Ok(());
    };
    let most = Some((taken << 20).saturating_add(bytes));
    let limit = rustix::process::Rlimit {
        current: most,
        maximum: most,
    };
    rustix::process::setrlimit(rustix::process::Resource::Data, limit)?;
    Ok(())
}

fn of_process(process: &str, name: &str) -> Option<u64> {
    mib_of(&format!("/proc/{process}/status"), name)
}

/// The number after `name` in a file of lines such as `VmRSS:  12345 kB`, in MiB.
fn mib_of(path: &str, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(path).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}
