//! Standard error is drained whatever is written to it, and its end is kept.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vyre_worker::process::{Exit, Process};

use super::{Named, Outcome, PATIENCE, end_of, role};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("a_megabyte_of_stderr_at_once_wedges_nobody", at_once),
        ("a_megabyte_of_stderr_bit_by_bit_wedges_nobody", bit_by_bit),
        ("a_last_line_needs_neither_end_nor_utf8", odd_bytes),
        ("a_grandchild_ends_with_the_child", grandchild_in_group),
        ("a_grandchild_that_left_holds_nothing_up", grandchild_with_session),
        ("stdout_is_captured_up_to_a_limit", captured),
        ("stdout_goes_where_stderr_goes", joined),
        ("a_subscriber_that_panics_harms_nobody", panicking_subscriber),
        ("a_slow_subscriber_delays_no_death", slow_subscriber),
    ]
}

const MEGABYTE: usize = 1 << 20;

fn check_lines(pause: &str) -> Outcome {
    let death = end_of(role("stderr").arg(MEGABYTE.to_string()).arg(pause))?;
    assert_eq!(death.how, Exit::Code(0));
    let last = format!("line {:>58}", MEGABYTE / 64 - 1);
    assert!(death.stderr.ends_with(&last), "{}", death.stderr);
    let lines: Vec<_> = death.stderr.lines().collect();
    assert!(lines.len() > 100, "{} lines", lines.len());
    assert!(lines.iter().all(|line| line.len() == last.len()), "a line was cut: {}", lines[0]);
    assert!(death.to_string().contains(&last), "the last words are missing: {death}");
    Ok(())
}

fn at_once() -> Outcome {
    check_lines("0")
}

fn bit_by_bit() -> Outcome {
    check_lines("100")
}

fn odd_bytes() -> Outcome {
    assert_eq!(end_of(role("bytes"))?.stderr, "first\nhalf \u{FFFD}\u{FFFD} a line");
    Ok(())
}

fn grandchild(mode: &str) -> Result<Pid, libtest_mimic::Failed> {
    let death = end_of(role("leave-grandchild").arg(mode))?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    let pid = death.stderr.strip_prefix("grandchild ").ok_or("no grandchild")?.parse()?;
    Ok(Pid::from_raw(pid).ok_or("no process")?)
}

/// Whether the process is gone, or will be: a zombie is nobody's business any more.
fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
}

fn grandchild_in_group() -> Outcome {
    let pid = grandchild("group")?;
    super::until("the grandchild is gone", || is_gone(pid))
}

fn grandchild_with_session() -> Outcome {
    // That its parent's death was seen at all is the test: it holds the pipe open.
    let pid = grandchild("session")?;
    assert!(!is_gone(pid), "it had left the group, and should live");
    pidfd_send_signal(pidfd_open(pid, PidfdFlags::empty())?, Signal::KILL)?;
    Ok(())
}

fn captured() -> Outcome {
    let process = Process::spawn(role("stdout").capture_stdout(1000))?;
    let death = process.wait(PATIENCE).ok_or("wedged by its own output")?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    assert_eq!(process.stdout(), [b'x'; 1000]);
    assert_eq!(death.stderr, "");
    Ok(())
}

fn joined() -> Outcome {
    let process = Process::spawn(role("environment").env("WHERE", "in stderr"))?;
    process.wait(PATIENCE).ok_or("it lives")?;
    assert!(process.stderr_tail().contains("WHERE=in stderr"), "{}", process.stderr_tail());
    assert!(process.stdout().is_empty());
    Ok(())
}

fn panicking_subscriber() -> Outcome {
    let process = Process::spawn(role("panicking-subscriber"))?;
    let death = process.wait(Duration::from_secs(60)).ok_or("it hangs")?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(())
}

fn slow_subscriber() -> Outcome {
    let death = end_of(role("slow-subscriber"))?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(())
}
