//! The IO queue of a batch: what items ask of the host, and its answers.

use vyre_driver::Generation;
use vyre_driver::io_queue::{IoReply, IoRequest};
use vyre_driver::protocol::io;

use super::ring::LAP;
use super::{set_word, word};
use crate::error::MegakernelError;

/// Requests that can wait at a time. An item that may ask and finds no room runs in the next dispatch.
pub const IO_ENTRIES: usize = 64;
/// Words of a request.
pub(super) const REQUEST_WORDS: usize = 8;
/// Words of a reply.
pub(super) const REPLY_WORDS: usize = 4;
/// First word of the replies.
pub(super) const REPLIES: usize = IO_ENTRIES * REQUEST_WORDS;
/// Words of the queue.
pub(super) const IO_WORDS: usize = REPLIES + IO_ENTRIES * REPLY_WORDS;

/// The bytes of a batch's IO queue.
#[derive(Clone, Debug)]
pub struct IoQueueBuffer {
    pub(super) bytes: Vec<u8>,
    /// Where the requests come from, unless they came as bytes.
    pub(super) asked_in: Option<Generation>,
}

/// Their bytes are compared.
impl PartialEq for IoQueueBuffer {
    fn eq(&self, other: &IoQueueBuffer) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for IoQueueBuffer {}

impl Default for IoQueueBuffer {
    /// No requests.
    fn default() -> IoQueueBuffer {
        IoQueueBuffer { bytes: vec![0; IO_WORDS * 4], asked_in: None }
    }
}

impl IoQueueBuffer {
    /// Takes bytes. They do not say which incarnation of the device has left them: do not have WRITEs served that
    /// were asked for before a loss, whose bytes went with it.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] unless they are exactly as many.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<IoQueueBuffer, MegakernelError> {
        if bytes.len() != IO_WORDS * 4 {
            return Err(MegakernelError::MalformedBuffer {
                buffer: "IO queue",
                got: format!("{} bytes", bytes.len()),
                expected: format!("{} bytes", IO_WORDS * 4),
                remedy: "leave it out for an empty one",
            });
        }
        Ok(IoQueueBuffer { bytes, asked_in: None })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The requests that have no reply yet, each with its place.
    pub fn requests(&self) -> impl Iterator<Item = (usize, IoRequest)> {
        (0..IO_ENTRIES)
            .filter(|&place| !self.is_answered(place))
            .filter_map(|place| Some((place, self.request(place)?)))
    }

    /// The request at a place, if there is one.
    pub fn request(&self, place: usize) -> Option<IoRequest> {
        if place >= IO_ENTRIES {
            return None;
        }
        let field = |field| word(&self.bytes, place * REQUEST_WORDS + field);
        let tag = field(3);
        if tag & 0xFFFF_0000 != LAP || field(7) != LAP {
            return None;
        }
        Some(IoRequest {
            operation: field(0),
            tenant: tag as u16,
            source: field(1),
            destination: field(2),
            offset: u64::from(field(5)) << 32 | u64::from(field(4)),
            bytes: field(6),
        })
    }

    /// Answers the request at a place; the next dispatch completes its item.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] if there is no request, or if it is answered.
    pub fn reply(&mut self, place: usize, reply: IoReply) -> Result<(), MegakernelError> {
        if self.request(place).is_none() || self.is_answered(place) {
            return Err(MegakernelError::MalformedBuffer {
                buffer: "IO queue",
                got: format!("a reply for place {place}"),
                expected: "a place whose request has no reply".to_owned(),
                remedy: "answer the places of `requests`, once each",
            });
        }
        let (bytes, error, status) = match reply {
            IoReply::Done { bytes } => (bytes, 0, io::OK),
            IoReply::Failed { errno } => (0, errno, io::ERROR),
        };
        let at = REPLIES + place * REPLY_WORDS;
        for (field, value) in [bytes, error, 0, LAP | status].into_iter().enumerate() {
            set_word(&mut self.bytes, at + field, value);
        }
        Ok(())
    }

    /// Refuses requests of another incarnation of the device than `current`.
    pub(crate) fn check_asked_in(&self, current: Generation) -> Result<(), MegakernelError> {
        match self.asked_in {
            Some(generation) if generation != current => Err(MegakernelError::Stale {
                what: "a WRITE of the batch's IO queue",
                generation,
                current,
                remedy: "what it was to write is lost: run the batch again from its first bytes",
            }),
            _ => Ok(()),
        }
    }

    fn is_answered(&self, place: usize) -> bool {
        word(&self.bytes, REPLIES + place * REPLY_WORDS + 3) != 0
    }
}
