//! Windows in a session: groups of items submitted together and awaited by class.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vyre_driver::ring::Completion;

use super::rings::ring_of;
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

/// One window. It stays listed, and its id refused, until nobody will ask for either class any more.
#[derive(Debug)]
struct Open {
    required: Class,
    lookahead: Class,
}

/// The items of one class.
#[derive(Debug)]
enum Class {
    /// Nobody waits for them.
    Waiting(Pending),
    /// Somebody does.
    Borrowed,
    /// They were waited for, or given up.
    Over,
}

/// The items of one class of a window.
#[derive(Debug)]
struct Pending {
    next: u64,
    left: u64,
    /// Of the items before `next`: what a wait that expired had taken already.
    done: Vec<Completion>,
    /// Why the last of them that is missing is.
    gone: Option<MegakernelError>,
}

impl Pending {
    const fn new(first: u64, count: usize) -> Pending {
        Pending { next: first, left: count as u64, done: Vec::new(), gone: None }
    }

    fn keys(&self) -> Range<u64> {
        self.next..self.next.wrapping_add(self.left)
    }
}

impl Class {
    fn is_over(&self) -> bool {
        match self {
            // Nobody has to wait for nothing.
            Class::Waiting(pending) => pending.left == 0,
            Class::Borrowed => false,
            Class::Over => true,
        }
    }
}

impl Open {
    fn class(&mut self, class: WindowClass) -> &mut Class {
        match class {
            WindowClass::Required => &mut self.required,
            WindowClass::Lookahead => &mut self.lookahead,
        }
    }
}

/// The items of one class, taken out by who waits for them. Whoever does gives them back.
#[derive(Debug)]
pub(super) struct Borrowed {
    id: u32,
    class: WindowClass,
    /// None once they were given back.
    pending: Option<Pending>,
}

impl Borrowed {
    /// The next item to be waited for.
    pub(super) fn next(&self) -> Option<u64> {
        self.pending.as_ref().filter(|pending| pending.left != 0).map(|pending| pending.next)
    }

    /// Notes what came of the next item. One that was reaped is missing from the list, but the others' slots
    /// must not leak.
    pub(super) fn answered(&mut self, answer: Result<Completion, MegakernelError>) {
        let Some(pending) = &mut self.pending else { return };
        match answer {
            Ok(completion) => pending.done.push(completion),
            Err(error) => pending.gone = Some(error),
        }
        pending.next = pending.next.wrapping_add(1);
        pending.left -= 1;
    }

    /// Everything was waited for.
    pub(super) fn finish(&mut self, windows: &Windows) -> Result<Vec<Completion>, MegakernelError> {
        let unknown = MegakernelError::UnknownWindow { window_id: self.id };
        let pending = self.pending.take().ok_or(unknown)?;
        windows.give_back(self.id, self.class, Class::Over);
        pending.gone.map_or(Ok(pending.done), Err)
    }

    /// Leaves the rest to another wait.
    pub(super) fn give_back(&mut self, windows: &Windows) {
        if let Some(pending) = self.pending.take() {
            windows.give_back(self.id, self.class, Class::Waiting(pending));
        }
    }
}

impl Windows {
    /// Takes the items of a class out.
    pub(super) fn borrow(&self, id: u32, class: WindowClass) -> Result<Borrowed, MegakernelError> {
        let mut open = lock(&self.open);
        let unknown = MegakernelError::UnknownWindow { window_id: id };
        let Some(window) = open.get_mut(&id) else { return Err(unknown) };
        match std::mem::replace(window.class(class), Class::Borrowed) {
            Class::Waiting(pending) => Ok(Borrowed { id, class, pending: Some(pending) }),
            Class::Borrowed => Err(MegakernelError::WindowBusy { window_id: id }),
            Class::Over => {
                *window.class(class) = Class::Over;
                Err(unknown)
            }
        }
    }

    /// Ends a borrow. A window without anything left to ask for is struck off the list.
    fn give_back(&self, id: u32, class: WindowClass, state: Class) {
        let mut open = lock(&self.open);
        if let Some(window) = open.get_mut(&id) {
            *window.class(class) = state;
            if window.required.is_over() && window.lookahead.is_over() {
                open.remove(&id);
            }
        }
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
                let published = self.publish(needed, None, true);
                (published.inspect_err(|error| self.make_way(&mut open, error))?, required)
            }
            Err(error) => {
                self.make_way(&mut open, &error);
                return Err(error);
            }
        };
        let lookahead = submitted - required;
        let window = Open {
            required: Class::Waiting(Pending::new(first, required)),
            lookahead: Class::Waiting(Pending::new(first.wrapping_add(required as u64), lookahead)),
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
        let mut items = self.windows.borrow(id, class)?;
        while let Some(position) = items.next() {
            let left = timeout.saturating_sub(started.elapsed());
            match self.wait(self.rings.raw(position), left) {
                Err(error @ MegakernelError::Deadline { .. }) => {
                    items.give_back(&self.windows);
                    return Err(error);
                }
                answer => items.answered(answer),
            }
        }
        items.finish(&self.windows)
    }

    /// Cancels the lookahead items of a window; returns how many.
    pub(super) fn cancel_lookahead(&self, id: u32) -> Result<u32, MegakernelError> {
        let mut items = self.windows.borrow(id, WindowClass::Lookahead)?;
        let given_up = items.pending.take().map_or(0, |pending| self.give_up_items(pending.keys()));
        self.windows.give_back(id, WindowClass::Lookahead, Class::Over);
        Ok(given_up)
    }

    /// Wishes that items not begin, and forgets them; returns how many there were.
    fn give_up_items(&self, keys: Range<u64>) -> u32 {
        let mut given_up = 0;
        for key in keys {
            let raw = self.rings.raw(key);
            match self
                .cancel(raw)
                .and_then(|_| self.rings.of(raw).forget_raw(raw).map_err(ring_error("forget")))
            {
                Ok(()) => {
                    given_up += 1;
                    self.note_detached();
                }
                // Reaped: it is nobody's already.
                Err(error) => tracing::debug!(%error, key, "an item of a window was not given up"),
            }
        }
        given_up
    }

    /// Cancels the lookahead items in a full ring that nobody waits for.
    #[cold]
    fn make_way(&self, open: &mut HashMap<u32, Open>, error: &MegakernelError) {
        let MegakernelError::RingFull { oldest_untaken: Some(in_the_way), .. } = error else { return };
        for lookahead in open.values_mut().map(|window| &mut window.lookahead) {
            if let Class::Waiting(pending) = lookahead
                && ring_of(pending.next) == ring_of(*in_the_way)
            {
                self.give_up_items(pending.keys());
                *lookahead = Class::Over;
            }
        }
        open.retain(|_, window| !(window.required.is_over() && window.lookahead.is_over()));
    }
}
