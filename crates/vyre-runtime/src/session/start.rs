//! Starting a session: what the backend makes first, then everything the session's threads share.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use vyre_driver::arena::Arena;
use vyre_driver::io_queue::HostIo;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{Cancellations, Completion, ProducerOptions, RingProducer};
use vyre_driver::view::HostView;
use vyre_driver::wait::Waiter;
use vyre_driver::{Fault, ResidentPipeline};

use super::buffers::DeviceBuffers;
use super::lifecycle::Control;
use super::observe::Publisher;
use super::plan::SessionPlan;
use super::rings::{Rings, key_of};
use super::service::Service;
use super::shared::{Gate, Settings, Shared, lock, ring_error};
use super::trace::Timing;
use super::wakers::Wakers;
use super::window::Windows;
use super::{Handle, PersistentSession, SessionOptions};
use crate::error::MegakernelError;
use crate::io_service::IoResources;
use crate::megakernel::Megakernel;
use crate::recovery::{ATTEMPTS, MegakernelRecoveryDecision, MegakernelRecoveryPolicy, Recoverable};
use crate::telemetry::Totals;

/// One for every session of this process.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

impl Megakernel {
    /// Launches a session with default options.
    ///
    /// # Errors
    ///
    /// As [`start_with`](Self::start_with).
    pub fn start(&self) -> Result<PersistentSession, MegakernelError> {
        self.start_with(SessionOptions::new())
    }

    /// Launches a session. Buffers that the options do not bind are the megakernel's own, shared with its
    /// batches; the session needs nothing else of the megakernel once it runs.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidGeometry`] unless the slot count is a power of two and the rings are 1 to 3,
    /// [`MegakernelError::InvalidBinding`] for a buffer that is missing or does not fit,
    /// [`MegakernelError::Backend`] if the backend cannot keep a kernel resident, or refuses.
    pub fn start_with(&self, options: SessionOptions) -> Result<PersistentSession, MegakernelError> {
        let plan = SessionPlan::of(self, &options);
        plan.check(&options)?;
        let regions = plan.regions(&options)?;
        // Nothing of a session is lost yet, so a loss costs further attempts, if the policy allows any.
        let policy = options.recovery.unwrap_or(plan.recovery);
        let (mut plan, mut attempts) = (plan, 1);
        let prepared = loop {
            let prepared = match attempts {
                1 => Prepared::new(&plan, &options, &regions),
                _ => self.recover_after_device_loss().and_then(|_| {
                    plan = SessionPlan::of(self, &options);
                    Prepared::new(&plan, &options, &regions)
                }),
            };
            let again = matches!(&prepared, Err(MegakernelError::Backend { source, .. })
                if MegakernelRecoveryDecision::decide(source, self.generation(), policy, true)
                    == MegakernelRecoveryDecision::RebuildAndRetry);
            if !again || attempts == ATTEMPTS {
                break prepared?;
            }
            attempts += 1;
        };
        PersistentSession::launch(plan, options, regions, prepared)
    }
}

/// What the backend makes of a plan before anything runs.
struct Prepared {
    worker_groups: u32,
    pipeline: Recoverable<Arc<dyn ResidentPipeline>>,
    buffers: DeviceBuffers,
}

impl Prepared {
    fn new(
        plan: &SessionPlan,
        options: &SessionOptions,
        regions: &SessionRegions,
    ) -> Result<Prepared, MegakernelError> {
        let worker_groups = plan.worker_groups(options);
        let spec = plan.spec(worker_groups);
        let pipeline =
            Recoverable::new(Arc::clone(&plan.backend), MegakernelRecoveryPolicy::Off, |backend| {
                backend.compile_resident(&spec)
            })
            .map_err(MegakernelError::backend("compile the item programs"))?;
        let mut buffers = plan.buffers(options, regions)?;
        buffers.create().map_err(MegakernelError::backend("make the session's buffers"))?;
        Ok(Prepared { worker_groups, pipeline, buffers })
    }
}

impl PersistentSession {
    fn launch(
        plan: SessionPlan,
        options: SessionOptions,
        regions: SessionRegions,
        prepared: Prepared,
    ) -> Result<PersistentSession, MegakernelError> {
        let Prepared { worker_groups, pipeline, buffers } = prepared;
        let arena = Arena::new(&regions).map_err(ring_error("make the payload arena"))?;
        let detached_faults: Arc<Mutex<Vec<(u64, Completion)>>> = Arc::default();
        let producer = |ring, cancellations: &Arc<Cancellations>| {
            let (reported, cancelled) = (Arc::clone(&detached_faults), Arc::clone(cancellations));
            let options = ProducerOptions {
                first_ticket: 0,
                arena: Some(Arc::clone(&arena)),
                on_detached_fault: Some(Box::new(move |ticket, completion| {
                    // Whoever cancelled an item and forgot it wants to hear nothing of it.
                    let abandoned = completion.as_fault() == Some(Fault::Abandoned);
                    if abandoned && cancelled.is_asked(ticket.position()) {
                        return;
                    }
                    lock(&reported).push((key_of(ring, ticket.position()), completion));
                })),
            };
            RingProducer::new(&regions, ring, options)
        };
        let rings = Rings::new(&regions, producer).map_err(ring_error("make the rings"))?;
        let timing = Timing::new(&options, &rings)?;
        let id = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
        let publisher = Publisher::wanted(options.observe.as_deref(), id)?;
        let io_queue = HostIo::new(&regions).map_err(ring_error("open the IO queue"))?;
        let completions =
            Waiter::completion(&regions).map_err(ring_error("watch the session's completions"))?;
        let view = HostView::new(&regions).map_err(ring_error("view the session's regions"))?;
        let shared = Arc::new(Shared {
            id,
            options: Settings {
                wait: options.wait,
                lease: options.lease,
                stop_deadline: options.stop_deadline,
                item_deadline: options.item_deadline,
                probation_deadline: options.probation_deadline,
                recovery_deadline: options.recovery_deadline,
                recovery: options.recovery.unwrap_or(plan.recovery),
                restore: options.restore,
            },
            worker_groups,
            generation: AtomicU64::new(pipeline.current().generation.0),
            pipeline,
            h2d: Arc::clone(&regions.h2d),
            tenants_at: regions.layout.tenants().offset,
            arena,
            replayed: Mutex::new(vec![0; rings.len() as usize * rings.capacity() as usize]),
            rings,
            gate: AtomicU8::new(Gate::Open as u8),
            kernel: ArcSwapOption::empty(),
            parks: AtomicBool::new(true),
            control: Mutex::new(Control::new(regions)),
            view: Mutex::new(view),
            buffers: Mutex::new(buffers),
            quotas: Mutex::new(plan.quotas()),
            windows: Windows::default(),
            wakers: Wakers::default(),
            completions: ArcSwap::from_pointee(completions),
            timing,
            counters: Mutex::new(Totals::new(plan.layout.counters_words() as usize)),
            usage: Mutex::new(Totals::new(plan.layout.usage_words() as usize)),
            starts: AtomicU64::new(0),
            recoveries: AtomicU64::new(0),
            changing: Mutex::default(),
            last_change: Mutex::default(),
            losses: AtomicU64::new(0),
            last_recovery: Mutex::default(),
            verdicts: Mutex::default(),
            ending: AtomicBool::new(false),
            io: IoResources::default(),
            io_queue: Mutex::new(Arc::new(io_queue)),
            io_waiting: AtomicU64::new(0),
            service: Service::default(),
            detached_faults,
            any_detached: AtomicBool::new(false),
            drained: Default::default(),
            plan,
        });
        // From here on dropping the handle cleans up.
        let session = PersistentSession { handle: Arc::new(Handle { shared: Arc::clone(&shared) }) };
        {
            let mut control = lock(&shared.control);
            let launched = shared.launch(&mut control, None);
            match launched.as_ref().err().and_then(MegakernelError::loss) {
                Some(loss) => shared.handle_loss(&mut control, loss.clone())?,
                None => launched?,
            }
        }
        if let Some(publisher) = &publisher {
            // Whoever has the session finds it published.
            publisher.publish(&shared)?;
        }
        Service::start(&shared, options.on_detached_fault, publisher)?;
        Ok(session)
    }
}
