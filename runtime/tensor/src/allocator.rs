//! How the system's allocator and the kernel keep memory for this process: what is freed stays, and much of it comes in large pages.
//!
//! Tensors of a step are of the same sizes as those of the step before. By default glibc gives their memory back to the system, which hands it out again page by page,
//! each filled with zeros: a third of the time of an evaluation in which tensors are a megabyte each. And a heap of hundreds of MiB in pages of 4 KiB has more of them than the
//! processor can find at once.
//!
//! All of it changes nothing but speed, and is done where the allocator is glibc's; elsewhere nothing is done.

/// Lets this process keep what it frees for what it needs next, up to a GiB at the end of the heap; for the start of a program, from the thread that makes its tensors: only the heap
/// of the main thread grows as one piece and is kept as one.
///
/// A thread of its own looks after a few seconds, and from then on, whether the heap is large, and then has the kernel put it into pages of 2 MiB. A program
/// that has ended by then does not pay for that.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        glibc::keep_freed_memory();
        // Without the thread, programs are only slower.
        let _ = std::thread::Builder::new().name("large pages".into()).spawn(|| {
            let mut pages = glibc::LargePages::default();
            loop {
                std::thread::sleep(glibc::BETWEEN_LOOKS);
                pages.look();
            }
        });
    }
}

/// Gives back to the system what this process has freed and kept, because others need it: other threads, whose memory is not taken from what this one has freed.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::give_back_freed_memory();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ops::Range;
    use std::time::Duration;

    /// As much as a training step of the larger architectures frees.
    const MOST_KEPT: i32 = 1 << 30;
    /// What the heap grows by at least. Pages that nobody touches are not taken from the system.
    const GROWTH: i32 = 1 << 20;
    /// Much of a training takes longer; much of what is called by hand does not.
    pub(super) const BETWEEN_LOOKS: Duration = Duration::from_secs(3);
    const LARGE_PAGE: usize = 2 << 20;
    /// How much is put into large pages at once, at least. Less does not pay for the copying.
    const WORTH: usize = 32 << 20;

    pub(super) fn keep_freed_memory() {
        // Where it refuses a number it changes nothing. By default tensors of more than 32 MiB would be the system's own memory, given back at once.
        let settings = [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, MOST_KEPT), (libc::M_TOP_PAD, GROWTH)];
        for (setting, value) in settings {
            // SAFETY: it takes two numbers and may be called from any thread.
            #[expect(unsafe_code, reason = "a function of the C library")]
            unsafe {
                libc::mallopt(setting, value);
            }
        }
    }

    pub(super) fn give_back_freed_memory() {
        // SAFETY: it may be called at any time and from any thread.
        #[expect(unsafe_code, reason = "a function of the C library")]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// How far the heap is in large pages.
    #[derive(Default)]
    pub(super) struct LargePages {
        end: usize,
    }

    impl LargePages {
        /// Puts what the heap has grown by since the last look into large pages, if it is worth it.
        pub(super) fn look(&mut self) {
            let Some(heap) = std::fs::read_to_string("/proc/self/maps").ok().and_then(|maps| heap(&maps)) else {
                return;
            };
            let heap = heap.start.next_multiple_of(LARGE_PAGE)..heap.end / LARGE_PAGE * LARGE_PAGE;
            // What was given back and taken again has lost its large pages.
            self.end = self.end.clamp(heap.start, heap.end.max(heap.start));
            let grown = self.end..heap.end;
            if grown.len() < WORTH {
                return;
            }
            // The first has the pages that come from now on be large where the system leaves that to programs; the second, of Linux 6.1, joins those that are there.
            for advice in [libc::MADV_HUGEPAGE, libc::MADV_COLLAPSE] {
                // SAFETY: advice of these two kinds does not change what memory holds or whether it may be used, whoever has it by now.
                #[expect(unsafe_code, reason = "a function of the C library")]
                unsafe {
                    libc::madvise(grown.start as *mut libc::c_void, grown.len(), advice);
                }
            }
            self.end = grown.end;
        }
    }

    /// Where the heap lies, by what the system says of the memory of a process. It is one range in one or several lines.
    fn heap(maps: &str) -> Option<Range<usize>> {
        let lines = maps.lines().filter(|line| line.ends_with("[heap]"));
        let ranges = lines.filter_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        ranges.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_heap_is_found_in_what_the_system_says() {
            let maps = "55d0c8a00000-55d0c8c00000 r-xp 00000000 fd:00 131 /usr/bin/kilnbox\n\
                        55d0ca000000-55d0ca021000 rw-p 00000000 00:00 0                          [heap]\n\
                        55d0ca021000-55d0cb000000 rw-p 00000000 00:00 0                          [heap]\n\
                        7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n";
            assert_eq!(heap(maps), Some(0x55d0_ca00_0000..0x55d0_cb00_0000));
            assert_eq!(heap("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]\n"), None);
        }

        #[test]
        fn a_heap_that_has_grown_comes_in_large_pages_and_keeps_what_it_holds() {
            // This thread's own memory need not be in the heap, but the system says where that is.
            let mut pages = LargePages::default();
            let held: Vec<u64> = (0..8 << 20).collect();
            pages.look();
            pages.look();
            assert!(held.iter().enumerate().all(|(index, &value)| value == index as u64));
        }
    }
}
