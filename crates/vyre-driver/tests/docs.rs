//! docs/protocol.md says what the code does: its tables are compared with the constants.
#![cfg(not(loom))]

use vyre_driver::layout::{self, HeaderField, RegionConfig, RegionLayout};
use vyre_driver::protocol::{io, opcode};
use vyre_driver::{Fault, Status};

const PAGE: &str = include_str!("../../../docs/protocol.md");

/// The cells of the table that follows a marker, head and rule left out.
fn table(marker: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = PAGE.split_once(marker).unwrap_or_else(|| panic!("no `{marker}` on the page"));
    rest.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("`{text}` is no number"))
}

#[test]
fn headers() {
    let layout = RegionLayout::new(&RegionConfig::new(1)).expect("a plain configuration");
    let tables = [("✓ h2d header", layout.h2d_fields()), ("✓ d2h header", layout.d2h_fields())];
    for (marker, fields) in tables {
        let row = |field: &HeaderField| {
            vec![field.offset.to_string(), field.width.to_string(), field.name.to_owned()]
        };
        let expected: Vec<_> = fields.iter().map(row).collect();
        assert_eq!(table(marker), expected, "{marker}");
    }
    assert!(PAGE.contains("repeat every 32 bytes"));
    let two = RegionLayout::new(&RegionConfig { rings: vec![1, 1], ..RegionConfig::new(1) });
    let second = two.expect("a plain configuration").h2d_fields();
    let capacities: Vec<_> = second.iter().filter(|field| field.name == "ring capacity").collect();
    assert_eq!(capacities[1].offset - capacities[0].offset, 32);
}

#[test]
fn fixed_words() {
    let expected = [
        ("h2d", layout::HOST_LEASE, 8, "host lease"),
        ("h2d", layout::ABORT_FLAG, 4, "abort flag"),
        ("h2d", layout::ANY_CANCELLATION, 4, "any cancellation"),
        ("h2d", layout::DOORBELL, 4, "doorbell"),
        ("h2d", layout::HOST_WAITERS, 4, "host waiters"),
        ("d2h", layout::HEARTBEAT, 8, "heartbeat"),
        ("d2h", layout::SLEEPERS, 4, "sleepers"),
        ("d2h", layout::COMPLETION_EVENT, 4, "completion event"),
    ];
    let rows = table("✓ Words at fixed places");
    assert_eq!(rows.len(), expected.len());
    for (row, (region, offset, bytes, name)) in rows.iter().zip(expected) {
        assert_eq!((row[0], number(row[1]), number(row[2])), (region, offset, bytes));
        assert!(row[3].starts_with(name), "{row:?}");
    }
}

#[test]
fn statuses() {
    let names = [
        (Status::Empty, "EMPTY"),
        (Status::Done, "DONE"),
        (Status::WaitIo, "WAIT_IO"),
        (Status::Requeue, "REQUEUE"),
        (Status::Fault, "FAULT"),
    ];
    let expected: Vec<_> = names.iter().map(|&(status, name)| (status as u64, name)).collect();
    let rows: Vec<_> = table("✓ Statuses").into_iter().map(|row| (number(row[0]), row[1])).collect();
    assert_eq!(rows, expected);
    let known = (0..=u16::MAX).filter(|&word| Status::from_word(word).is_some()).count();
    assert_eq!(known, rows.len());
}

#[test]
fn io_numbers() {
    let expected = [
        (io::READ, "READ"),
        (io::WRITE, "WRITE"),
        (io::FENCE, "FENCE"),
        (io::OK, "OK"),
        (io::ERROR, "ERROR"),
    ];
    let rows: Vec<_> =
        table("✓ Operations and reply").into_iter().map(|row| (number(row[0]) as u32, row[1])).collect();
    assert_eq!(rows, expected);
}

#[test]
fn opcodes() {
    let expected = [
        (opcode::NOP, "NOP"),
        (opcode::STORE_U32, "STORE_U32"),
        (opcode::ATOMIC_ADD, "ATOMIC_ADD"),
        (opcode::LOAD_U32, "LOAD_U32"),
        (opcode::COMPARE_SWAP, "COMPARE_SWAP"),
        (opcode::MEMCPY, "MEMCPY"),
        (opcode::DFA_STEP, "DFA_STEP"),
        (opcode::BATCH_FENCE, "BATCH_FENCE"),
        (opcode::WORK_ITEM, "WORK_ITEM"),
        (opcode::LOAD_MISS, "LOAD_MISS"),
        (opcode::PRINTF, "PRINTF"),
        (opcode::PACKED_SLOT, "PACKED_SLOT"),
        (opcode::SHUTDOWN, "SHUTDOWN"),
    ];
    let rows: Vec<_> =
        table("✓ Reserved numbers").into_iter().map(|row| (number(row[0]) as u32, row[1])).collect();
    assert_eq!(rows, expected);
    assert!(expected.iter().all(|&(number, _)| !opcode::is_user(number)));
    let ranges = format!(
        "Users' opcodes are {:#X} to {:#X} and {:#X} to {:#X}.",
        opcode::USER_FIRST,
        opcode::USER_LAST,
        opcode::USER_HIGH_FIRST,
        opcode::USER_HIGH_LAST
    );
    assert!(PAGE.contains(&ranges.replace("0X", "0x")), "{ranges}");
}

#[test]
fn faults() {
    let mut rows = table("✓ Fault codes");
    assert_eq!(rows.pop(), Some(vec!["0x80000000 + n", "Trap(n)"]));
    assert_eq!(Fault::Trap(5).code(), 0x8000_0005);
    for row in &rows {
        let code = number(row[0]) as u32;
        assert_eq!(format!("{:?}", Fault::from_code(code)), row[1]);
        assert_eq!(Fault::from_code(code).code(), code);
    }
    // The page has them all.
    let next = rows.len() as u32 + 1;
    assert_eq!(Fault::from_code(next), Fault::Unknown(next));
}
