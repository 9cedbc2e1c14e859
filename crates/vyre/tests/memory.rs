//! What a scan keeps in memory does not grow with the number of matches.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use vyre::scan::{Match, Rules, ScanOptions, Scanner, walk};

/// The system's allocator, counting what is in use, and the most that was.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let now = IN_USE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise about `layout` is the one needed here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc`, or from `realloc` as the trait provides it, which calls `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What waits in memory: 256 Ki matches for their turns, as many in the queue, and a few files.
const ENOUGH: usize = 48 << 20;

#[test]
fn memory_does_not_grow_with_the_matches() {
    // One long file first, so that all others wait for it; then a few of its kind and many short ones.
    let folder = tempfile::tempdir().expect("a folder");
    for index in 0..2_000 {
        let bytes = if index < 3 { 1 << 20 } else { 1_000 };
        std::fs::write(folder.path().join(format!("{index:04}")), vec![b'x'; bytes]).expect("written");
    }
    let files = walk(&[folder.path()]).files;
    let backend = vyre::open(vyre::BackendChoice::Cpu).expect("a backend");
    let rules = Rules::parse(b"x\tx\n").expect("rules");
    let scanner = Scanner::new(backend, rules, ScanOptions::default()).expect("a scanner");

    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut matches = 0;
    let each = |report: vyre::scan::FileReport| {
        matches += report.outcome.expect("readable").len();
        ControlFlow::Continue(())
    };
    scanner.scan(&files, each).expect("the scan ends");
    assert_eq!(matches, 3 * (1 << 20) + 1_997 * 1_000);
    assert!(matches * size_of::<Match>() > 4 * ENOUGH, "too few to tell");
    let grown = MOST.load(Ordering::Relaxed) - before;
    assert!(grown < ENOUGH, "{grown} bytes were in use at once");
}
