//! The soak of `examples/soak.rs`, for as long as a test may take.

#[path = "support/soak.rs"]
mod soak;

use std::sync::Arc;
use std::time::Duration;

use vyre_cpu::CpuBackend;

#[test]
fn every_ticket_is_answered_once_and_right_whatever_the_session_goes_through() {
    let soaked = soak::soak(Arc::new(CpuBackend::new()), Duration::from_secs(3), true).expect("no surprise");
    assert_eq!(soaked.items, soaked.rounds * soak::ITEMS);
    assert!(soaked.restarts > 0, "{soaked:?}");
}
