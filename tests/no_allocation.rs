//! The hot path allocates nothing: frames and datagrams cross both ways without
//! a call of the allocator, once tables and buffers have their size.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use landbridge::{offload::Offload, session::CipherSuite};

#[path = "../benches/support/pair.rs"]
#[allow(dead_code)]
mod pair;

use pair::{EAST, Pair, WEST, flow, frame, segment_count, superframe};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(action: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    action();
    ALLOCATIONS.get() - before
}

/// Long enough for pings, probes and refreshed MAC addresses: two seconds.
const ROUNDS: u64 = 200;

/// Bursts of each kind of frame both ways.
fn traffic(pair: &mut Pair, small: &[Vec<Vec<u8>>; 2], big: &[Vec<Vec<u8>>; 2], offload: Offload) {
    for _ in 0..ROUNDS {
        for (site, burst) in [EAST, WEST].into_iter().zip(small) {
            pair.burst(site, Offload::NONE, burst);
        }
        for (site, burst) in [EAST, WEST].into_iter().zip(big) {
            pair.burst(site, offload, burst);
        }
        pair.pass(Duration::from_millis(10));
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn frames_and_datagrams_cross_without_allocating() {
    let small = [EAST, WEST].map(|site| {
        let mut frames: Vec<_> = (0..32).map(|station| frame(site, station, 60)).collect();
        frames.push(frame(site, 1, 1514));
        let mut broadcast = frame(site, 2, 60);
        broadcast[..6].fill(0xff);
        frames.push(broadcast);
        frames.extend(flow(site, 20, 60));
        frames
    });
    let (offload, superframe_east) = superframe(EAST);
    let segments = segment_count(&offload, &superframe_east);
    let big = [EAST, WEST].map(|site| vec![superframe(site).1; 4]);
    for suite in CipherSuite::ALL {
        let mut pair = Pair::new(suite);
        traffic(&mut pair, &small, &big, offload);
        let frames = |pair: &Pair| pair.from_east.frames + pair.from_west.frames;
        let writes = |pair: &Pair| pair.from_east.writes + pair.from_west.writes;
        let (frames_before, writes_before) = (frames(&pair), writes(&pair));
        let allocations = allocations(|| traffic(&mut pair, &small, &big, offload));
        let crossed = frames(&pair) - frames_before;
        assert_eq!(crossed, ROUNDS * 2 * (54 + 4 * segments), "{suite}: every frame crosses");
        let writes = writes(&pair) - writes_before;
        assert_eq!(writes, ROUNDS * 2 * (34 + 1 + 4), "{suite}: a flow is merged");
        assert_eq!(allocations, 0, "{suite}");
    }
}
