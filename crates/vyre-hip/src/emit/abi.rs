//! What host and kernel agree on, byte by byte. `kernels/vyre_abi.h` is this file in C; a test keeps it so.
//!
//! A kernel takes one argument by value: [`Arguments`], then one [`Binding`] for each declared buffer in order,
//! workgroup buffers left out. With more than [`MAX_INLINE_BINDINGS`] of them, the device address of the
//! bindings follows instead. Before a dispatch the host writes [`Control::NEW`], with the address of its abort
//! word, to device memory; afterwards it reads it back.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};

/// Bindings that are passed by value: with them the argument stays below the 4 KiB that every device takes.
pub const MAX_INLINE_BINDINGS: usize = 248;

/// The same for a resident kernel.
pub const MAX_INLINE_ITEM_BINDINGS: usize = 160;

/// Bytes at [`Resident::live`].
pub const LIVE_BYTES: u64 = 8192;

/// Bytes of a parked fence.
pub const FENCE_BYTES: u64 = 32;
/// Bytes of an item on its way to a workgroup.
pub const GROUP_ENTRY_BYTES: u64 = 80;

/// Invocations that a dispatch may have: [`Control::trap`] has 48 bits for an id.
pub const MAX_INVOCATIONS: u64 = 1 << 48;

macro_rules! abi {
    ($($(#[doc = $doc:literal])+ struct $name:ident($c:literal, $size:literal) {
        $($(#[doc = $field_doc:literal])+ $field:ident: $ty:ident @ $offset:literal,)+
    })+) => {
        $(
            $(#[doc = $doc])+
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct $name {
                $($(#[doc = $field_doc])+ pub $field: $ty,)+
            }

            const _: () = assert!(size_of::<$name>() == $size);
            $(const _: () = assert!(offset_of!($name, $field) == $offset);)+

            impl $name {
                /// The bytes as a device sees them; there is no padding.
                pub fn to_bytes(&self) -> [u8; $size] {
                    let mut bytes = [0; $size];
                    let fields = [$(&self.$field.to_le_bytes()[..],)+].concat();
                    bytes.copy_from_slice(&fields);
                    bytes
                }

                /// The value that a device left.
                pub fn from_bytes(bytes: &[u8; $size]) -> $name {
                    let mut value = $name::default();
                    $({
                        let mut field = value.$field.to_le_bytes();
                        let found = bytes.iter().skip($offset);
                        field.iter_mut().zip(found).for_each(|(to, from)| *to = *from);
                        value.$field = $ty::from_le_bytes(field);
                    })+
                    value
                }
            }
        )+

        const STRUCTS: &[Struct] = &[$(Struct {
            name: $c,
            size: $size,
            doc: &[$($doc),+],
            fields: &[$(Field {
                name: stringify!($field),
                ty: stringify!($ty),
                offset: $offset,
                doc: &[$($field_doc),+],
            }),+],
        }),+];
    };
}

struct Struct {
    name: &'static str,
    size: usize,
    doc: &'static [&'static str],
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    ty: &'static str,
    offset: usize,
    doc: &'static [&'static str],
}

abi! {
    /// The control block of a dispatch, in device memory, aligned to 8 bytes.
    struct Control("VyreControl", 40) {
        /// The least of `invocation << 16 | code >> 16` among those that trapped; all ones if none did.
        trap_high: u64 @ 0,
        /// The least of `invocation << 16 | code & 0xffff`.
        trap_low: u64 @ 8,
        /// Device address of a 32-bit word that the host makes other than zero to abort, or 0. It may be in
        /// host memory that is mapped and coherent.
        abort: u64 @ 16,
        /// Other than zero if the abort cut an invocation short.
        aborted: u32 @ 24,
        /// Workgroups that arrived at grid barriers.
        grid_arrived: u32 @ 28,
        /// The pass in which the program ended, counted from 1, or 0.
        ended: u32 @ 32,
        /// Zero.
        reserved: u32 @ 36,
    }

    /// The first part of a kernel's argument.
    struct Arguments("VyreArguments", 24) {
        /// Device address of the control block.
        control: u64 @ 0,
        /// Device address of the memory that invocations keep between passes, aligned to 8 bytes.
        invocation_spill: u64 @ 8,
        /// Device address of the memory that workgroups keep between passes, aligned to 8 bytes.
        workgroup_spill: u64 @ 16,
    }

    /// A buffer as bound.
    struct Binding("VyreBinding", 16) {
        /// Device address, aligned to the element. One element can be loaded from it even if `len` is 0.
        data: u64 @ 0,
        /// Elements, at least as many as declared and at most 2^32 - 1.
        len: u64 @ 8,
    }

    /// A buffer as bound to the items of a resident kernel.
    struct ItemBinding("VyreItemBinding", 24) {
        /// As of a binding; for the tenant table the device's copy.
        data: u64 @ 0,
        /// As of a binding.
        len: u64 @ 8,
        /// Where the host changes it: the same address, but for the tenant table.
        origin: u64 @ 16,
    }

    /// One ring of a resident kernel, in device memory.
    struct Ring("VyreRing", 80) {
        /// The host's slots.
        slots: u64 @ 0,
        /// The completions, in host memory.
        completions: u64 @ 8,
        /// The first ticket of this incarnation.
        first: u64 @ 16,
        /// The device's copy of the slots, 64 bytes each.
        local: u64 @ 24,
        /// For each slot how many of its tickets are complete: 8 bytes.
        laps: u64 @ 32,
        /// For each slot 64 bytes for an item that does not end at once.
        records: u64 @ 40,
        /// One bit for each ticket from the first on that was acknowledged before.
        marks: u64 @ 48,
        /// Tickets from the first on that have such a bit.
        marked: u64 @ 56,
        /// Slots, a power of two.
        capacity: u32 @ 64,
        /// Its logarithm.
        shift: u32 @ 68,
        /// Host memory: for each slot one more than the ticket that is not to begin.
        cancellations: u64 @ 72,
    }

    /// A table that a resident kernel copies into host memory.
    struct MirrorCopy("VyreMirror", 32) {
        /// The device's words.
        source: u64 @ 0,
        /// The host's.
        target: u64 @ 8,
        /// What was copied last, zeros at first, in device memory.
        shadow: u64 @ 16,
        /// How many.
        words: u64 @ 24,
    }

    /// The first part of a resident kernel's argument. Addresses are the device's.
    struct Resident("VyreResident", 200) {
        /// `ring_count` rings.
        rings: u64 @ 0,
        /// 8192 bytes of zeros, what the workgroups share.
        live: u64 @ 8,
        /// Host memory: how far the host wants the kernel to be on its way out.
        command: u64 @ 16,
        /// Host memory, three words: whether it is resident, how many workgroups were by then, how it ended.
        status: u64 @ 24,
        /// Host memory: the abort flag, and in the upper half whether a cancellation was ever asked for.
        abort: u64 @ 32,
        /// Host memory: the lease.
        lease: u64 @ 40,
        /// Host memory: the heartbeat.
        heartbeat: u64 @ 48,
        /// Host memory: the in-flight words, 64 bytes apart.
        in_flight: u64 @ 56,
        /// Host memory: the requests of the IO queue.
        io_requests: u64 @ 64,
        /// Host memory: its replies.
        io_replies: u64 @ 72,
        /// For each entry of the IO queue 8 bytes: who waits for its reply. Zeros.
        io_open: u64 @ 80,
        /// `mirror_count` mirrors.
        mirrors: u64 @ 88,
        /// The queue of items to run again: `1 << queue_shift` entries of 8 bytes, zeros.
        ready: u64 @ 96,
        /// The items that a workgroup runs: as many entries of 80 bytes, zeros; not used without such programs.
        groups: u64 @ 104,
        /// The same as `ready` for items to be parked.
        parked: u64 @ 112,
        /// As many parked fences, of 32 bytes.
        fences: u64 @ 120,
        /// As many requests that wait for a place, of 8 bytes.
        posting: u64 @ 128,
        /// Opcodes that a workgroup runs.
        group_opcodes: u64 @ 136,
        /// Nanoseconds that the lease may stay the same.
        lease_limit: u64 @ 144,
        /// Nanoseconds that a run of an item may take, or 0.
        item_deadline: u64 @ 152,
        /// Rings, at most 8.
        ring_count: u32 @ 160,
        /// In-flight words.
        workers: u32 @ 164,
        /// Entries of the IO queue, a power of two.
        io_entries: u32 @ 168,
        /// Mirrors.
        mirror_count: u32 @ 172,
        /// The logarithm of a queue's length, which is no less than the slots of all rings together.
        queue_shift: u32 @ 176,
        /// Opcodes that a workgroup runs.
        group_opcode_count: u32 @ 180,
        /// Workgroups that schedule.
        scheduler_groups: u32 @ 184,
        /// Workgroups that run items by lanes, those to be run again apart.
        lane_groups: u32 @ 188,
        /// Tickets that such a workgroup claims at once, at most its invocations and 256.
        claim: u32 @ 192,
        /// Zero.
        reserved: u32 @ 196,
    }
}

const _: () = assert!(size_of::<Resident>() + MAX_INLINE_ITEM_BINDINGS * size_of::<ItemBinding>() <= 4096);
const _: () = assert!(size_of::<Arguments>() + MAX_INLINE_BINDINGS * size_of::<Binding>() <= 4096);

impl Control {
    /// The state before a dispatch without an abort word.
    pub const NEW: Control = Control {
        trap_high: u64::MAX,
        trap_low: u64::MAX,
        abort: 0,
        aborted: 0,
        grid_arrived: 0,
        ended: 0,
        reserved: 0,
    };

    /// Linear id and code of the first invocation that trapped.
    pub const fn trap(&self) -> Option<(u64, u32)> {
        if self.trap_high == u64::MAX && self.trap_low == u64::MAX {
            return None;
        }
        let code = (self.trap_high & 0xffff) << 16 | self.trap_low & 0xffff;
        Some((self.trap_high >> 16, code as u32))
    }
}

/// A kernel's whole argument, with the bindings by value.
pub fn inline_argument(arguments: &Arguments, bindings: &[Binding]) -> Vec<u8> {
    let mut bytes = arguments.to_bytes().to_vec();
    bindings.iter().for_each(|binding| bytes.extend_from_slice(&binding.to_bytes()));
    bytes
}

/// A kernel's whole argument, with the device address of its bindings.
pub fn table_argument(arguments: &Arguments, bindings: u64) -> Vec<u8> {
    let mut bytes = arguments.to_bytes().to_vec();
    bytes.extend_from_slice(&bindings.to_le_bytes());
    bytes
}

/// The structs in C: the text of `kernels/vyre_abi.h`.
pub fn c_header() -> String {
    let mut text = String::from(
        "// What host and kernel agree on. Generated from crates/vyre-hip/src/emit/abi.rs, whose test keeps it\n\
         // up to date; edit that.\n\n#ifndef VYRE_ABI_H\n#define VYRE_ABI_H\n\n#include <stddef.h>\n",
    );
    for layout in STRUCTS {
        text.push('\n');
        comment(&mut text, "", layout.doc);
        let name = layout.name;
        // Writing to a string does not fail.
        let _ = writeln!(text, "struct {name} {{");
        for field in layout.fields {
            comment(&mut text, "  ", field.doc);
            let ty = if field.ty == "u64" { "unsigned long long" } else { "unsigned int" };
            let _ = writeln!(text, "  {ty} {};", field.name);
        }
        text.push_str("};\n");
        let _ = writeln!(text, "static_assert(sizeof({name}) == {}, \"{name}\");", layout.size);
        for Field { name: field, offset, .. } in layout.fields {
            let _ =
                writeln!(text, "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");");
        }
    }
    text.push_str("\n#endif\n");
    text
}

fn comment(text: &mut String, indent: &str, doc: &[&str]) {
    for line in doc {
        let _ = writeln!(text, "{indent}//{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_header_is_up_to_date() {
        expect_test::expect_file!["../../../../kernels/vyre_abi.h"].assert_eq(&c_header());
    }

    #[test]
    fn bytes_and_back() {
        let control = Control { trap_high: 1 << 40, aborted: 7, reserved: 9, ..Control::NEW };
        assert_eq!(Control::from_bytes(&control.to_bytes()), control);
        let binding = Binding { data: 0x1122_3344_5566_7788, len: 3 };
        let argument = inline_argument(&Arguments::default(), &[binding]);
        assert_eq!(argument.len(), 40);
        assert_eq!(argument[24], 0x88);
    }

    #[test]
    fn traps() {
        assert_eq!(Control::NEW.trap(), None);
        let (id, code) = (0x1234_5678_9abc_u64, 0xdead_beef_u32);
        let control = Control {
            trap_high: id << 16 | u64::from(code >> 16),
            trap_low: id << 16 | u64::from(code & 0xffff),
            ..Control::NEW
        };
        assert_eq!(control.trap(), Some((id, code)));
    }
}
