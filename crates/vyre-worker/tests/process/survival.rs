//! Whose end takes whom along, and what is left behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vyre_worker::process::{Exit, Process};

use super::{Named, Outcome, PATIENCE, end_of, role};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("a_child_does_not_outlive_its_parent", parent_killed),
        ("a_child_outlives_the_thread_that_asked_for_it", thread_ended),
        ("two_hundred_children_leave_nothing_behind", nothing_left),
    ]
}

fn parent_killed() -> Outcome {
    let mut parent =
        Command::new("/proc/self/exe").args(["--role", "parent"]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
    // The parent has said it and lives: the number is the child's.
    let child = pidfd_open(Pid::from_raw(line.trim().parse()?).ok_or("no process")?, PidfdFlags::empty())?;
    parent.kill()?;
    parent.wait()?;
    let limit = Timespec::try_from(PATIENCE)?;
    let ready = poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&limit))?;
    assert_eq!(ready, 1, "the child lives on");
    Ok(())
}

fn thread_ended() -> Outcome {
    let (mut ours, theirs) = UnixStream::pair()?;
    let launch = role("echo").fd(3, theirs.into());
    let process = std::thread::spawn(|| Process::spawn(launch)).join().map_err(|_| "panicked")??;
    for _ in 0..100 {
        ours.write_all(b"?")?;
        ours.read_exact(&mut [0])?;
    }
    assert!(process.death().is_none());
    drop(ours);
    assert_eq!(process.wait(PATIENCE).map(|death| death.how), Some(Exit::Code(0)));
    Ok(())
}

fn nothing_left() -> Outcome {
    // In a process of its own, where nothing else opens and starts things.
    let death = end_of(role("spawn-and-kill"))?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(())
}
