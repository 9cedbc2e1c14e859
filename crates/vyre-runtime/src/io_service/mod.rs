//! What the host does for items that ask for IO: bytes of registered file ranges into bound buffers, and back.
//!
//! An item never names a file. It names a resource that the host registered for its tenant, and a resource
//! is a range of one open file and the place in a bound buffer that mirrors it: byte n of the range belongs to byte n
//! from there on. READ moves bytes from the file to the buffer; WRITE, if the registration
//! [permits](IoResource::writable) it, moves them from the buffer to the file; FENCE answers when what was written is on
//! disk. Whatever else an item asks for (a resource of another tenant, bytes past the range) is answered with
//! an error number before anything is moved, and the item ends in [`Fault::Io`](vyre_driver::Fault::Io), that number
//! for its result. What is moved short (a file that ends early, a disk that is full) is no error: the item learns how
//! many bytes were moved.
//!
//! Requests of a session are carried out one after the other, in the order in which the device posted them. A
//! WRITE moves what the buffer holds when it is carried out, and everything that the asking item stored before is in it.
//!
//! **Once.** A WRITE is carried out at most once for each run of its item, and never after the kernel that asked was
//! replaced: see "IO queue" in docs/protocol.md.
//!
//! # Why `pread` in a thread and not io_uring
//!
//! Requests come one at a time out of a queue that the device fills, and the data goes through a host
//! buffer into the backend. Measured with files in the page cache on Linux 6.18, 2 cores, per read:
//!
//! | bytes | `pread` | io_uring, one in flight | io_uring, 32 in flight |
//! |---|---|---|---|
//! | 4 KiB | 0.47 us | 0.59 us | 0.46 us |
//! | 16 KiB | 0.93 us | 1.09 us | 0.99 us |
//! | 64 KiB | 3.60 us | 3.79 us | 4.84 us |
//!
//! A round trip through the ring costs microseconds by itself, so io_uring could save nothing that an item
//! would notice, and it would bring an `unsafe` interface and a kernel feature that containers often deny.
//!
//! For writes it is worse (`pwrite` into a file of 64 MiB on ext4, in the page cache, same machine under load, two runs):
//!
//! | bytes | `pwrite` | io_uring, one in flight | io_uring, 32 in flight |
//! |---|---|---|---|
//! | 4 KiB | 2.9, 3.6 us | 13.6, 12.7 us | 8.3, 8.0 us |
//! | 16 KiB | 4.5, 4.2 us | 8.9, 16.6 us | 7.9, 9.8 us |
//! | 64 KiB | 9.2, 12.5 us | 22.2, 22.1 us | 21.7, 17.2 us |
//!
//! An `fdatasync` after 4 KiB took 4 to 5 ms there, so what a FENCE costs is the disk, whichever way it is asked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::OFlags;
use vyre_driver::BufferHandle;
use vyre_driver::io_queue::{IoReply, IoRequest};
use vyre_driver::protocol::io as operation;

use crate::batch::IoQueueBuffer;
use crate::error::MegakernelError;
use crate::megakernel::Megakernel;

/// Bytes moved at a time: the size from which a larger read is no faster per byte.
const CHUNK: usize = 64 << 10;

/// Error numbers of replies, as Linux numbers them.
mod errno {
    pub(super) const NOENT: u32 = 2;
    pub(super) const IO: u32 = 5;
    pub(super) const ACCES: u32 = 13;
    pub(super) const INVAL: u32 = 22;
    pub(super) const NOSYS: u32 = 38;
}

/// The bound buffers that bytes go to and come from, by name. An error of theirs is for the item, unless it is
/// [`Refusal::Gone`].
pub(crate) trait BoundBytes {
    /// How long the buffer is, or the part of it that is bound.
    fn byte_len(&mut self, binding: &str) -> Result<u64, Refusal>;

    /// Stores bytes from a byte on.
    fn store(&mut self, binding: &str, at: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Loads bytes from a byte on and hands them to `out`. Whoever asked is not replaced in between.
    fn load(
        &mut self,
        binding: &str,
        at: u64,
        into: &mut [u8],
        out: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal>;
}

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// As an OS error number, for the item.
    Errno(u32),
    /// Nobody is left to be answered.
    Gone(MegakernelError),
}

impl Refusal {
    /// What an error of a buffer means for the request.
    pub(crate) fn of(error: MegakernelError) -> Refusal {
        if error.is_device_loss() { Refusal::Gone(error) } else { Refusal::Errno(errno::INVAL) }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Errno(error.raw_os_error().map_or(errno::IO, |number| number as u32))
    }
}

/// A range of an open file, and the place in a buffer that mirrors it.
#[derive(Debug)]
pub struct IoResource {
    file: File,
    range: Range<u64>,
    binding: String,
    byte_offset: u64,
    writable: bool,
    /// Something was written since the last FENCE.
    unsynced: AtomicBool,
}

impl IoResource {
    /// The bytes `range` of `file`, to be read into the buffer bound as `binding` from `byte_offset` on. Items may
    /// not write to it.
    pub fn new(
        file: File,
        range: Range<u64>,
        binding: impl Into<String>,
        byte_offset: u64,
    ) -> Result<IoResource, MegakernelError> {
        let binding = binding.into();
        if range.start > range.end || i64::try_from(range.end).is_err() {
            return Err(MegakernelError::InvalidBinding {
                binding,
                problem: format!("file range {}..{} of its resource is not a range", range.start, range.end),
                remedy: "give a start no greater than the end, and an end below 2^63",
            });
        }
        let unsynced = AtomicBool::new(false);
        Ok(IoResource { file, range, binding, byte_offset, writable: false, unsynced })
    }

    /// The same, and items may write to the range as well, past the end of the file too.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidBinding`] unless the file was opened for writing, and if it was for appending: the
    /// system would put every byte at its end, whatever the range.
    pub fn writable(mut self) -> Result<IoResource, MegakernelError> {
        let problem = match rustix::fs::fcntl_getfl(&self.file) {
            Ok(flags) if flags.contains(OFlags::APPEND) => "its file was opened for appending".to_owned(),
            Ok(flags) if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) => {
                "its file was not opened for writing".to_owned()
            }
            Ok(_) => {
                self.writable = true;
                return Ok(self);
            }
            Err(error) => format!("its file does not say how it was opened: {error}"),
        };
        let remedy = "open the file with `File::options().read(true).write(true)`";
        Err(MegakernelError::InvalidBinding { binding: self.binding, problem, remedy })
    }

    /// The name of the buffer that mirrors it.
    pub fn binding(&self) -> &str {
        &self.binding
    }

    /// How many bytes a request is about, and where they are in the buffer.
    fn place(&self, request: &IoRequest, bytes: &mut dyn BoundBytes) -> Result<(u64, u64), Refusal> {
        let available = self.range.end - self.range.start;
        let wanted = match (available.checked_sub(request.offset), u64::from(request.bytes)) {
            (Some(rest), 0) => rest,
            (Some(rest), bytes) if bytes <= rest => bytes,
            _ => return Err(Refusal::Errno(errno::INVAL)),
        };
        let at = self.byte_offset.checked_add(request.offset);
        let end = at.and_then(|at| at.checked_add(wanted));
        let fits = match end {
            Some(end) => end <= bytes.byte_len(&self.binding)?,
            None => false,
        };
        // A reply counts bytes in one word.
        match at.filter(|_| fits && u32::try_from(wanted).is_ok()) {
            Some(at) => Ok((wanted, at)),
            None => Err(Refusal::Errno(errno::INVAL)),
        }
    }

    /// Puts what was written on disk, if anything was since the last time.
    fn sync(&self) -> Result<(), Refusal> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| {
            self.unsynced.store(true, Ordering::Release);
            error.into()
        })
    }
}

/// The resources that items may ask for, by tenant and id.
#[derive(Debug, Default)]
pub struct IoResources {
    entries: RwLock<HashMap<(u16, u32), Arc<IoResource>>>,
}

impl IoResources {
    /// Registers a resource, or replaces the one registered before. A request being served keeps the old
    /// one open until it is answered. A FENCE knows only what is registered: to have on disk what was written
    /// through a resource, have it fenced before it is replaced or taken back.
    pub fn register(&self, tenant: u16, id: u32, resource: IoResource) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert((tenant, id), Arc::new(resource));
    }

    /// Takes a resource back; later requests for it fail. Whether there was one.
    pub fn unregister(&self, tenant: u16, id: u32) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&(tenant, id)).is_some()
    }

    /// Serves one request. Its offset counts from the start of the resource's range; 0 bytes stand for
    /// everything from there on, and 0 in the place of the handle beside the resource's for the buffer that mirrors
    /// it, the only one there is.
    ///
    /// An error means that whoever asked is gone, and nobody is left to be answered.
    pub(crate) fn serve(
        &self,
        request: &IoRequest,
        bytes: &mut dyn BoundBytes,
    ) -> Result<IoReply, MegakernelError> {
        match self.try_serve(request, bytes) {
            Ok(bytes) => Ok(IoReply::Done { bytes }),
            Err(Refusal::Gone(error)) => Err(error),
            Err(Refusal::Errno(errno)) => {
                tracing::warn!(?request, errno, "an IO request failed");
                Ok(IoReply::Failed { errno })
            }
        }
    }

    fn try_serve(&self, request: &IoRequest, bytes: &mut dyn BoundBytes) -> Result<u32, Refusal> {
        let (id, other) = match request.operation {
            operation::READ => (request.source, request.destination),
            operation::WRITE | operation::FENCE => (request.destination, request.source),
            _ => return Err(Refusal::Errno(errno::NOSYS)),
        };
        if other != 0 {
            return Err(Refusal::Errno(errno::INVAL));
        }
        if request.operation == operation::FENCE {
            return self.fence(request.tenant, id).map(|()| 0);
        }
        let resource = self.find(request.tenant, id)?;
        if request.operation == operation::WRITE && !resource.writable {
            return Err(Refusal::Errno(errno::ACCES));
        }
        let (wanted, at) = resource.place(request, bytes)?;
        let from = resource.range.start + request.offset;
        match request.operation {
            operation::READ => read(&resource, from, wanted, at, bytes),
            _ => write(&resource, from, wanted, at, bytes),
        }
    }

    fn find(&self, tenant: u16, id: u32) -> Result<Arc<IoResource>, Refusal> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&(tenant, id)).cloned().ok_or(Refusal::Errno(errno::NOENT))
    }

    /// Puts what a tenant has written through one resource on disk, or through all of them.
    fn fence(&self, tenant: u16, id: u32) -> Result<(), Refusal> {
        if id != operation::ALL {
            return self.find(tenant, id)?.sync();
        }
        let of_tenant: Vec<_> = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let own = entries.iter().filter(|((owner, _), _)| *owner == tenant);
            own.map(|(_, resource)| Arc::clone(resource)).collect()
        };
        // All of them, whatever one answers.
        of_tenant.iter().map(|resource| resource.sync()).fold(Ok(()), Result::and)
    }
}

/// A megakernel's own buffers.
struct OwnBuffers<'m>(&'m Megakernel);

impl OwnBuffers<'_> {
    fn place(&self, binding: &str, at: u64, bytes: usize) -> Result<(BufferHandle, u64), Refusal> {
        let bound = self.0.buffer(binding).ok_or(Refusal::Errno(errno::INVAL))?;
        let end = at.checked_add(bytes as u64).filter(|end| *end <= bound.byte_len);
        let at = end.and(bound.byte_offset.checked_add(at)).ok_or(Refusal::Errno(errno::INVAL))?;
        Ok((bound.buffer, at))
    }
}

impl BoundBytes for OwnBuffers<'_> {
    fn byte_len(&mut self, binding: &str) -> Result<u64, Refusal> {
        self.0.buffer(binding).map(|bound| bound.byte_len).ok_or(Refusal::Errno(errno::INVAL))
    }

    fn store(&mut self, binding: &str, at: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let (buffer, at) = self.place(binding, at, bytes.len())?;
        let written = self.0.backend().write_buffer(buffer, at, bytes);
        written.map_err(|error| Refusal::of(MegakernelError::backend("store what was read")(error)))
    }

    fn load(
        &mut self,
        binding: &str,
        at: u64,
        into: &mut [u8],
        out: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let (buffer, at) = self.place(binding, at, into.len())?;
        let read = self.0.backend().read_buffer(buffer, at, into);
        read.map_err(|error| Refusal::of(MegakernelError::backend("load what is to be written")(error)))?;
        out(into);
        Ok(())
    }
}

impl Megakernel {
    /// Serves the requests that a batch has left in its IO queue, between these resources and the megakernel's
    /// buffers; the next dispatch of the batch completes their items. A FENCE is served after every READ and WRITE
    /// of the queue. Returns how many were served.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Stale`] if one of them is a WRITE and the device that asked is lost, with what was to
    /// be written; nothing is served then. [`MegakernelError::Backend`] if it is lost meanwhile. What cannot be read
    /// or written is no error: its item faults.
    pub fn serve_io(
        &self,
        resources: &IoResources,
        queue: &mut IoQueueBuffer,
    ) -> Result<usize, MegakernelError> {
        let mut requests: Vec<_> = queue.requests().collect();
        if requests.iter().any(|(_, request)| request.operation == operation::WRITE) {
            queue.check_asked_in(self.generation())?;
        }
        requests.sort_by_key(|(_, request)| request.operation == operation::FENCE);
        for (place, request) in &requests {
            let reply = resources.serve(request, &mut OwnBuffers(self));
            queue.reply(*place, reply?)?;
        }
        Ok(requests.len())
    }
}

/// Moves bytes from a file to a buffer, until there are as many as wanted or the file ends.
fn read(
    resource: &IoResource,
    from: u64,
    wanted: u64,
    at: u64,
    bytes: &mut dyn BoundBytes,
) -> Result<u32, Refusal> {
    let mut buffer = vec![0; CHUNK.min(wanted as usize)];
    let mut done = 0;
    while done < wanted {
        let room = buffer.len().min((wanted - done) as usize);
        let Some(chunk) = buffer.get_mut(..room) else { break };
        let got = match resource.file.read_at(chunk, from + done) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(chunk) = chunk.get(..got) else { break };
        bytes.store(&resource.binding, at + done, chunk)?;
        done += got as u64;
    }
    Ok(done as u32)
}

/// Moves bytes from a buffer to a file, until all are there or the system takes no more. What it refuses behind bytes
/// that it took makes the write a short one.
fn write(
    resource: &IoResource,
    from: u64,
    wanted: u64,
    at: u64,
    bytes: &mut dyn BoundBytes,
) -> Result<u32, Refusal> {
    let mut buffer = vec![0; CHUNK.min(wanted as usize)];
    let mut done = 0;
    resource.unsynced.store(true, Ordering::Release);
    while done < wanted {
        let room = buffer.len().min((wanted - done) as usize);
        let Some(chunk) = buffer.get_mut(..room) else { break };
        let mut put = Ok(0);
        bytes.load(&resource.binding, at + done, chunk, &mut |chunk| {
            put = resource.file.write_at(chunk, from + done);
        })?;
        match put {
            Ok(0) => break,
            Ok(put) => done += put as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done as u32)
}

#[cfg(test)]
mod tests;
