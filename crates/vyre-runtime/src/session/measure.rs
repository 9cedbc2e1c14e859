//! What a session says about itself: the telemetry snapshot and the debug log.

use std::sync::atomic::Ordering;

use vyre_driver::view::HostView;

use super::plan::to_words;
use super::shared::{Shared, lock};
use crate::debug_log::DebugLog;
use crate::item::SYSTEM_BUFFERS;
use crate::opcode::BuiltinOpcode;
use crate::state::{BUILTIN_COUNTERS, StateLayout, header, usage_row};
use crate::telemetry::{Latency, Occupancy, OpcodeCount, TelemetrySnapshot, TenantCount};

impl Shared {
    pub(super) fn telemetry(&self) -> TelemetrySnapshot {
        let view = self.absorb_if_free();
        let ring = self.ring.counters();
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
            capacity: self.ring.capacity(),
            submitted: ring.published,
            acknowledged: ring.completed,
            occupancy: self.occupancy(&view),
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
            violations: ring.violations,
            last_change: *lock(&self.last_change),
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
    fn occupancy(&self, view: &HostView) -> Occupancy {
        let workers = view.regions().layout.config().workers;
        let busy: Vec<_> = (0..workers).filter_map(|worker| view.in_flight(worker).ok().flatten()).collect();
        let is_claimed =
            |ticket: u64| busy.iter().any(|items| ticket.wrapping_sub(items.first) < items.count.into());
        let mut occupancy = Occupancy::default();
        let head = self.ring.head();
        for ticket in head.saturating_sub(self.ring.capacity().into())..head {
            match self.ring.poll_raw(self.ring.raw(ticket)) {
                Ok(Some(_)) => occupancy.complete += 1,
                Ok(None) if is_claimed(ticket) => occupancy.claimed += 1,
                Ok(None) => occupancy.published += 1,
                Err(_) => {}
            }
        }
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
