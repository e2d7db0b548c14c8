//! What daemon and keeper ask of the allocator.

/// Keeps glibc from giving every thread an arena of its own, whose free memory never goes back to the kernel: measured
/// 6.7 MB idle instead of several times that. To be called before threads are started (mallopt(3)).
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers; it is called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// Gives free memory back to the kernel (malloc_trim(3)).
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is thread safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Overwrites memory when it is freed (mallopt(3), `M_PERTURB`), so that the memory of a process does not show what it has
/// done with. To be called before threads are started.
pub fn wipe_what_is_freed() {
    const PATTERN: libc::c_int = 0xa5;
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers; it is called before there are threads.
    unsafe {
        libc::mallopt(libc::M_PERTURB, PATTERN);
    }
}
