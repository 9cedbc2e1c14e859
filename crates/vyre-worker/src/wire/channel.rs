use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::error::{Malformed, WireError};
use super::frame::{Fds, Frame, FrameHeader, HEADER_BYTES, MAX_FDS, MAX_PAYLOAD};

/// How long a receive sleeps in one system call. A deadline that is further away costs no call of its own; a
/// nearer one is slept towards exactly.
const TICK: Duration = Duration::from_millis(100);

/// How long a receiver that has a deadline looks again and again before it sleeps: somewhat more than an idle
/// worker takes to answer. To be woken costs as much again; a receiver without a deadline waits for the next request,
/// whenever that comes, and sleeps at once.
const SPIN: Duration = Duration::from_micros(15);

/// Room for exactly [`MAX_FDS`]: the system cuts off more, and says so.
const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// One end of a connected AF_UNIX SOCK_SEQPACKET pair.
///
/// Any number of threads may send. Frames go to whichever thread receives, so one at a time should.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Whether the socket's receive time-out is [`TICK`]. Set once a deadline is first given, never cleared.
    ticking: AtomicBool,
    /// Asked for when the channel is made: in a sandbox nothing may be opened to find out.
    may_spin: bool,
}

impl Channel {
    /// Two connected ends, both closed on exec.
    pub fn pair() -> Result<(Channel, Channel), WireError> {
        let (left, right) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| WireError::os("socketpair", errno))?;
        Ok((Channel::over(left), Channel::over(right)))
    }

    /// An end that came from elsewhere. Refused unless it is such a socket; made blocking, and closed on exec.
    pub fn from_fd(fd: OwnedFd) -> Result<Channel, WireError> {
        let kind = socket_type(&fd).and_then(|kind| Ok((socket_domain(&fd)?, kind)));
        match kind {
            Ok((AddressFamily::UNIX, SocketType::SEQPACKET)) => {}
            Ok((domain, kind)) => {
                let got = format!("a socket of family {} and type {}", domain.as_raw(), kind.as_raw());
                return Err(WireError::NotAChannel { got });
            }
            Err(errno) => {
                return Err(WireError::NotAChannel { got: format!("not a socket ({errno})") });
            }
        }
        rustix::io::ioctl_fionbio(&fd, false).map_err(|errno| WireError::os("ioctl(FIONBIO)", errno))?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
            .map_err(|errno| WireError::os("fcntl(F_SETFD)", errno))?;
        Ok(Channel::over(fd))
    }

    fn over(socket: OwnedFd) -> Channel {
        Channel { socket, ticking: AtomicBool::new(false), may_spin: may_spin() }
    }

    /// The socket alone.
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// The socket, to poll it or to hand it on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends one frame, whole. Waits only while the other side leaves so much unread that the socket is full;
    /// no deadline means for as long as that lasts.
    pub fn send(
        &self,
        kind: u16,
        request: u64,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> Result<(), WireError> {
        at_most("bytes", payload.len(), MAX_PAYLOAD)?;
        at_most("descriptors", fds.len(), MAX_FDS)?;
        let header =
            FrameHeader { kind, payload: payload.len() as u32, fds: fds.len() as u32, request }.encode();
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        loop {
            let mut space = [MaybeUninit::uninit(); ANCILLARY];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            match sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until, "for room to send a frame")?,
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(WireError::Closed),
                Err(errno) => return Err(WireError::os("sendmsg", errno)),
            }
        }
    }

    /// The next frame. No deadline means to wait for as long as the other side lives.
    ///
    /// After [`WireError::Malformed`] the packet is gone and the next one is whole; what its sender is worth is
    /// for the caller to decide.
    pub fn receive(&self, until: Option<Instant>) -> Result<Frame, WireError> {
        let mut scratch = Scratch::take();
        let mut spin = until.filter(|_| self.may_spin).map(|until| until.min(Instant::now() + SPIN));
        loop {
            if spin.is_some_and(|end| Instant::now() < end) {
                match self.receive_once(&mut scratch.0, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
                    Err(error) if is_not_yet(&error) => continue,
                    result => return result,
                }
            }
            spin = None;
            let mut flags = RecvFlags::CMSG_CLOEXEC;
            if let Some(until) = until {
                if until.saturating_duration_since(Instant::now()) < TICK {
                    self.wait(PollFlags::IN, Some(until), "for a frame")?;
                    flags |= RecvFlags::DONTWAIT;
                } else if !self.ticking.load(Ordering::Relaxed) {
                    set_socket_timeout(&self.socket, Timeout::Recv, Some(TICK))
                        .map_err(|errno| WireError::os("setsockopt(SO_RCVTIMEO)", errno))?;
                    self.ticking.store(true, Ordering::Relaxed);
                }
            }
            match self.receive_once(&mut scratch.0, flags) {
                Err(error) if is_not_yet(&error) => {}
                result => return result,
            }
        }
    }

    fn receive_once(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<Frame, WireError> {
        let mut space = [MaybeUninit::uninit(); ANCILLARY];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags);
        let received = match received {
            Err(Errno::CONNRESET | Errno::NOTCONN) => return Err(WireError::Closed),
            received => received.map_err(|errno| WireError::os("recvmsg", errno))?,
        };
        // Taken before anything is refused, so that they are closed.
        let mut fds = Fds::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // Cut off, though there was room in the frame for more: this process had none.
            if fds.len() < MAX_FDS {
                return Err(WireError::os("recvmsg of descriptors", Errno::MFILE));
            }
            return Err(Malformed::Descriptors { limit: MAX_FDS as u64 }.into());
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Malformed::Oversized { limit: (HEADER_BYTES + MAX_PAYLOAD) as u64 }.into());
        }
        // An empty packet reads the same. Whoever sends one has left the protocol.
        if received.bytes == 0 {
            return Err(WireError::Closed);
        }
        let packet = buffer.get(..received.bytes).unwrap_or_default();
        let (header, payload) = FrameHeader::decode(packet, fds.len())?;
        Ok(Frame { kind: header.kind, request: header.request, payload: payload.to_vec(), fds })
    }

    /// Sleeps until the socket is ready, or closed.
    fn wait(&self, events: PollFlags, until: Option<Instant>, what: &'static str) -> Result<(), WireError> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.socket, events)], timeout.as_ref()) {
                Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
                Err(Errno::INTR) => {}
                Ok(0) => return Err(WireError::TimedOut { waited_for: what }),
                Ok(_) => return Ok(()),
                Err(errno) => return Err(WireError::os("poll", errno)),
            }
        }
    }
}

/// With one processor, whoever looks keeps the answer from being made.
fn may_spin() -> bool {
    static MAY: LazyLock<bool> =
        LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));
    *MAY
}

/// Whether there was nothing to receive.
fn is_not_yet(error: &WireError) -> bool {
    let WireError::Os { source, .. } = error else { return false };
    matches!(Errno::from_io_error(source), Some(Errno::AGAIN | Errno::INTR))
}

fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), WireError> {
    if got <= limit {
        return Ok(());
    }
    Err(WireError::TooLarge { what, got: got as u64, limit: limit as u64 })
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer that holds any frame, kept by the thread from one receive to the next.
struct Scratch(Vec<u8>);

impl Scratch {
    fn take() -> Scratch {
        let mut buffer = SCRATCH.try_with(Cell::take).unwrap_or_default();
        buffer.resize(HEADER_BYTES + MAX_PAYLOAD, 0);
        Scratch(buffer)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread that is ending keeps nothing.
        let _ = SCRATCH.try_with(|scratch| scratch.set(std::mem::take(&mut self.0)));
    }
}
