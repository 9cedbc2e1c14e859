//! What a worker may still ask of the kernel once its backend is open.
//!
//! A worker needs files, libraries and devices to open its backend, and little afterwards. [`enter`] takes the rest
//! away, from all threads and for good. It is the last line behind the closed environment and descriptors that
//! every worker has: what a worker cannot reach by a descriptor it holds, it cannot reach at all.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

/// How much a worker gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sandbox {
    /// Nothing more than what every worker is started without. For backends whose drivers need the kernel.
    None,
    /// Everything but memory, threads, clocks, and the descriptors it holds: no opening of files, no new sockets,
    /// no execution, no executable memory, no signals to others. For backends that only compute.
    Strict,
}

/// A sandbox that could not be entered. The worker must not serve then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel refused the filter.
    #[error(
        "the kernel refused the filter of {what}; it needs CONFIG_SECCOMP_FILTER, and a container that allows seccomp; without it, choose Sandbox::None"
    )]
    Refused {
        /// Which of the filters.
        what: &'static str,
        /// Its answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The handler that says which call was refused could not be installed.
    #[error("a handler for SIGSYS could not be installed; leave that signal to the sandbox")]
    Handler(#[source] io::Error),
}

/// Gives up what `sandbox` says. Later threads inherit it.
///
/// A call that is not allowed is not executed, and ends the process by SIGSYS; its number is the last line on
/// standard error, unless the thread had blocked that signal.
pub fn enter(sandbox: Sandbox) -> Result<(), SandboxError> {
    if sandbox == Sandbox::None {
        return Ok(());
    }
    settle_allocator();
    report_refusals()?;
    // Two filters, as one has a single answer for what it does not allow. The stricter answer wins, so the second
    // lets `clone3` pass to the first. Its flags lie in memory, where no filter can see them; told that the kernel
    // has no such call, libc takes `clone`.
    let first = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    install("clone3", || {
        filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, first)
    })?;
    install("allowed calls", || filter(allowed()?, SeccompAction::Trap, SeccompAction::Allow))
}

fn install(
    what: &'static str,
    program: impl FnOnce() -> Result<BpfProgram, BackendError>,
) -> Result<(), SandboxError> {
    let refused = |source: seccompiler::Error| SandboxError::Refused { what, source: Box::new(source) };
    let program = program().map_err(|error| refused(error.into()))?;
    seccompiler::apply_filter_all_threads(&program).map_err(refused)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()
}

/// Calls whose arguments do not matter.
const FREE: &[i64] = &[
    // Memory; what can make it executable is among the conditions.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // Threads.
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_clone3, // Answered by the first filter.
    libc::SYS_sched_yield,
    libc::SYS_membarrier,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Clocks and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    // Descriptors that it holds.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Its own signals.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// What a thread is created with, and what may be added; any other flag makes a process or a namespace.
const THREAD: c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
const THREAD_OPTIONS: c_int = libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_DETACHED;

const FCNTL: &[c_int] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GET_SEALS,
    libc::F_ADD_SEALS,
];

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FREE.iter().map(|call| (*call, Vec::new())).collect();
    let executable = SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, executable.clone(), 0)?]);
    }
    let beside_options = SeccompCmpOp::MaskedEq(bits(!THREAD_OPTIONS));
    rules.insert(libc::SYS_clone, vec![only(0, beside_options, THREAD)?]);
    let commands = FCNTL.iter().map(|&command| only(1, SeccompCmpOp::Eq, command));
    rules.insert(libc::SYS_fcntl, commands.collect::<Result<_, _>>()?);
    for call in [libc::SYS_getsockopt, libc::SYS_setsockopt] {
        rules.insert(call, vec![only(1, SeccompCmpOp::Eq, libc::SOL_SOCKET)?]);
    }
    let blocking = libc::c_int::try_from(libc::FIONBIO).unwrap_or(0);
    rules.insert(libc::SYS_ioctl, vec![only(1, SeccompCmpOp::Eq, blocking)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME)?]);
    // Itself, as `abort` does. And never the handler of refusals.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
    rules.insert(libc::SYS_rt_sigaction, vec![only(0, SeccompCmpOp::Ne, libc::SIGSYS)?]);
    Ok(rules)
}

/// The rule that argument `index` has this value, compared so. The arguments here are all of 32 bits: the kernel
/// ignores the upper half of the register.
fn only(index: u8, how: SeccompCmpOp, value: c_int) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, bits(value))?])
}

fn bits(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

/// Has glibc's allocator look up now what it otherwise looks up in files, and remembers, when it first needs it: how
/// many processors there are, when a ninth thread allocates, and whether memory is overcommitted, when a thread's
/// heap first becomes smaller.
fn settle_allocator() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heaps = c_int::try_from(8 * processors).unwrap_or(c_int::MAX); // As many as without this.
        // SAFETY: sets a number that the allocator reads; it may be called at any time.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
        // Blocks too small for a mapping of their own, and together more than a heap keeps when they are freed.
        let grow_and_shrink = || drop(std::hint::black_box(vec![vec![1_u8; 64 << 10]; 64]));
        // A thread that cannot be started leaves the question open, which a refusal may answer later.
        let _ = std::thread::Builder::new().spawn(grow_and_shrink).map(std::thread::JoinHandle::join);
    }
}

/// Calls to be told by name when refused: those that a backend is most likely to try.
const NAMES: &[(i64, &str)] = &[
    (libc::SYS_openat, "openat"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_tgkill, "tgkill"),
    (libc::SYS_rt_sigaction, "rt_sigaction"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open"),
];

/// Lets a refused call name itself before it ends the process.
fn report_refusals() -> Result<(), SandboxError> {
    let handler: extern "C" fn(c_int, *const Refusal, *const c_void) = on_refusal;
    // SAFETY: all zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and only makes calls that are
    // async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(SandboxError::Handler(io::Error::last_os_error())),
    }
}

/// The kernel's `siginfo` as it is filled for SIGSYS.
#[repr(C)]
struct Refusal {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: *const c_void,
    call: c_int,
    arch: u32,
}

extern "C" fn on_refusal(_: c_int, refusal: *const Refusal, _: *const c_void) {
    // SAFETY: the kernel passes the information that SA_SIGINFO asks for. A SIGSYS that is not from a filter has
    // the same size, and other things in that place.
    let call = unsafe { (*refusal).call };
    let mut digits = [0; 10];
    let name = NAMES.iter().find(|(number, _)| *number == i64::from(call)).map_or("", |(_, name)| name);
    // One line in one piece: several threads may be here.
    let mut line = [0; 80];
    let parts: [&[u8]; 5] = [
        b"\nvyre-worker: the sandbox refused system call ",
        decimal(call, &mut digits),
        b" ",
        name.as_bytes(),
        b"\n",
    ];
    let length = line.iter_mut().zip(parts.into_iter().flatten()).map(|(to, from)| *to = *from).count();
    // SAFETY: that much of the line is there; a closed descriptor is an error, which is nobody's business here.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // The signal is blocked in its own handler. One more refusal, then, and the kernel ends the process by it.
    // SAFETY: changes nothing: refused.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, 0, 0, 0) };
}

/// The number's digits, written from the end: nothing may be allocated in a signal handler.
fn decimal(number: c_int, digits: &mut [u8; 10]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut first = digits.len();
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        first = place;
        if rest == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}
