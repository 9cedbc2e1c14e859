//! The last snapshot of each session, and rates: the difference to the one before it, by the session's own clock.

use std::collections::BTreeMap;

use serde::Serialize;
use vyre::runtime::observe::Published;

/// A session as it was last seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Session {
    #[serde(flatten)]
    pub(super) published: Published,
    /// Since it was written.
    pub(super) age_ms: u64,
    /// None until there are two snapshots.
    pub(super) rates: Option<Rates>,
}

/// What happened between two snapshots, a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Between the two.
    pub(super) seconds: f64,
    pub(super) submitted: f64,
    pub(super) acknowledged: f64,
    pub(super) faulted: f64,
    /// In the order of the snapshot's opcodes.
    pub(super) opcodes: Vec<f64>,
    /// In the order of the snapshot's tenants.
    pub(super) tenants: Vec<f64>,
}

impl Rates {
    /// `None` unless `after` was written later, by the same session.
    fn between(before: &Published, after: &Published) -> Option<Rates> {
        let seconds = after.uptime.checked_sub(before.uptime)?.as_secs_f64();
        if seconds == 0.0 {
            return None;
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let (a, b) = (&before.telemetry, &after.telemetry);
        // By name: handlers may have come meanwhile.
        let opcodes: BTreeMap<_, _> =
            a.opcodes.iter().map(|count| (count.opcode.wire(), count.items)).collect();
        let tenants: BTreeMap<_, _> = a.tenants.iter().map(|count| (count.tenant, count.used)).collect();
        let known = |found: Option<&u64>| found.copied().unwrap_or(0);
        Some(Rates {
            seconds,
            submitted: rate(a.submitted, b.submitted),
            acknowledged: rate(a.acknowledged, b.acknowledged),
            faulted: rate(a.faulted, b.faulted),
            opcodes: b
                .opcodes
                .iter()
                .map(|count| rate(known(opcodes.get(&count.opcode.wire())), count.items))
                .collect(),
            tenants: b
                .tenants
                .iter()
                .map(|count| rate(known(tenants.get(&count.tenant)), count.used))
                .collect(),
        })
    }
}

/// The sessions that there are, by process and number.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    sessions: BTreeMap<(u32, u64), Session>,
}

impl Watch {
    /// Takes over what is published now; sessions that are not any more are forgotten.
    pub(super) fn update<'p>(&mut self, published: impl Iterator<Item = &'p Published>) {
        let mut before = std::mem::take(&mut self.sessions);
        for now in published {
            let key = (now.pid, now.session);
            let known = before.remove(&key);
            let rates = known.and_then(|known| {
                let unchanged = known.published.uptime == now.uptime;
                if unchanged { known.rates } else { Rates::between(&known.published, now) }
            });
            let age_ms = now.age().as_millis() as u64;
            self.sessions.insert(key, Session { published: now.clone(), age_ms, rates });
        }
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    pub(super) fn get(&self, key: (u32, u64)) -> Option<&Session> {
        self.sessions.get(&key)
    }

    /// The name of the session in a place.
    pub(super) fn key(&self, place: usize) -> Option<(u32, u64)> {
        self.sessions.keys().nth(place).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A snapshot, written so many milliseconds after the session's start.
    pub(in super::super) fn published(session: u64, uptime_ms: u64, items: u64) -> Published {
        let snapshot = serde_json::json!({
            "version": 1, "name": "a\u{1b}[2Jb", "pid": 7, "session": session, "backend": "cpu", "device": "threads",
            "worker_pid": 9, "generation": 2, "state": "runs", "last_loss": "signal 9\nat once", "written_ms": 0,
            "uptime_ns": uptime_ms * 1_000_000, "capacity": 64, "submitted": items + 4, "acknowledged": items,
            "occupancy": { "published": 1, "claimed": 2, "waiting": 0, "complete": 1 }, "done": items - 1,
            "faulted": 1, "epoch": 0, "log_lost": 0,
            "opcodes": [
                { "opcode": 0, "name": "NOP", "items": 0 }, { "opcode": 64, "name": "add_one", "items": items },
            ],
            "tenants": [{ "tenant": 0, "used": items, "done": items - 1, "faulted": 1 }],
            "latency": {
                "items": items, "min_ns": 900, "mean_ns": 1500, "p50_ns": 1200, "p90_ns": 2000, "p99_ns": 250_000,
                "p999_ns": 3_000_000, "max_ns": 4_000_000_000_u64,
            },
            "starts": 3, "recoveries": 2, "violations": 0,
            "last_change": {
                "number": 3, "prepared_in": { "secs": 1, "nanos": 0 }, "pause": { "secs": 0, "nanos": 2_500_000 },
                "left_in": { "secs": 0, "nanos": 0 },
            },
        });
        serde_json::from_value(snapshot).expect("a snapshot")
    }

    #[test]
    fn rates_are_differences_of_two_snapshots_of_one_session() {
        let mut watch = Watch::default();
        watch.update([published(1, 1000, 100)].iter());
        assert_eq!(watch.get((7, 1)).expect("there").rates, None);
        watch.update([published(1, 1500, 200), published(2, 10, 5)].iter());
        let rates = watch.get((7, 1)).expect("there").rates.clone().expect("two snapshots");
        assert_eq!(
            (rates.seconds, rates.submitted, rates.acknowledged, rates.faulted),
            (0.5, 200.0, 200.0, 0.0)
        );
        assert_eq!((&rates.opcodes[..], &rates.tenants[..]), (&[0.0, 200.0][..], &[200.0][..]));
        // The same snapshot again says nothing new; one from before is another session's.
        watch.update([published(1, 1500, 200), published(2, 5, 2)].iter());
        assert_eq!(watch.get((7, 1)).expect("there").rates, Some(rates));
        assert_eq!(watch.get((7, 2)).expect("there").rates, None);
        watch.update([].iter());
        assert_eq!(watch.len(), 0);
    }
}
