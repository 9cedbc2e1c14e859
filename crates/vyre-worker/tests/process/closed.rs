//! A child has what it was given, and nothing else.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use libtest_mimic::Failed;
use rustix::fs::{MemfdFlags, memfd_create};
use vyre_worker::process::{Exit, Launch, Process};

use super::{Named, Outcome, PATIENCE, role};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("descriptors_are_closed_but_for_those_mapped", descriptors),
        ("descriptors_may_trade_places", crossed),
        ("the_environment_is_closed", environment),
        ("limits_and_signals_are_not_inherited", inheritance),
        ("it_is_listed_under_its_parents_name", name),
    ]
}

fn output_of(launch: Launch) -> Result<String, Failed> {
    let process = Process::spawn(launch.capture_stdout(1 << 16))?;
    let death = process.wait(PATIENCE).ok_or("it lives")?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(String::from_utf8(process.stdout())?)
}

fn descriptors_of(launch: Launch) -> Result<BTreeMap<i32, String>, Failed> {
    let mut listed = BTreeMap::new();
    for line in output_of(launch)?.lines() {
        let (number, target) = line.split_once(' ').ok_or("an odd line")?;
        listed.insert(number.parse()?, target.to_owned());
    }
    Ok(listed)
}

fn descriptors() -> Outcome {
    // One that is inherited unless somebody sees to it.
    let leaky = std::fs::File::open("/proc/self/cmdline")?;
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty())?;
    let given = OwnedFd::from(std::fs::File::open("/proc/version")?);
    let number = leaky.as_raw_fd() + 10;
    let listed = descriptors_of(role("descriptors").fd(number, given))?;
    assert_eq!(listed[&0], "/dev/null");
    assert!(listed[&1].starts_with("pipe:") && listed[&2].starts_with("pipe:") && listed[&1] != listed[&2]);
    assert_eq!(listed[&number], "/proc/version");
    assert_eq!(listed.keys().copied().collect::<Vec<_>>(), [0, 1, 2, number]);
    Ok(())
}

fn crossed() -> Outcome {
    let a = OwnedFd::from(std::fs::File::open("/proc/version")?);
    let b = OwnedFd::from(std::fs::File::open("/proc/uptime")?);
    let (at_a, at_b) = (a.as_raw_fd(), b.as_raw_fd());
    let listed = descriptors_of(role("descriptors").fd(at_b, a).fd(at_a, b))?;
    assert_eq!((listed[&at_a].as_str(), listed[&at_b].as_str()), ("/proc/uptime", "/proc/version"));
    // At the lowest numbers, which the pipes of a launch would like to have too.
    let lowest = (3..10).map(|target| (target, OwnedFd::from(std::fs::File::open("/proc/version").unwrap())));
    let launch = lowest.fold(role("descriptors"), |launch, (target, fd)| launch.fd(target, fd));
    let listed = descriptors_of(launch)?;
    assert!((3..10).all(|target| listed[&target] == "/proc/version"), "{listed:?}");
    assert_eq!(listed.len(), 10);
    // Where the copies that are made on the way would be put if they were not kept away, and the last one first.
    let files: Vec<OwnedFd> = (0..40)
        .map(|file: i32| memfd_create(file.to_string().as_str(), MemfdFlags::CLOEXEC))
        .collect::<Result<_, _>>()?;
    let above = files.iter().map(AsRawFd::as_raw_fd).max().ok_or("no files")? + 1;
    let targets = (above..above + 40).rev();
    let given = targets.clone().zip(files);
    let listed = descriptors_of(given.fold(role("descriptors"), |launch, (at, file)| launch.fd(at, file)))?;
    for (file, target) in targets.enumerate() {
        assert_eq!(listed[&target], format!("/memfd:{file} (deleted)"), "{listed:?}");
    }
    Ok(())
}

fn environment() -> Outcome {
    // Through a process in between, whose environment is known.
    let launch =
        role("environment").env("SECRET", "s").env("HSA_X", "1").env("HSA_X", "2").env("LC_ALL", "C");
    let inner = output_of(launch)?;
    let own: Vec<_> = inner.lines().filter(|line| !is_inherited_here(line)).collect();
    assert_eq!(own, ["SECRET=s", "HSA_X=2", "LC_ALL=C"]);
    let through =
        output_of(role("environment-of-a-child").env("SECRET", "s").env("HSA_X", "1").env("LC_ALL", "C"))?;
    assert!(!through.contains("SECRET"), "{through}");
    assert!(through.contains("HSA_X=1\n") && through.contains("LC_ALL=C\n"), "{through}");
    Ok(())
}

/// What this test's own surroundings contribute.
fn is_inherited_here(line: &str) -> bool {
    std::env::vars().any(|(name, value)| line == format!("{name}={value}"))
}

fn inheritance() -> Outcome {
    let text = output_of(role("inheritance"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).ok_or_else(|| Failed::from(format!("no {name} in {text}")))
    };
    assert_eq!(field("SigIgn:")?, "0000000000000000");
    assert_eq!(field("SigBlk:")?, "0000000000000000");
    assert_eq!(field("NoNewPrivs:")?, "1");
    let core = field("Max core file size")?.split_whitespace().next();
    assert!(matches!(core, Some("0" | "1")), "{core:?} bytes of core dump");
    // pid (comm) state parent group session
    let (_, stat) = text.split_once("(cat) ").ok_or("no stat")?;
    assert_eq!(stat.split(' ').nth(3), Some(pid_of_stat(&text)?), "not in a session of its own");
    Ok(())
}

/// `cat`'s own number, as the first field of its line in `stat`.
fn pid_of_stat(text: &str) -> Result<&str, Failed> {
    let line = text.lines().find(|line| line.contains("(cat) ")).ok_or("no stat")?;
    Ok(line.split(' ').next().ok_or("an odd line")?)
}

fn name() -> Outcome {
    let process = super::waiting_child()?;
    let listed = std::fs::read(format!("/proc/{}/cmdline", process.pid()))?;
    let expected = std::env::args().next().unwrap_or_default() + "\0--role\0wait\0";
    assert_eq!(String::from_utf8_lossy(&listed), expected);
    Ok(())
}
