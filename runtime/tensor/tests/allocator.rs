//! The allocator that programs have: memory is nobody else's while it is held, holds what was written, and goes back, whichever threads take and free it.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::sync::mpsc::channel;
use std::thread;

use kilnbox_tensor::allocator::{Allocator, keep_freed_memory};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Sizes on both sides of every bound: of large pieces, and of what a thread keeps.
const SIZES: [usize; 12] =
    [1, 24, 4_000, 8_191, 8_192, 8_193, 40_000, 40_960, 300_000, 1 << 20, (1 << 20) + 1, 5 << 20];

/// Memory full of one number.
struct Marked {
    place: *mut u8,
    layout: Layout,
    mark: u8,
}

// SAFETY: whoever has it has all there is of it.
#[expect(unsafe_code, reason = "memory goes from thread to thread")]
unsafe impl Send for Marked {}

#[expect(unsafe_code, reason = "what is tested has no safe interface")]
impl Marked {
    fn new(layout: Layout, mark: u8) -> Self {
        // SAFETY: no size is 0.
        let place = unsafe { if mark == 0 { alloc_zeroed(layout) } else { alloc(layout) } };
        assert!(!place.is_null() && place.addr().is_multiple_of(layout.align()));
        if mark != 0 {
            // SAFETY: the memory has this size.
            unsafe { place.write_bytes(mark, layout.size()) };
        }
        Self { place, layout, mark }
    }

    fn resized(self, size: usize) -> Self {
        let Self { place, layout, mark } = &self;
        let kept = layout.size().min(size);
        // SAFETY: it is this allocator's, with this layout, and is not used after that.
        let place = unsafe { realloc(*place, *layout, size) };
        assert!(!place.is_null() && place.addr().is_multiple_of(layout.align()));
        let layout = Layout::from_size_align(size, layout.align()).expect("a layout");
        let resized = Self { place, layout, mark: *mark };
        std::mem::forget(self);
        resized.check(kept);
        // SAFETY: the memory has this size.
        unsafe { place.write_bytes(resized.mark, size) };
        resized
    }

    /// That the first bytes hold the mark.
    fn check(&self, bytes: usize) {
        // SAFETY: so many were written.
        let bytes = unsafe { std::slice::from_raw_parts(self.place, bytes) };
        assert!(bytes.iter().all(|&byte| byte == self.mark), "{:?}", self.layout);
    }
}

#[expect(unsafe_code, reason = "what is tested has no safe interface")]
impl Drop for Marked {
    fn drop(&mut self) {
        self.check(self.layout.size());
        // SAFETY: it is this allocator's, with this layout.
        unsafe { dealloc(self.place, self.layout) };
    }
}

#[test]
fn memory_is_held_by_one_and_goes_from_thread_to_thread() {
    const THREADS: usize = 4;
    keep_freed_memory();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<Marked>()).unzip();
    thread::scope(|scope| {
        for (number, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(number + 1) % THREADS].clone();
            scope.spawn(move || {
                let mut held = Vec::new();
                let mut state = number as u64 + 1;
                let mut random = |below: usize| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as usize % below
                };
                for round in 0..3_000_usize {
                    let size = SIZES[random(if round % 50 == 0 { SIZES.len() } else { 8 })];
                    let layout = Layout::from_size_align(size, [1, 8, 64][random(3)]).expect("a layout");
                    held.push(Marked::new(layout, random(256) as u8));
                    match random(4) {
                        0 => drop(held.swap_remove(random(held.len()))),
                        1 => {
                            let one = held.swap_remove(random(held.len()));
                            held.push(one.resized(SIZES[random(8)]));
                        }
                        2 => _ = next.send(held.swap_remove(random(held.len()))),
                        _ => {}
                    }
                    // What others have taken is freed here.
                    receiver.try_iter().take(2).for_each(drop);
                    if held.len() > 40 {
                        held.truncate(20);
                    }
                }
            });
        }
        drop(senders);
    });
}

/// The bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}

#[test]
fn threads_that_come_and_go_leave_nothing_and_use_what_others_have_freed() {
    keep_freed_memory();
    let round = || {
        thread::spawn(|| {
            let held: Vec<Vec<u8>> = (1..100).map(|k| vec![1; 10_000 * k]).collect();
            held.len()
        })
        .join()
        .expect("a thread")
    };
    round();
    let before = resident();
    for _ in 0..300 {
        assert_eq!(round(), 99);
    }
    // Each keeps one MiB while it lives. The other test of this program holds some meanwhile.
    let grown = resident().saturating_sub(before);
    assert!(grown < 150 << 20, "{} MiB more", grown >> 20);
}
