//! What a machine like this one answers, whatever it has: never a panic, always a reason.

use vyre_hip::api::{Api, Outcome, Platform, Search};

#[test]
fn the_report_has_a_device_or_says_why_not() {
    let report = vyre_hip::detect();
    let text = report.to_string();
    match report.problem() {
        None => {
            assert!(report.library().is_some());
            assert!(report.devices().len() + report.unusable().len() > 0, "{text}");
        }
        Some(problem) => {
            assert!(report.devices().is_empty() && report.library().is_none());
            assert_eq!(problem.tried(), report.attempts());
        }
    }
    assert!(!report.attempts().is_empty());
    for attempt in report.attempts() {
        assert!(text.contains(&attempt.to_string()), "{attempt} is not in\n{text}");
    }
}

/// With `hip-link` the linked library is the first that is tried, and its functions are called.
#[test]
fn the_linked_library_is_asked_first() {
    let search = Search { platform: Some(Platform::Amd), ..Search::default() };
    let attempts = match Api::open_with(&search) {
        Ok(api) => api.attempts().to_vec(),
        Err(error) => error.tried().to_vec(),
    };
    let first = attempts.first().unwrap();
    let linked = first.library.as_os_str() == "<linked>";
    assert_eq!(linked, cfg!(feature = "hip-link"), "{first}");
    if linked {
        let asked = matches!(
            first.outcome,
            Outcome::Devices(_) | Outcome::NoDevice { .. } | Outcome::PermissionDenied { .. }
        );
        assert!(asked, "{first}");
        assert_eq!(attempts.len(), 1, "a second HIP was loaded beside the linked one");
    }
}
