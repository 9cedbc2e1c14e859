//! What a session says about itself: the telemetry snapshot and the debug log.

use std::sync::atomic::Ordering;

use vyre_driver::ring::RingProducer;
use vyre_driver::view::HostView;

use super::plan::to_words;
use super::rings::{position_of, ring_of};
use super::shared::{Shared, lock};
use crate::debug_log::DebugLog;
use crate::item::SYSTEM_BUFFERS;
use crate::opcode::BuiltinOpcode;
use crate::state::{BUILTIN_COUNTERS, StateLayout, header, usage_row};
use crate::telemetry::{Latency, Occupancy, OpcodeCount, RingUsage, TelemetrySnapshot, TenantCount};

impl Shared {
    pub(super) fn telemetry(&self) -> TelemetrySnapshot {
        let view = self.absorb_if_free();
        let rings = self.usage_of_rings(&view);
        let counters = lock(&self.counters);
        let usage = lock(&self.usage);
        let opcode = |opcode, name: &str, index| OpcodeCount {
            opcode,
            name: name.to_owned(),
            items: counters.get(StateLayout::counter(index)),
        };
        let builtin = BuiltinOpcode::ALL.into_iter();
        let builtin = builtin.map(|builtin| opcode(builtin.into(), builtin.name(), builtin.index()));
        let handlers = self.plan.handlers();
        let handlers = (BUILTIN_COUNTERS..).zip(handlers.iter());
        let tenant = |tenant: u16| {
            let row = u32::from(tenant) * usage_row::WORDS;
            TenantCount {
                tenant,
                used: usage.get(row + usage_row::USED),
                done: usage.get(row + usage_row::DONE),
                faulted: usage.get(row + usage_row::FAULTED),
            }
        };
        TelemetrySnapshot {
            capacity: rings.iter().map(|ring| ring.capacity).sum(),
            submitted: rings.iter().map(|ring| ring.submitted).sum(),
            acknowledged: rings.iter().map(|ring| ring.acknowledged).sum(),
            occupancy: self.occupancy(&rings),
            done: counters.get(header::DONE_COUNT),
            faulted: counters.get(header::FAULT_COUNT),
            epoch: counters.get(header::EPOCH),
            log_lost: counters.get(header::LOG_LOST),
            opcodes: builtin
                .chain(handlers.map(|(index, handler)| opcode(handler.opcode(), handler.name(), index)))
                .collect(),
            tenants: self.plan.tenants.iter().map(|(id, _)| tenant(id)).collect(),
            latency: self.timing.as_ref().and_then(|timing| timing.latency.as_ref()).map(Latency::summary),
            starts: self.starts.load(Ordering::Relaxed),
            recoveries: self.recoveries.load(Ordering::Acquire),
            violations: self.rings.iter().map(|ring| ring.counters().violations).sum(),
            last_change: *lock(&self.last_change),
            rings,
        }
    }

    /// Takes the mirrors over, unless a backend holds the buffers up: what was taken over last has to do then.
    fn absorb_if_free(&self) -> HostView {
        let view = lock(&self.view);
        if let Ok(mut buffers) = self.buffers.try_lock() {
            self.absorb_mirrors(&view, &mut buffers);
        }
        view.clone()
    }

    /// Looks at every slot in use.
    fn usage_of_rings(&self, view: &HostView) -> Vec<RingUsage> {
        let workers = view.regions().layout.config().workers;
        let busy: Vec<_> = (0..workers).filter_map(|worker| view.in_flight(worker).ok().flatten()).collect();
        let usage = |ring: &RingProducer| {
            let counted = ring.counters();
            RingUsage {
                capacity: ring.capacity(),
                submitted: counted.published,
                acknowledged: counted.completed,
                occupancy: Occupancy::default(),
            }
        };
        let mut rings: Vec<_> = self.rings.iter().map(usage).collect();
        for key in self.rings.in_use() {
            let (ring, position) = (ring_of(key), position_of(key));
            let Some(usage) = rings.get_mut(ring as usize) else { continue };
            let is_claimed = || {
                let mut of_ring = busy.iter().filter(|items| items.ring == ring);
                of_ring.any(|items| position.wrapping_sub(items.first) < items.count.into())
            };
            let producer = self.rings.get(ring);
            match producer.poll_raw(producer.raw(position)) {
                Ok(Some(_)) => usage.occupancy.complete += 1,
                Ok(None) if is_claimed() => usage.occupancy.claimed += 1,
                Ok(None) => usage.occupancy.published += 1,
                Err(_) => {}
            }
        }
        rings
    }

    /// All rings together.
    fn occupancy(&self, rings: &[RingUsage]) -> Occupancy {
        let mut occupancy = rings.iter().fold(Occupancy::default(), |all, ring| Occupancy {
            published: all.published + ring.occupancy.published,
            claimed: all.claimed + ring.occupancy.claimed,
            waiting: 0,
            complete: all.complete + ring.occupancy.complete,
        });
        occupancy.waiting = self.io_waiting.load(Ordering::Relaxed).min(occupancy.published);
        occupancy.published -= occupancy.waiting;
        occupancy
    }

    pub(super) fn debug_log(&self) -> DebugLog {
        let [.., log, _] = SYSTEM_BUFFERS;
        self.absorb_if_free();
        let Ok(words) = self.buffers().map(|buffers| to_words(buffers.mirrored(log))) else {
            return DebugLog::decode(&[], 0);
        };
        let lost = lock(&self.counters).get(header::LOG_LOST);
        DebugLog::decode(&words, lost)
    }
}
