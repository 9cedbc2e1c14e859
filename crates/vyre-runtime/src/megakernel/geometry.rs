//! How slots become workgroups.

use vyre_driver::VyreBackend;

use crate::batch::MAX_BATCH_SLOTS;
use crate::error::MegakernelError;

/// Slots, invocations and workgroups of a megakernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) slots: u32,
    pub(super) workgroup_size_x: u32,
    pub(super) worker_groups: u32,
}

/// Workgroups that a batch of `slots` slots is launched with: one invocation for each slot.
///
/// # Errors
///
/// [`MegakernelError::InvalidGeometry`] unless the slot count is a non-zero multiple of the workgroup size.
pub fn worker_groups_for_geometry(slots: u32, workgroup_size_x: u32) -> Result<u32, MegakernelError> {
    let refuse = |what, got: u32, expected: String| {
        Err(MegakernelError::InvalidGeometry { what, got: got.into(), expected })
    };
    if workgroup_size_x == 0 {
        return refuse("the workgroup size", workgroup_size_x, "at least 1".to_owned());
    }
    if slots == 0 || !slots.is_multiple_of(workgroup_size_x) {
        return refuse(
            "the slot count of a batch",
            slots,
            format!(
                "a non-zero multiple of the workgroup size, {workgroup_size_x} (`workgroup_size` of the builder); a \
                 session's ring is sized by `SessionOptions::slots`"
            ),
        );
    }
    Ok(slots / workgroup_size_x)
}

impl Geometry {
    pub(super) fn new(
        slots: u32,
        workgroup_size_x: u32,
        backend: &dyn VyreBackend,
    ) -> Result<Geometry, MegakernelError> {
        let worker_groups = worker_groups_for_geometry(slots, workgroup_size_x)?;
        let refuse = |what, got: u32, expected: String| {
            Err(MegakernelError::InvalidGeometry { what, got: got.into(), expected })
        };
        let capabilities = backend.capabilities();
        if slots > MAX_BATCH_SLOTS {
            return refuse("the slot count of a batch", slots, "at most 2^24".to_owned());
        }
        if workgroup_size_x > capabilities.max_workgroup_invocations {
            return refuse(
                "the workgroup size",
                workgroup_size_x,
                format!("at most the backend's {}", capabilities.max_workgroup_invocations),
            );
        }
        let [most, ..] = capabilities.max_grid;
        if worker_groups > most {
            return refuse(
                "the number of workgroups of a batch",
                worker_groups,
                format!("at most the backend's {most}"),
            );
        }
        Ok(Geometry { slots, workgroup_size_x, worker_groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_multiple_of_the_workgroup() {
        for (slots, workgroup, groups) in [
            (256, 256, Some(1)),
            (768, 256, Some(3)),
            (7, 1, Some(7)),
            (0, 256, None),
            (256, 0, None),
            (255, 256, None),
            (384, 256, None),
        ] {
            match worker_groups_for_geometry(slots, workgroup) {
                Ok(got) => assert_eq!(Some(got), groups, "{slots}/{workgroup}"),
                Err(error) => {
                    assert!(matches!(error, MegakernelError::InvalidGeometry { .. }), "{error}");
                    assert_eq!(groups, None, "{slots}/{workgroup}");
                }
            }
        }
    }
}
