//! Every way to end, and what it says.

use rustix::process::{Pid, Signal, kill_process};
use vyre_driver::LossCause;
use vyre_worker::process::{Exit, Process};

use super::{Named, Outcome, PATIENCE, end_of, role, waiting_child};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("an_exit_code_is_reported", exit_codes),
        ("a_crash_is_a_fault", crashes),
        ("a_kill_from_outside_convicts_nobody", kills_from_outside),
        ("a_kill_by_us_is_told_apart", kill_by_us),
        ("a_stopped_child_is_killed_and_reaped", stopped),
        ("a_dead_child_can_be_killed_again", kill_twice),
        ("a_wait_has_an_end", wait_ends),
        ("a_status_that_somebody_else_took_is_not_waited_for", ignored_children),
    ]
}

fn exit_codes() -> Outcome {
    for code in [0, 1, 3, 127, 255] {
        let death = end_of(role("exit").arg(code.to_string()))?;
        assert_eq!(death.how, Exit::Code(code));
        assert!(!death.by_us);
        assert_eq!(death.loss().cause, LossCause::Fault);
        assert!(death.loss().reason.contains(&format!("code {code}")), "{}", death.loss().reason);
    }
    Ok(())
}

fn crashes() -> Outcome {
    for (name, signal, text) in
        [("abort", libc::SIGABRT, "SIGABRT"), ("illegal-address", libc::SIGSEGV, "SIGSEGV")]
    {
        let death = end_of(role(name))?;
        assert_eq!(death.how, Exit::Signal(signal));
        let loss = death.loss();
        assert_eq!(loss.cause, LossCause::Fault);
        assert!(loss.reason.contains(text) && loss.reason.contains(name), "{}", loss.reason);
    }
    Ok(())
}

fn send(process: &Process, signal: Signal) {
    let pid = Pid::from_raw(process.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn kills_from_outside() -> Outcome {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP] {
        let process = waiting_child()?;
        send(&process, signal);
        let death = process.wait(PATIENCE).ok_or("it lives")?;
        assert_eq!(death.how, Exit::Signal(signal.as_raw()));
        assert!(!death.by_us);
        assert_eq!(death.loss().cause, LossCause::Killed);
    }
    // Not SEGV and BUS: Rust's own handlers take a sent one for a false alarm.
    for signal in [Signal::QUIT, Signal::ILL, Signal::FPE, Signal::ABORT, Signal::SYS] {
        let process = waiting_child()?;
        send(&process, signal);
        let death = process.wait(PATIENCE).ok_or("it lives")?;
        assert_eq!((death.how, death.loss().cause), (Exit::Signal(signal.as_raw()), LossCause::Fault));
    }
    Ok(())
}

fn kill_by_us() -> Outcome {
    let process = waiting_child()?;
    assert!(process.death().is_none());
    process.kill();
    let death = process.wait(PATIENCE).ok_or("it lives")?;
    assert_eq!(death.how, Exit::Signal(libc::SIGKILL));
    assert!(death.by_us);
    assert_eq!(death.loss().cause, LossCause::Killed);
    assert_eq!(process.death().map(|death| death.seen), Some(death.seen));
    Ok(())
}

fn stopped() -> Outcome {
    let process = waiting_child()?;
    send(&process, Signal::STOP);
    let path = format!("/proc/{}/stat", process.pid());
    super::until("it is stopped", || std::fs::read_to_string(&path).is_ok_and(|stat| stat.contains(") T ")))?;
    assert!(process.death().is_none(), "stopped is not dead");
    drop(process);
    assert!(std::fs::read_to_string(&path).is_err(), "still there after the drop");
    Ok(())
}

fn kill_twice() -> Outcome {
    let process = waiting_child()?;
    send(&process, Signal::TERM);
    process.wait(PATIENCE).ok_or("it lives")?;
    process.kill();
    process.kill();
    assert!(!process.death().unwrap().by_us, "killed after its death");
    Ok(())
}

fn wait_ends() -> Outcome {
    let process = waiting_child()?;
    assert!(process.wait(std::time::Duration::from_millis(1)).is_none());
    Ok(())
}

fn ignored_children() -> Outcome {
    let death = end_of(role("ignore-children"))?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(())
}
