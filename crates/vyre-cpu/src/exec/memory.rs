//! Instructions that touch memory.
//!
//! Plain accesses are relaxed atomics of the element's width: programs may race, and a race must be nothing
//! worse than an old or a new value. They cost what plain moves cost.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{self, AcqRel, Acquire, Relaxed, Release},
};

use half::{bf16, f16};
use vyre_foundation::RmwOp;

use super::wave::{Bank, Lane, Registers};
use crate::flat::{AtomicWord, Code, Inst};
use crate::memory::View;

impl<const W: usize> Registers<W> {
    /// Executes a memory instruction; any other does nothing.
    #[inline(always)]
    pub(super) fn access(&self, inst: &Inst, active: u32, views: &[View]) {
        match inst.code {
            Code::LoadU8 => self.gather(inst, views, |v, i| {
                // SAFETY: `gather` passes indices in bounds, and lowering chose the element's width.
                u32::from(unsafe { v.load_u8(i) })
            }),
            Code::LoadU16 => self.gather(inst, views, |v, i| {
                // SAFETY: as above.
                u32::from(unsafe { v.load_u16(i) })
            }),
            Code::LoadW => self.gather(inst, views, |v, i| {
                // SAFETY: as above.
                unsafe { v.load_u32(i) }
            }),
            Code::LoadL => self.gather(inst, views, |v, i| {
                // SAFETY: as above.
                unsafe { v.load_u64(i) }
            }),
            Code::LoadF16 => self.gather(inst, views, |v, i| {
                // SAFETY: as above.
                f16::from_bits(unsafe { v.load_u16(i) }).to_f32().to_bits()
            }),
            Code::LoadBF16 => self.gather(inst, views, |v, i| {
                // SAFETY: as above.
                bf16::from_bits(unsafe { v.load_u16(i) }).to_f32().to_bits()
            }),
            Code::StoreU8 => self.scatter(inst, active, views, |v, i, x: u32| {
                // SAFETY: `scatter` passes indices in bounds, and lowering chose the element's width.
                unsafe { v.store_u8(i, x as u8) }
            }),
            Code::StoreU16 => self.scatter(inst, active, views, |v, i, x: u32| {
                // SAFETY: as above.
                unsafe { v.store_u16(i, x as u16) }
            }),
            Code::StoreW => self.scatter(inst, active, views, |v, i, x: u32| {
                // SAFETY: as above.
                unsafe { v.store_u32(i, x) }
            }),
            Code::StoreL => self.scatter(inst, active, views, |v, i, x: u64| {
                // SAFETY: as above.
                unsafe { v.store_u64(i, x) }
            }),
            Code::StoreF16 => self.scatter(inst, active, views, |v, i, x: u32| {
                let bits = f16::from_f32(f32::from_bits(x)).to_bits();
                // SAFETY: as above.
                unsafe { v.store_u16(i, bits) }
            }),
            Code::StoreBF16 => self.scatter(inst, active, views, |v, i, x: u32| {
                let bits = bf16::from_f32(f32::from_bits(x)).to_bits();
                // SAFETY: as above.
                unsafe { v.store_u16(i, bits) }
            }),
            Code::AtomicLoadW
            | Code::AtomicLoadL
            | Code::AtomicStoreW
            | Code::AtomicStoreL
            | Code::RmwW
            | Code::RmwL
            | Code::CompareExchangeW
            | Code::CompareExchangeL => self.atomic(inst, active, views),
            _ => {}
        }
    }

    #[inline(always)]
    fn view<'v>(&self, inst: &Inst, views: &'v [View]) -> &'v View {
        views.get(usize::from(inst.c)).unwrap_or(&View::EMPTY)
    }

    /// Loads every lane, active or not: an index that means nothing reads zero or some element, and nobody
    /// looks.
    #[inline(always)]
    fn gather<T: Lane + Default>(&self, inst: &Inst, views: &[View], load: impl Fn(&View, u32) -> T)
    where
        Self: Bank<u32, W> + Bank<T, W>,
    {
        let view = *self.view(inst, views);
        let (a, b): (&[u32; W], &[u32; W]) = (self.row(inst.a), self.row(inst.b));
        let d: &mut [T; W] = self.row_mut(inst.d);
        let mut index = [0; W];
        for lane in 0..W {
            index[lane] = a[lane].wrapping_add(b[lane]);
        }
        let greatest = index.iter().fold(0, |greatest, &index| index.max(greatest));
        if greatest < view.len() {
            for lane in 0..W {
                d[lane] = load(&view, index[lane]);
            }
        } else {
            for lane in 0..W {
                d[lane] = if index[lane] < view.len() { load(&view, index[lane]) } else { T::default() };
            }
        }
    }

    #[inline(always)]
    fn scatter<T: Copy>(&self, inst: &Inst, active: u32, views: &[View], store: impl Fn(&View, u32, T))
    where
        Self: Bank<u32, W> + Bank<T, W>,
    {
        let view = *self.view(inst, views);
        let (index, value): (&[u32; W], &[T; W]) = (self.row(inst.a), self.row(inst.b));
        for_lanes::<W>(active, |lane| {
            if index[lane] < view.len() {
                store(&view, index[lane], value[lane]);
            }
        });
    }

    /// Rarer than loads and stores, so one copy for all.
    #[inline(never)]
    fn atomic(&self, inst: &Inst, active: u32, views: &[View]) {
        let word = AtomicWord::unpack(inst.t);
        let view = views.get(word.buffer).unwrap_or(&View::EMPTY);
        let index: &[u32; W] = self.row(inst.a);
        let load = if word.ordering & 1 != 0 { Acquire } else { Relaxed };
        let store = if word.ordering & 2 != 0 { Release } else { Relaxed };
        let both = match word.ordering {
            0 => Relaxed,
            1 => Acquire,
            2 => Release,
            _ => AcqRel,
        };
        match inst.code {
            Code::AtomicLoadW => {
                self.each_word(inst, active, |lane| view.word(index[lane]).map_or(0, |cell| cell.load(load)))
            }
            Code::AtomicLoadL => {
                self.each_long(inst, active, |lane| view.long(index[lane]).map_or(0, |cell| cell.load(load)))
            }
            Code::AtomicStoreW => {
                let value: &[u32; W] = self.row(inst.b);
                for_lanes::<W>(active, |lane| {
                    if let Some(cell) = view.word(index[lane]) {
                        cell.store(value[lane], store);
                    }
                });
            }
            Code::AtomicStoreL => {
                let value: &[u64; W] = self.row(inst.b);
                for_lanes::<W>(active, |lane| {
                    if let Some(cell) = view.long(index[lane]) {
                        cell.store(value[lane], store);
                    }
                });
            }
            Code::RmwW => {
                let value: &[u32; W] = self.row(inst.b);
                self.each_word(inst, active, |lane| {
                    view.word(index[lane]).map_or(0, |cell| rmw_word(cell, word, value[lane], both))
                });
            }
            Code::RmwL => {
                let value: &[u64; W] = self.row(inst.b);
                self.each_long(inst, active, |lane| {
                    view.long(index[lane]).map_or(0, |cell| rmw_long(cell, word.op, value[lane], both))
                });
            }
            Code::CompareExchangeW => {
                let (expected, value): (&[u32; W], &[u32; W]) = (self.row(inst.b), self.row(inst.c));
                self.each_word(inst, active, |lane| {
                    view.word(index[lane]).map_or(0, |cell| {
                        let (Ok(old) | Err(old)) =
                            cell.compare_exchange(expected[lane], value[lane], both, load);
                        old
                    })
                });
            }
            _ => {
                let (expected, value): (&[u64; W], &[u64; W]) = (self.row(inst.b), self.row(inst.c));
                self.each_long(inst, active, |lane| {
                    view.long(index[lane]).map_or(0, |cell| {
                        let (Ok(old) | Err(old)) =
                            cell.compare_exchange(expected[lane], value[lane], both, load);
                        old
                    })
                });
            }
        }
    }

    fn each_word(&self, inst: &Inst, active: u32, f: impl Fn(usize) -> u32) {
        let d: &mut [u32; W] = self.row_mut(inst.d);
        for_lanes::<W>(active, |lane| d[lane] = f(lane));
    }

    fn each_long(&self, inst: &Inst, active: u32, f: impl Fn(usize) -> u64) {
        let d: &mut [u64; W] = self.row_mut(inst.d);
        for_lanes::<W>(active, |lane| d[lane] = f(lane));
    }
}

/// In ascending order, so that programs whose lanes race within a wave still give one answer.
#[inline(always)]
fn for_lanes<const W: usize>(active: u32, mut f: impl FnMut(usize)) {
    let everyone = if W == 32 { u32::MAX } else { (1 << W) - 1 };
    if active == everyone {
        (0..W).for_each(f);
    } else {
        let mut rest = active & everyone;
        while rest != 0 {
            // Below W because `rest` is a subset of `everyone`; the remainder tells the compiler so.
            f(rest.trailing_zeros() as usize % W);
            rest &= rest - 1;
        }
    }
}

fn rmw_word(cell: &AtomicU32, word: AtomicWord, value: u32, ordering: Ordering) -> u32 {
    match word.op {
        RmwOp::Add => cell.fetch_add(value, ordering),
        RmwOp::Sub => cell.fetch_sub(value, ordering),
        RmwOp::And => cell.fetch_and(value, ordering),
        RmwOp::Or => cell.fetch_or(value, ordering),
        RmwOp::Xor => cell.fetch_xor(value, ordering),
        RmwOp::Exchange => cell.swap(value, ordering),
        RmwOp::Min if word.signed => update_word(cell, ordering, |old| (old as i32).min(value as i32) as u32),
        RmwOp::Max if word.signed => update_word(cell, ordering, |old| (old as i32).max(value as i32) as u32),
        RmwOp::Min => cell.fetch_min(value, ordering),
        RmwOp::Max => cell.fetch_max(value, ordering),
    }
}

fn update_word(cell: &AtomicU32, ordering: Ordering, f: impl Fn(u32) -> u32) -> u32 {
    // A failed attempt only loads; its own ordering matters to nobody, as another attempt follows.
    let (Ok(old) | Err(old)) = cell.fetch_update(ordering, Relaxed, |old| Some(f(old)));
    old
}

fn rmw_long(cell: &AtomicU64, op: RmwOp, value: u64, ordering: Ordering) -> u64 {
    match op {
        RmwOp::Add => cell.fetch_add(value, ordering),
        RmwOp::Sub => cell.fetch_sub(value, ordering),
        RmwOp::And => cell.fetch_and(value, ordering),
        RmwOp::Or => cell.fetch_or(value, ordering),
        RmwOp::Xor => cell.fetch_xor(value, ordering),
        RmwOp::Exchange => cell.swap(value, ordering),
        RmwOp::Min => cell.fetch_min(value, ordering),
        RmwOp::Max => cell.fetch_max(value, ordering),
    }
}
