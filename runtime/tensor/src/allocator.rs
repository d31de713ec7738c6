//! What the system's allocator does with memory that is freed.
//!
//! Tensors of a step are of the same sizes as those of the step before. By default glibc gives their memory back to the system, which hands it out again page by page,
//! each filled with zeros: a third of the time of an evaluation in which tensors are a megabyte each.

/// Lets this process keep what it frees for what it needs next, up to 256 MiB at the end of the heap; for the start of a program. It changes nothing but speed, and nothing at
/// all where the allocator is not glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes two numbers and may be called from any thread. Where it refuses them it changes nothing, and programs are only slower.
        #[expect(unsafe_code, reason = "a function of the C library")]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_IN_HEAP);
            libc::mallopt(libc::M_TRIM_THRESHOLD, MOST_KEPT);
        }
    }
}

/// Larger pieces of memory are the system's own, and given back at once. It is the most that glibc accepts.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGEST_IN_HEAP: i32 = 32 << 20;
/// As much as a training step of the larger architectures frees.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MOST_KEPT: i32 = 256 << 20;
