//! The vectors, live: each item through a session, submitted as it is, so that the device checks it.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_driver::ring::Completion;

use super::{Check, Nonconformance, VECTORS, Vector, builder, change};
use crate::batch::BatchCompletion;
use crate::error::MegakernelError;
use crate::item::SYSTEM_BUFFERS;
use crate::megakernel::Megakernel;
use crate::session::PersistentSession;

/// The longest that one item may take.
const WAIT: Duration = Duration::from_secs(60);

/// Runs every vector through one session, with a restart now and then; how many.
///
/// # Errors
///
/// The first difference.
pub fn run_sessions(backend: &Arc<dyn VyreBackend>) -> Result<usize, Nonconformance> {
    let fixture = Check("the fixture");
    let megakernel = fixture.ok(builder(Arc::clone(backend)).and_then(|builder| builder.build()))?;
    let session = fixture.ok(megakernel.start())?;
    for (number, vector) in VECTORS.iter().enumerate() {
        run_vector(&megakernel, &session, vector)?;
        if number % 16 == 0 {
            fixture.ok(session.restart(WAIT))?;
        }
    }
    fixture.ok(session.stop())?;
    Ok(VECTORS.len())
}

fn run_vector(
    megakernel: &Megakernel,
    session: &PersistentSession,
    vector: &Vector,
) -> Result<(), Nonconformance> {
    let at = Check(vector.name);
    let tenant = if megakernel.tenants().get(vector.tenant).is_ok() { vector.tenant } else { 0 };
    let window = at.ok(megakernel.tenants().window(tenant))?;
    let [_, _, _, windows, ..] = SYSTEM_BUFFERS;
    let first = u64::from(window.offset) * 4;
    let words = (window.observable_words + window.state_words) as usize;

    let mut expected = vec![0_u32; words];
    let (observables, state) = expected.split_at_mut(window.observable_words as usize);
    change(state, vector.state);
    let before: Vec<u8> =
        observables.iter().chain(state.iter()).flat_map(|word| word.to_le_bytes()).collect();
    at.ok(session.upload(windows, first, &before))?;
    change(state, vector.state_after);
    change(observables, vector.observables_after);

    let ticket = at.ok(session.submit_image(&vector.image()))?;
    let completion = at.ok(answer(session, &ticket))?;
    let got =
        BatchCompletion { status: completion.status(), code: completion.code(), result: completion.result() };
    let wanted = BatchCompletion { status: vector.status, code: vector.code, result: vector.result };
    at.same("the completion", got, wanted)?;
    let mut after = vec![0; words * 4];
    at.ok(session.download(windows, first, &mut after))?;
    let after: Vec<u32> = after.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    at.same("the window", after, expected)
}

/// The completion, fault or not.
fn answer(
    session: &PersistentSession,
    ticket: &crate::session::Ticket,
) -> Result<Completion, MegakernelError> {
    session.drain(WAIT)?;
    let completion = session.take(ticket)?;
    completion.ok_or_else(|| MegakernelError::Deadline {
        waited_for: format!("the completion of ticket {}", ticket.position()),
        after: WAIT,
    })
}
