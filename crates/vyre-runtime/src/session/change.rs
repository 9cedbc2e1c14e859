//! Changing the handlers of a session that runs.
//!
//! The new item programs are built, validated and compiled, and buffers made for new bindings, while the
//! session serves. Then the kernel finishes what it has claimed and leaves, and the next one starts at the
//! oldest item without an answer, over the same ring, with the new programs: what a restart does. Everything
//! but the handlers stays: items, buffers, payloads, tenants, quotas, counters.
//!
//! Nothing is changed until the new kernel runs, as far as anybody can see: if it does not start, the old
//! programs are put back and a kernel with those is started.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vyre_driver::ResidentPipeline;

use super::buffers::{DeviceBuffers, Entry};
use super::lifecycle::Control;
use super::options::BoundBuffer;
use super::plan::check_payload_binding;
use super::shared::{Shared, lock, lock_within, ring_error};
use super::{PAYLOAD_BINDING, PersistentSession};
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::item::{HandlerTable, ItemPrograms};
use crate::opcode::SlotOpcode;
use crate::recovery::{ATTEMPTS, Built};
use crate::state::tenant_row;

/// What is to become of the handlers of a session, in order; all of it or nothing.
///
/// ```
/// use vyre_runtime::OpcodeHandler;
/// use vyre_runtime::session::HandlerUpdate;
///
/// let update = HandlerUpdate::new()
///     .replace_handler(OpcodeHandler::new(0x40, "add_two", |h| h.complete(h.arg(0) + 2)))
///     .add_handler(OpcodeHandler::new(0x41, "double", |h| h.complete(h.arg(0) * 2)))
///     .remove_handler(0x42);
/// ```
#[must_use]
#[derive(Default)]
pub struct HandlerUpdate {
    steps: Vec<Step>,
    buffers: BTreeMap<String, BoundBuffer>,
}

enum Step {
    Add(OpcodeHandler),
    Replace(OpcodeHandler),
    Remove(SlotOpcode),
}

impl HandlerUpdate {
    /// Nothing yet.
    pub fn new() -> HandlerUpdate {
        HandlerUpdate::default()
    }

    /// Adds the handler of an opcode that has none. Tenants limited to some opcodes may use it only if its opcode is
    /// among them, as that of a handler that was removed may be.
    pub fn add_handler(mut self, handler: OpcodeHandler) -> HandlerUpdate {
        self.steps.push(Step::Add(handler));
        self
    }

    /// Puts another handler in the place of one.
    pub fn replace_handler(mut self, handler: OpcodeHandler) -> HandlerUpdate {
        self.steps.push(Step::Replace(handler));
        self
    }

    /// Takes an opcode out of service. Items of it that the old kernel has not claimed end in
    /// [`Fault::UnknownOpcode`](vyre_driver::Fault::UnknownOpcode).
    pub fn remove_handler(mut self, opcode: impl Into<SlotOpcode>) -> HandlerUpdate {
        self.steps.push(Step::Remove(opcode.into()));
        self
    }

    /// Binds a name that no handler of the session has named before to a new buffer with this content.
    pub fn bind_bytes(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> HandlerUpdate {
        self.buffers.insert(name.into(), BoundBuffer::Bytes(content.into()));
        self
    }

    /// Binds such a name to a new buffer of `elements` zeros.
    pub fn bind_zeroed(mut self, name: impl Into<String>, elements: u64) -> HandlerUpdate {
        self.buffers.insert(name.into(), BoundBuffer::Zeroed(elements));
        self
    }
}

/// How a change of handlers went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HandlerChange {
    /// Which change of the session it was, from 1 on.
    pub number: u64,
    /// How long the new programs took to be built, validated and compiled, and new buffers to be made. The
    /// session served meanwhile.
    pub prepared_in: Duration,
    /// How long no kernel claimed items: from the moment the old one was told to leave until the new one ran.
    /// Zero for a session that was quiesced.
    pub pause: Duration,
    /// The part of the pause that the old kernel took to finish what it had claimed.
    pub left_in: Duration,
}

/// What the session is to turn to.
struct Next {
    programs: Arc<ItemPrograms>,
    pipeline: Arc<dyn ResidentPipeline>,
    /// Those of bindings that are new; none while the session holds them.
    buffers: DeviceBuffers,
}

impl PersistentSession {
    /// Puts another handler in the place of one, while the session runs. See
    /// [`update_handlers`](Self::update_handlers).
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use vyre_runtime::{Megakernel, OpcodeHandler, SlotDescriptor};
    /// # let megakernel = Megakernel::builder(Arc::new(vyre_cpu::CpuBackend::new()))
    /// #     .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
    /// #     .build()?;
    /// # let session = megakernel.start()?;
    /// # let second = Duration::from_secs(1);
    /// let add_two = OpcodeHandler::new(0x40, "add_two", |h| h.complete(h.arg(0) + 2));
    /// let change = session.replace_handler(add_two, second)?;
    /// let ticket = session.submit(SlotDescriptor::new(0x40).args([7]))?;
    /// assert_eq!(session.wait(ticket, second)?.result(), 9);
    /// assert_eq!(session.telemetry().last_change, Some(change));
    /// # Ok::<(), vyre_runtime::MegakernelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`update_handlers`](Self::update_handlers).
    pub fn replace_handler(
        &self,
        handler: OpcodeHandler,
        timeout: Duration,
    ) -> Result<HandlerChange, MegakernelError> {
        self.update_handlers(HandlerUpdate::new().replace_handler(handler), timeout)
    }

    /// Adds the handler of an opcode that has none, while the session runs. See
    /// [`update_handlers`](Self::update_handlers).
    ///
    /// # Errors
    ///
    /// As [`update_handlers`](Self::update_handlers).
    pub fn add_handler(
        &self,
        handler: OpcodeHandler,
        timeout: Duration,
    ) -> Result<HandlerChange, MegakernelError> {
        self.update_handlers(HandlerUpdate::new().add_handler(handler), timeout)
    }

    /// Changes the handlers while the session runs, and says how long it paused for that. Items are accepted all
    /// the time. What the old kernel has claimed ends under the old handlers; what it has not, and everything
    /// submitted after this call has returned, runs under the new ones.
    ///
    /// The new programs are compiled on the calling thread before the pause. In the pause the old kernel
    /// finishes what it has claimed and leaves, and the new one starts: `timeout` is for the former, and for
    /// another change or recovery to be over. Items, payloads, buffers, tenants, quotas and counters stay; a
    /// buffer that no handler names any more stays as well. A loss afterwards is recovered from with the new
    /// handlers, and other sessions of the megakernel keep the ones they have.
    ///
    /// # Errors
    ///
    /// After any error the handlers are what they were, and the session serves if it did before.
    ///
    /// [`MegakernelError::DuplicateOpcode`] for an added opcode that has a handler,
    /// [`MegakernelError::UnknownOpcode`] for a replaced or removed one that has none; whatever
    /// [`build`](crate::MegakernelBuilder::build) has to say about handlers and bindings;
    /// [`MegakernelError::InvalidBinding`] for a known buffer that is too short, or declared in another way;
    /// [`MegakernelError::InvalidGeometry`] for more opcodes than
    /// [reserved](super::SessionOptions::reserve_handlers); [`MegakernelError::Backend`] if the new programs do not
    /// compile or their kernel does not start: if then the old one does not start either, the error is that of
    /// the old one, and the session is quiesced. [`MegakernelError::Deadline`] if claimed items take longer than
    /// `timeout`: the session claims no more until they have ended. [`MegakernelError::SessionClosed`].
    pub fn update_handlers(
        &self,
        update: HandlerUpdate,
        timeout: Duration,
    ) -> Result<HandlerChange, MegakernelError> {
        self.shared().change_handlers(update, timeout)
    }
}

impl Shared {
    /// Changes the handlers. `timeout` is for what the kernel takes to leave, and for others to be out of the
    /// way.
    pub(super) fn change_handlers(
        &self,
        update: HandlerUpdate,
        timeout: Duration,
    ) -> Result<HandlerChange, MegakernelError> {
        // One after the other: each begins with the handlers that the one before it has left.
        let turn = lock_within(&self.changing, timeout, "another change of the session's handlers")?;
        self.through_losses(timeout, |_, _| Ok(()))?;
        let started = Instant::now();
        let mut next = self.prepare_through_losses(&update, timeout)?;
        let prepared_in = started.elapsed();
        let mut times = (Duration::ZERO, Duration::ZERO);
        self.through_losses(timeout, |control, left| {
            times = self.turn_to(control, &mut next, left)?;
            Ok(())
        })?;
        let mut last = lock(&self.last_change);
        let number = last.map_or(0, |last| last.number).wrapping_add(1);
        let (pause, left_in) = times;
        let change = HandlerChange { number, prepared_in, pause, left_in };
        *last = Some(change);
        drop((last, turn));
        self.note("handlers changed", &[("number", number), ("pause_us", pause.as_micros() as u64)]);
        tracing::info!(session = self.id, number, ?prepared_in, ?pause, ?left_in, "handlers changed");
        Ok(change)
    }

    /// Prepares once more if the device was lost meanwhile, and recovered.
    fn prepare_through_losses(
        &self,
        update: &HandlerUpdate,
        timeout: Duration,
    ) -> Result<Next, MegakernelError> {
        let mut attempts = 1;
        loop {
            let generation = self.pipeline.current().generation;
            let error = match self.prepare(update) {
                Err(error) if error.is_device_loss() && attempts < ATTEMPTS => error,
                prepared => return prepared,
            };
            attempts += 1;
            // Unless the session's thread has noticed already.
            let mut met = Some(error);
            self.through_losses(timeout, |_, _| match met.take() {
                Some(error) if self.pipeline.current().generation == generation => Err(error),
                _ => Ok(()),
            })?;
        }
    }

    /// Everything that can be done, and refused, while the old kernel runs.
    fn prepare(&self, update: &HandlerUpdate) -> Result<Next, MegakernelError> {
        let old = self.plan.handlers();
        let mut table = HandlerTable::clone(&old);
        for step in &update.steps {
            match step {
                Step::Add(handler) => table.add(handler.clone())?,
                Step::Replace(handler) => table.replace(handler.clone())?,
                Step::Remove(opcode) => table.remove(*opcode)?,
            }
        }
        let table = table.joined()?;
        let (places, room) = (table.len() as u64, self.plan.layout.handlers());
        if places > room.into() {
            return Err(MegakernelError::InvalidGeometry {
                what: "the number of opcodes that the session has had handlers of",
                got: places,
                expected: format!("at most {room}; `SessionOptions::reserve_handlers` makes room for more"),
            });
        }
        let entries = self.new_entries(&old, &table, &update.buffers)?;
        let programs = Arc::new(ItemPrograms::new(Arc::new(table), self.plan.workgroup_size_x)?);
        let pipeline = self.compile_beside(&programs)?;
        let mut buffers = DeviceBuffers::new(Arc::clone(&self.plan.backend), entries);
        buffers.create().map_err(MegakernelError::backend("make the buffers of new handlers"))?;
        Ok(Next { programs, pipeline, buffers })
    }

    fn compile_beside(&self, programs: &ItemPrograms) -> Result<Arc<dyn ResidentPipeline>, MegakernelError> {
        let spec = programs.spec(self.worker_groups);
        let prepared = self.plan.backend.prepare_resident(&spec);
        prepared.map_err(MegakernelError::backend("compile the new item programs"))
    }

    /// The buffers of bindings that are new; refuses bindings that those there are do not fit.
    fn new_entries(
        &self,
        old: &HandlerTable,
        new: &HandlerTable,
        bound: &BTreeMap<String, BoundBuffer>,
    ) -> Result<Vec<Entry>, MegakernelError> {
        let (kept, added) = new.bindings().split_at_checked(old.bindings().len()).unwrap_or_default();
        self.buffers()?.check_lengths(kept)?;
        kept.iter().filter(|binding| binding.name == PAYLOAD_BINDING).try_for_each(check_payload_binding)?;
        let arena = lock(&self.view).regions().layout.arena();
        let entries = added.iter().map(|binding: &HandlerBinding| {
            if binding.name == PAYLOAD_BINDING && self.arena.capacity() == 0 {
                return Err(refuse(
                    &binding.name,
                    "the session was started without an arena",
                    "set `SessionOptions::arena_bytes`",
                ));
            }
            self.plan.entry(binding, bound.get(&binding.name), arena)
        });
        let entries = entries.collect::<Result<_, _>>()?;
        match bound.keys().find(|name| added.iter().all(|binding| binding.name != **name)) {
            Some(name) => Err(refuse(
                name,
                "no handler names it for the first time",
                "upload to a buffer that the session has, or use the name of a new binding",
            )),
            None => Ok(entries),
        }
    }

    /// Turns from the old kernel to the next. The pause, and the part of it that the old one took to leave.
    fn turn_to(
        &self,
        control: &mut Control,
        next: &mut Next,
        left: Duration,
    ) -> Result<(Duration, Duration), MegakernelError> {
        if next.pipeline.generation() != self.pipeline.current().generation {
            // The device was lost since it was compiled, and the session has recovered with the handlers it had.
            next.pipeline = self.compile_beside(&next.programs)?;
            next.buffers.destroy();
            let made = next.buffers.create();
            made.map_err(MegakernelError::backend("make the buffers of new handlers again"))?;
        }
        self.permit(next.programs.handlers())?;
        let serves = control.kernel.is_some();
        let paused = Instant::now();
        self.retire_to_restart(control, left)?;
        let left_in = paused.elapsed();
        let generation = next.pipeline.generation();
        let built = Built { generation, parts: Arc::clone(&next.pipeline) };
        let old = self.pipeline.replace(Arc::new(built));
        let before = lock(&self.buffers).append(&mut next.buffers);
        let started = if serves { self.relaunch(control) } else { Ok(()) };
        if let Err(error) = started {
            next.buffers = lock(&self.buffers).split_off(before);
            self.pipeline.replace(old);
            // After a loss, the session's thread does that.
            if !error.is_device_loss() {
                self.relaunch(control)?;
            }
            return Err(error);
        }
        self.plan.change_to(&next.programs);
        Ok(if serves { (paused.elapsed(), left_in) } else { Default::default() })
    }

    /// Writes who may use which handler. No kernel looks at the bits of places that no handler has yet, and
    /// those of the others do not change.
    fn permit(&self, handlers: &HandlerTable) -> Result<(), MegakernelError> {
        let words = self.plan.tenants.encode(handlers);
        for (row, words) in (0_u64..).zip(words.chunks(tenant_row::WORDS as usize)) {
            let permissions = words.iter().zip(0_u64..).take(tenant_row::PERMISSION_WORDS as usize);
            for (word, place) in permissions {
                let at = row * u64::from(tenant_row::WORDS) + u64::from(tenant_row::PERMISSIONS) + place;
                let place = self.h2d.atomic_u32(self.tenants_at + at * 4);
                let place = place.map_err(ring_error("permit the use of new handlers"))?;
                place.store(*word, std::sync::atomic::Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn refuse(binding: &str, problem: &str, remedy: &'static str) -> MegakernelError {
    MegakernelError::InvalidBinding { binding: binding.to_owned(), problem: problem.to_owned(), remedy }
}
