//! The time-stamp counter.

/// The kernel's name of the clock source, where the kernel itself keeps time by the counter.
pub const CLOCK_SOURCE: &str = "tsc";

/// Whether the counter runs evenly on all processors, by `/proc/cpuinfo`.
pub fn is_invariant(cpus: &str) -> bool {
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["constant_tsc", "nonstop_tsc", "rdtscp"].iter().all(|flag| flags.split(' ').any(|word| word == *flag))
}

/// Makes later loads come after all earlier loads. The processor keeps loads in order, so the
/// compiler alone is held back.
#[inline(always)]
pub fn order_loads() {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
}

/// Reads the counter, after all earlier loads: `rdtscp` waits for the loads. Plain `rdtsc` may run
/// ahead.
#[inline(always)]
pub fn after_loads() -> u64 {
    let mut processor = 0;
    // SAFETY: every processor with the counter as the clock source of the kernel has rdtscp, and
    // the aggregator chooses the counter on such processors only.
    unsafe { core::arch::x86_64::__rdtscp(&raw mut processor) }
}
