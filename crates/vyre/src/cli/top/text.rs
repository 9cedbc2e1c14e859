//! Lines about sessions, for a terminal or a pipe. What a program named is shown without its control characters.

use std::time::Duration;

use super::watch::{Session, Watch};

/// Characters of the bar that shows the ring.
const BAR: usize = 24;
/// After this long without a snapshot a session is said to be silent: it publishes itself four times a second.
const SILENT_MS: u64 = 2000;

/// Everything about one session.
pub(super) fn session(session: &Session) -> Vec<String> {
    let Session { published, age_ms, rates } = session;
    let telemetry = &published.telemetry;
    let worker = published.worker_pid.map(|pid| format!(", in worker {pid}")).unwrap_or_default();
    let silent =
        if *age_ms > SILENT_MS { format!("; SILENT for {} s", age_ms / 1000) } else { String::new() };
    let mut lines = vec![
        format!(
            "{}  pid {} session {}  {}: {}{worker}",
            clean(&published.name),
            published.pid,
            published.session,
            clean(&published.backend),
            clean(&published.device),
        ),
        format!(
            "state      {}, for {:.1} s; generation {}, {} starts, {} recoveries{silent}",
            clean(&published.state),
            published.uptime.as_secs_f64(),
            published.generation,
            telemetry.starts,
            telemetry.recoveries,
        ),
    ];
    let occupancy = telemetry.occupancy;
    let filled = (telemetry.fill() * BAR as f64).round().clamp(0.0, BAR as f64) as usize;
    lines.push(format!(
        "ring       [{}{}] {:.0} % of {}: {} published, {} claimed, {} waiting, {} complete",
        "#".repeat(filled),
        ".".repeat(BAR - filled),
        telemetry.fill() * 100.0,
        telemetry.capacity,
        occupancy.published,
        occupancy.claimed,
        occupancy.waiting,
        occupancy.complete,
    ));
    if telemetry.rings.len() > 1 {
        let in_use = telemetry.rings.iter().map(|ring| ring.occupancy.total().to_string());
        let capacity = telemetry.rings.first().map_or(0, |ring| ring.capacity);
        let in_use = in_use.collect::<Vec<_>>().join(", ");
        lines.push(format!("rings      {in_use} in use of {capacity} each, the most urgent first"));
    }
    let rate = |of: fn(&super::watch::Rates) -> f64| per_second(rates.as_ref().map(of));
    lines.push(format!(
        "items      {} acknowledged, {} submitted; {} and {} in all",
        rate(|rates| rates.acknowledged),
        rate(|rates| rates.submitted),
        telemetry.acknowledged,
        telemetry.submitted,
    ));
    lines.push(format!(
        "ended      {} done, {} faulted ({})",
        telemetry.done,
        telemetry.faulted,
        rate(|rates| rates.faulted)
    ));
    lines.push(match &telemetry.latency {
        None => "latency    -".to_owned(),
        Some(latency) => format!(
            "latency    p50 {}, p99 {}, p99.9 {}, max {}, since the start",
            time(latency.p50),
            time(latency.p99),
            time(latency.p999),
            time(latency.max)
        ),
    });
    if let Some(loss) = &published.last_loss {
        lines.push(format!("last loss  {}", clean(loss)));
    }
    if let Some(change) = &telemetry.last_change {
        lines.push(format!(
            "handlers   changed {} times, the last with a pause of {}",
            change.number,
            time(change.pause)
        ));
    }
    let opcodes = telemetry.opcodes.iter().enumerate().filter(|(_, opcode)| opcode.items != 0);
    let opcodes = opcodes.map(|(place, opcode)| {
        let rate = rates.as_ref().and_then(|rates| rates.opcodes.get(place)).copied();
        let name = format!("{:#x} {}", opcode.opcode.wire(), clean(&opcode.name));
        (rate, opcode.items, format!("{name:<40} {:>12} {:>14}", per_second(rate), opcode.items))
    });
    table(&mut lines, format!("{:<40} {:>12} {:>14}", "opcode", "rate", "items"), opcodes.collect());
    let tenants = telemetry.tenants.iter().enumerate().filter(|(_, tenant)| tenant.used != 0);
    let tenants = tenants.map(|(place, tenant)| {
        let rate = rates.as_ref().and_then(|rates| rates.tenants.get(place)).copied();
        let (used, done, faulted) = (tenant.used, tenant.done, tenant.faulted);
        let row =
            format!("{:<24} {:>12} {used:>14} {done:>14} {faulted:>8}", tenant.tenant, per_second(rate));
        (rate, used, row)
    });
    let head = format!("{:<24} {:>12} {:>14} {:>14} {:>8}", "tenant", "rate", "items", "done", "faulted");
    table(&mut lines, head, tenants.collect());
    lines
}

/// Rows below a head, the busiest first; nothing if there are none.
fn table(lines: &mut Vec<String>, head: String, mut rows: Vec<(Option<f64>, u64, String)>) {
    if rows.is_empty() {
        return;
    }
    let busy = |row: &(Option<f64>, u64, String)| row.0.unwrap_or(0.0);
    rows.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then(b.1.cmp(&a.1)));
    lines.push(String::new());
    lines.push(head);
    lines.extend(rows.into_iter().map(|(_, _, row)| row));
}

/// One line for each session.
pub(super) fn list(watch: &Watch, selected: usize) -> Vec<String> {
    let head = format!(
        "  {:>7} {:>3}  {:<16} {:<5} {:>11} {:>6} {:>8} {:>8} {:>4}",
        "pid", "", "name", "on", "items", "ring", "p50", "p99", "lost"
    );
    let row = |(place, session): (usize, &Session)| {
        let Session { published, rates, .. } = session;
        let telemetry = &published.telemetry;
        let (p50, p99) = match &telemetry.latency {
            None => ("-".to_owned(), "-".to_owned()),
            Some(latency) => (time(latency.p50), time(latency.p99)),
        };
        let rate = per_second(rates.as_ref().map(|rates| rates.acknowledged));
        format!(
            "{} {:>7} {:>3}  {:<16} {:<5} {rate:>11} {:>4.0} % {p50:>8} {p99:>8} {:>4}",
            if place == selected { '>' } else { ' ' },
            published.pid,
            published.session,
            clean(&published.name).chars().take(16).collect::<String>(),
            clean(&published.backend),
            telemetry.fill() * 100.0,
            telemetry.recoveries,
        )
    };
    std::iter::once(head).chain(watch.sessions().enumerate().map(row)).collect()
}

/// Without characters that a terminal would act upon.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-/s".to_owned(),
        Some(rate) if rate >= 1e6 => format!("{:.2} M/s", rate / 1e6),
        Some(rate) if rate >= 1e4 => format!("{:.1} k/s", rate / 1e3),
        Some(rate) => format!("{rate:.0}/s"),
    }
}

fn time(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        micros if micros >= 1e6 => format!("{:.1} s", micros / 1e6),
        micros if micros >= 1e3 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{micros:.1} us"),
    }
}

#[cfg(test)]
mod tests {
    use vyre::runtime::telemetry::{Occupancy, RingUsage};

    use super::super::watch::tests::published;
    use super::*;

    #[test]
    fn a_session_is_lines_without_control_characters() {
        let mut watch = Watch::default();
        watch.update([published(1, 1000, 100)].iter());
        let silent = session(watch.get((7, 1)).expect("there")).join("\n");
        assert!(silent.contains("-/s acknowledged") && silent.contains("SILENT"), "{silent}");
        watch.update([published(1, 2000, 50_100)].iter());
        let text = session(watch.get((7, 1)).expect("there")).join("\n");
        for expected in [
            "a [2Jb  pid 7 session 1  cpu: threads, in worker 9",
            "runs, for 2.0 s; generation 2, 3 starts, 2 recoveries",
            "[##......................] 6 % of 64: 1 published, 2 claimed, 0 waiting, 1 complete",
            "50.0 k/s acknowledged, 50.0 k/s submitted; 50100 and 50104 in all",
            "50099 done, 1 faulted (0/s)",
            "p50 1.2 us, p99 250.0 us, p99.9 3.0 ms, max 4.0 s",
            "last loss  signal 9 at once",
            "handlers   changed 3 times, the last with a pause of 2.5 ms",
            "0x40 add_one",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("rings  "), "{text}");
        let mut several = published(2, 1000, 100);
        let occupancy = Occupancy { published: 3, claimed: 1, ..Occupancy::default() };
        several.telemetry.rings = vec![
            RingUsage { capacity: 64, ..RingUsage::default() },
            RingUsage { capacity: 64, occupancy, ..RingUsage::default() },
        ];
        watch.update([several].iter());
        let rings = session(watch.get((7, 2)).expect("there")).join("\n");
        assert!(rings.contains("rings      0, 4 in use of 64 each, the most urgent first"), "{rings}");
        watch.update([published(1, 2000, 50_100)].iter());
        assert!(!text.contains("NOP") && !text.contains('\u{1b}'), "{text}");
        assert!(list(&watch, 0)[1].starts_with(">       7   1  a [2Jb "), "{:?}", list(&watch, 0));
    }
}
