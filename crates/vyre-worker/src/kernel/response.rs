use std::time::Instant;

use super::message::REFUSED_RESPONSE_TOO_LARGE;
use crate::wire::handshake::Refusal;

/// Where a kernel leaves its response, and until when.
#[derive(Debug)]
pub struct Response<'a> {
    room: Room<'a>,
    used: usize,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Room<'a> {
    /// A range of the arena.
    Fixed(&'a mut [u8]),
    /// This process's own memory.
    Growing(Vec<u8>),
}

impl<'a> Response<'a> {
    pub(super) fn in_place(room: &'a mut [u8], deadline: Option<Instant>) -> Response<'a> {
        Response { room: Room::Fixed(room), used: 0, deadline }
    }

    pub(super) fn growing() -> Response<'static> {
        Response { room: Room::Growing(Vec::new()), used: 0, deadline: None }
    }

    /// The next `bytes` bytes of the response, to write into. They hold anything. Refused if the caller gave no
    /// room for so many; return that refusal, and the caller learns it.
    pub fn reserve(&mut self, bytes: usize) -> Result<&mut [u8], Refusal> {
        let end = self.used.saturating_add(bytes);
        let room = match &mut self.room {
            Room::Fixed(room) => &mut **room,
            Room::Growing(own) => {
                own.resize(end, 0);
                own.as_mut_slice()
            }
        };
        let got = room.len();
        let Some(reserved) = room.get_mut(self.used..end) else {
            let text = format!("response of {end} bytes; the caller gave room for {got}: give more");
            return Err(Refusal { code: REFUSED_RESPONSE_TOO_LARGE, text });
        };
        self.used = end;
        Ok(reserved)
    }

    /// Appends bytes to the response.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.reserve(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// When the caller stops waiting, and ends this process.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes of the response so far.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether the response has no bytes yet.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let room = match &self.room {
            Room::Fixed(room) => room,
            Room::Growing(own) => own.as_slice(),
        };
        room.get(..self.used).unwrap_or_default()
    }
}
