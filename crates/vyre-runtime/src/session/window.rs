//! Windows in a session: groups of items submitted together and awaited by class.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vyre_driver::ring::Completion;

use super::shared::{Shared, lock, ring_error};
use crate::descriptor::{Publish, WindowClass, WindowDescriptor};
use crate::error::MegakernelError;

/// What became of a window when it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmittedWindow {
    /// The window's id.
    pub window_id: u32,
    /// Required items submitted: all of them.
    pub required: u32,
    /// Lookahead items submitted.
    pub lookahead: u32,
    /// Lookahead items cancelled because the ring had no room for them.
    pub cancelled: u32,
}

/// The windows of a session that somebody has yet to wait for.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: Mutex<HashMap<u32, Open>>,
}

/// One window. A class is absent while somebody waits for it, and once it was waited for or cancelled.
#[derive(Debug)]
struct Open {
    required: Option<Pending>,
    lookahead: Option<Pending>,
}

/// The items of one class of a window.
#[derive(Debug)]
struct Pending {
    next: u64,
    left: u64,
    /// Of the items before `next`: what a wait that expired had taken already.
    done: Vec<Completion>,
}

impl Pending {
    const fn new(first: u64, count: usize) -> Pending {
        Pending { next: first, left: count as u64, done: Vec::new() }
    }
}

impl Open {
    fn class(&mut self, class: WindowClass) -> &mut Option<Pending> {
        match class {
            WindowClass::Required => &mut self.required,
            WindowClass::Lookahead => &mut self.lookahead,
        }
    }

    fn is_over(&self) -> bool {
        let over = |class: &Option<Pending>| class.as_ref().is_none_or(|pending| pending.left == 0);
        over(&self.required) && over(&self.lookahead)
    }
}

impl Windows {
    /// Takes the items of a class out, and strikes the window off the list if that was all.
    fn take(&self, id: u32, class: WindowClass) -> Result<Pending, MegakernelError> {
        let mut open = lock(&self.open);
        let window = open.get_mut(&id);
        let pending = window.and_then(|window| window.class(class).take());
        let pending = pending.ok_or(MegakernelError::UnknownWindow { window_id: id })?;
        if open.get(&id).is_some_and(Open::is_over) {
            open.remove(&id);
        }
        Ok(pending)
    }

    fn put_back(&self, id: u32, class: WindowClass, pending: Pending) {
        let mut open = lock(&self.open);
        let window = open.entry(id).or_insert(Open { required: None, lookahead: None });
        *window.class(class) = Some(pending);
    }
}

impl Shared {
    pub(super) fn submit_window(
        &self,
        window: &WindowDescriptor,
    ) -> Result<SubmittedWindow, MegakernelError> {
        let images = window.images()?;
        let required = window.required_count();
        let window_id = window.window_id();
        // Held until the window is listed, so that no other one of this id slips in.
        let mut open = lock(&self.windows.open);
        if open.contains_key(&window_id) {
            return Err(MegakernelError::MalformedDescriptor {
                what: "window",
                problem: "a window of this id is still open",
                remedy: "wait for its required and its lookahead items, or cancel those, first",
            });
        }
        let (first, submitted) = match self.publish(&images, None, true) {
            Ok(first) => (first, images.len()),
            Err(MegakernelError::RingFull { .. } | MegakernelError::BatchTooLarge { .. })
                if required < images.len() =>
            {
                let needed = images.get(..required).unwrap_or_default();
                (self.publish(needed, None, true)?, required)
            }
            Err(error) => return Err(error),
        };
        let lookahead = submitted - required;
        let window = Open {
            required: Some(Pending::new(first, required)),
            lookahead: Some(Pending::new(first.wrapping_add(required as u64), lookahead)),
        };
        open.insert(window_id, window);
        Ok(SubmittedWindow {
            window_id,
            required: required as u32,
            lookahead: lookahead as u32,
            cancelled: (images.len() - submitted) as u32,
        })
    }

    pub(super) fn wait_window(
        &self,
        id: u32,
        class: WindowClass,
        timeout: Duration,
    ) -> Result<Vec<Completion>, MegakernelError> {
        let started = Instant::now();
        let mut pending = self.windows.take(id, class)?;
        while pending.left != 0 {
            let left = timeout.saturating_sub(started.elapsed());
            match self.wait(self.ring.raw(pending.next), left) {
                Ok(completion) => pending.done.push(completion),
                Err(error) => {
                    self.windows.put_back(id, class, pending);
                    return Err(error);
                }
            }
            pending.next = pending.next.wrapping_add(1);
            pending.left -= 1;
        }
        Ok(pending.done)
    }

    /// Gives the lookahead items of a window up; returns how many.
    pub(super) fn cancel_lookahead(&self, id: u32) -> Result<u32, MegakernelError> {
        let pending = self.windows.take(id, WindowClass::Lookahead)?;
        for position in pending.next..pending.next.wrapping_add(pending.left) {
            let forgotten = self.ring.forget_raw(self.ring.raw(position));
            forgotten.map_err(ring_error("cancel a window's item"))?;
            self.note_detached();
        }
        Ok(pending.left as u32)
    }
}
