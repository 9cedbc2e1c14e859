//! Decoding allocates in proportion to the bytes that are there, not to the counts that they claim.

mod any_program;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use vyre_foundation::{Node, wire};

/// The system's allocator, counting what this thread asks for.
struct Counting;

thread_local! {
    static ASKED_FOR: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending has no counter any more, and is not measured.
    let _ = ASKED_FOR.try_with(|asked| asked.set(asked.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise about `layout` is the one needed here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` or `realloc`, which are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as for `dealloc`, and `size` is the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Lists of one-byte nodes are the worst: the first push makes room for four nodes, and growing by doubling
/// asks for twice the elements in all.
const PER_BYTE: usize = 4 * size_of::<Node>();

fn check(bytes: &[u8]) {
    ASKED_FOR.set(0);
    let decoded = wire::decode(bytes);
    let asked = ASKED_FOR.get();
    assert!(asked <= PER_BYTE * bytes.len(), "{} bytes: {asked} bytes asked for, {decoded:?}", bytes.len());
}

#[test]
fn memory_is_proportional_to_the_input() {
    let good = wire::encode(&any_program::any_program(&[9; 400])).expect("bounded");
    check(&good);
    // Every count in turn claims as much as its check lets through, or anything at all.
    for at in 6..good.len() - 4 {
        for claim in [u32::MAX, (good.len() - at) as u32, (good.len() - at) as u32 / 4, 255] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&claim.to_le_bytes());
            check(&bytes);
        }
    }
    // The header of an entry, then what is small on the wire and large in memory, as deep as it may be.
    let empty = wire::encode(&any_program::any_program(&[])).expect("bounded");
    let open = &empty[..empty.len() - 4];
    let blocks = |depth: u32| (0..depth).flat_map(|_| [1, 0, 0, 0, 0x0b]).collect::<Vec<u8>>();
    check(&[open, &blocks(250), &[0, 0, 0, 0]].concat());
    for breaks in [1u32, 10, 1000, 100_000] {
        check(&[open, &breaks.to_le_bytes()[..], &vec![0x08; breaks as usize]].concat());
        check(&[open, &u32::MAX.to_le_bytes()[..], &vec![0x08; breaks as usize]].concat());
    }
    // Each level claims as many nodes as bytes remain.
    let mut claims = open.to_vec();
    for level in 0..200u32 {
        claims.extend((1000 - 5 * level - 4).to_le_bytes());
        claims.push(0x0b);
    }
    check(&claims);
}
