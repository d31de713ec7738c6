//! How memory is taken and kept: small pieces by threads on their own, tensors in one heap for all, what is freed stays, and much of it comes in large pages.
//!
//! Tensors of a step are of the same sizes as those of the step before. By default glibc gives their memory back to the system, which hands it out again page by page,
//! each filled with zeros: a third of the time of an evaluation in which tensors are a megabyte each. And a heap of hundreds of MiB in pages of 4 KiB has more of them than the
//! processor can find at once.
//!
//! What one thread has promised another one computes (`promise.rs`), so that each takes memory that the other frees. glibc gives every thread a heap, which keeps what was freed there: two
//! heaps are half as much again in a training. In one heap for all, threads fall asleep to wait for each other. So programs may have an [`Allocator`] that does without both.
//!
//! All of it changes nothing but speed and the memory that is taken from the system, and is done where the system's allocator is glibc's; elsewhere freed memory is left to the allocator.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

/// What a program that runs sessions should allocate with, by `#[global_allocator]`.
///
/// Small pieces are mimalloc's, in which a thread frees what another one took without waiting for it. For large ones, tensors above all, it reserves too much: they come from
/// glibc, from one heap for all threads (once [`keep_freed_memory`] was called), which is asked by one thread at a time, and not for what the thread itself has freed just now. Where the system's
/// allocator is not glibc's, all is mimalloc's.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

/// The least bytes of a large piece.
const LARGE: usize = if cfg!(all(target_os = "linux", target_env = "gnu")) { 8 << 10 } else { usize::MAX };

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE
}

// SAFETY: whether a piece is large depends on its layout alone, so that memory goes back to whom it came from: mimalloc, or `shared`, which has it from the system's allocator. Both keep what the trait
// asks for, and so does a piece that moves from one to the other. None of them panics or allocates by this one.
#[expect(unsafe_code, reason = "an allocator cannot do without")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's, who keeps the promises of the trait; so for the functions below.
        unsafe {
            match is_large(layout) {
                true => shared::alloc(layout),
                false => MiMalloc.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see `alloc`.
        unsafe {
            match is_large(layout) {
                true => shared::alloc_zeroed(layout),
                false => MiMalloc.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: see `alloc`.
        unsafe {
            match is_large(layout) {
                true => shared::dealloc(place, layout),
                false => MiMalloc.dealloc(place, layout),
            }
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see `alloc`; the caller promises that this is a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: see `alloc`.
            (true, true) => unsafe { shared::realloc(place, layout, size) },
            // SAFETY: see `alloc`.
            (false, false) => unsafe { MiMalloc.realloc(place, layout, size) },
            // SAFETY: what is copied was allocated in both, and they do not overlap. What has moved is freed.
            _ => unsafe {
                let moved = self.alloc(wanted);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(place, layout.size().min(size));
                    self.dealloc(place, layout);
                }
                moved
            },
        }
    }
}

/// Large pieces: the system's allocator, asked by one thread at a time, and in front of it what each thread has freed just now.
///
/// A thread that waits for its turn at glibc's own lock falls asleep, and is woken long after that turn has come. And what it would get is in the caches of whoever freed it. Both together took a sixth of the
/// time of molecules that are evaluated side by side.
mod shared {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::{hint, ptr, thread};

    /// The most bytes that a thread keeps for itself: half of what the nearest large cache of most processors holds.
    const MOST_BYTES: usize = 1 << 20;
    /// The most pieces that it keeps.
    const MOST: usize = 64;
    /// What the system's allocator aligns everything to. Pieces that need more are not kept.
    const ALIGNMENT: usize = 2 * size_of::<usize>();
    /// So many times a thread looks whether it is its turn before it lets others have its processor.
    const LOOKS: usize = 64;

    static IS_TAKEN: AtomicBool = AtomicBool::new(false);

    thread_local! {
        static FREED: RefCell<Freed> = const { RefCell::new(Freed { pieces: [Piece::NONE; MOST], count: 0, bytes: 0 }) };
    }

    /// While it lives, no other thread asks the system's allocator for large pieces.
    struct Turn;

    impl Turn {
        fn take() -> Self {
            let is_taken = || {
                hint::spin_loop();
                IS_TAKEN.load(Ordering::Relaxed)
            };
            while IS_TAKEN.swap(true, Ordering::Acquire) {
                while (0..LOOKS).all(|_| is_taken()) {
                    thread::yield_now();
                }
            }
            Self
        }
    }

    impl Drop for Turn {
        fn drop(&mut self) {
            IS_TAKEN.store(false, Ordering::Release);
        }
    }

    /// Memory of the system's allocator that nobody uses.
    #[derive(Clone, Copy)]
    struct Piece {
        place: *mut u8,
        bytes: usize,
    }

    impl Piece {
        const NONE: Self = Self { place: ptr::null_mut(), bytes: 0 };

        /// Gives it back.
        fn free(self) {
            let _turn = Turn::take();
            // SAFETY: it was allocated with this size and no more than this alignment, which is a power of two, and whoever has a piece has nothing but it.
            #[expect(unsafe_code, reason = "an allocator cannot do without")]
            unsafe {
                System.dealloc(self.place, Layout::from_size_align_unchecked(self.bytes, ALIGNMENT));
            }
        }
    }

    /// What a thread has freed, the newest last.
    struct Freed {
        pieces: [Piece; MOST],
        count: usize,
        bytes: usize,
    }

    impl Freed {
        /// The newest piece of this size.
        fn take(&mut self, bytes: usize) -> Option<Piece> {
            let newest = self.pieces[..self.count].iter().rposition(|piece| piece.bytes == bytes)?;
            Some(self.remove(newest))
        }

        /// Keeps a piece, and gives back the oldest ones that are too much with it.
        fn keep(&mut self, piece: Piece) {
            while self.count == MOST || self.bytes + piece.bytes > MOST_BYTES {
                self.remove(0).free();
            }
            self.pieces[self.count] = piece;
            self.count += 1;
            self.bytes += piece.bytes;
        }

        fn remove(&mut self, at: usize) -> Piece {
            let piece = self.pieces[at];
            self.pieces.copy_within(at + 1..self.count, at);
            self.count -= 1;
            self.bytes -= piece.bytes;
            piece
        }
    }

    /// A thread that ends keeps nothing.
    impl Drop for Freed {
        fn drop(&mut self) {
            self.pieces[..self.count].iter().for_each(|piece| piece.free());
        }
    }

    /// Whether the program has this allocator.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub(super) fn is_in_use() -> bool {
        drop(hint::black_box(Vec::<u8>::with_capacity(super::LARGE)));
        FREED.with_borrow(|freed| freed.count > 0)
    }

    fn can_be_kept(layout: Layout) -> bool {
        layout.size() <= MOST_BYTES && layout.align() <= ALIGNMENT
    }

    fn kept(layout: Layout) -> Option<*mut u8> {
        // A thread that ends may allocate when it has nothing to keep pieces in any more.
        let piece = || FREED.try_with(|freed| freed.borrow_mut().take(layout.size())).ok().flatten();
        can_be_kept(layout).then(piece).flatten().map(|piece| piece.place)
    }

    /// As [`GlobalAlloc::alloc`].
    #[expect(unsafe_code, reason = "an allocator cannot do without")]
    pub(super) unsafe fn alloc(layout: Layout) -> *mut u8 {
        kept(layout).unwrap_or_else(|| {
            let _turn = Turn::take();
            // SAFETY: the caller's promises.
            unsafe { System.alloc(layout) }
        })
    }

    /// As [`GlobalAlloc::alloc_zeroed`].
    #[expect(unsafe_code, reason = "an allocator cannot do without")]
    pub(super) unsafe fn alloc_zeroed(layout: Layout) -> *mut u8 {
        if let Some(place) = kept(layout) {
            // SAFETY: a piece has as many bytes as the layout.
            unsafe { place.write_bytes(0, layout.size()) };
            return place;
        }
        let _turn = Turn::take();
        // SAFETY: the caller's promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    /// As [`GlobalAlloc::dealloc`].
    #[expect(unsafe_code, reason = "an allocator cannot do without")]
    pub(super) unsafe fn dealloc(place: *mut u8, layout: Layout) {
        let keep = |freed: &RefCell<Freed>| freed.borrow_mut().keep(Piece { place, bytes: layout.size() });
        if can_be_kept(layout) && FREED.try_with(keep).is_ok() {
            return;
        }
        let _turn = Turn::take();
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(place, layout) }
    }

    /// As [`GlobalAlloc::realloc`]. What is copied is copied while others wait, but can mostly stay where it is.
    #[expect(unsafe_code, reason = "an allocator cannot do without")]
    pub(super) unsafe fn realloc(place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _turn = Turn::take();
        // SAFETY: the caller's promises.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Lets this process keep what it frees for what it needs next, up to a GiB at the end of the heap; for the start of a program, before it has other threads. With an [`Allocator`] there is one heap from now on. Without
/// it, this is best called from the thread that makes tensors: only the heap of the main thread grows as one piece and is kept as one.
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
        // By default tensors of more than 32 MiB would be the system's own memory, given back at once.
        let settings = [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, MOST_KEPT), (libc::M_TOP_PAD, GROWTH)];
        // One heap is for those alone who do not fall asleep while they wait for it.
        let one_heap = super::shared::is_in_use().then_some((libc::M_ARENA_MAX, 1));
        // Where it refuses a number it changes nothing.
        for (setting, value) in settings.into_iter().chain(one_heap) {
            // SAFETY: it takes two numbers and may be called from any thread.
            #[expect(unsafe_code, reason = "a function of the C library")]
            unsafe {
                libc::mallopt(setting, value);
            }
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
