//! What every backend must do, as trials named `device::group::test`.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow};
use libtest_mimic::Trial;
use vyre_foundation::MemorySpace;
use vyre_foundation::filetest::{RunOutcome, TestKind, load_dir};
use vyre_runtime::Megakernel;
use vyre_runtime::conformance::{self, SCENARIOS, VECTORS};

use super::Device;
use super::errors;
use super::gemm;
use super::litmus;
use super::programs::{self, Data};
use super::sessions;
use super::trial::{Records, Verdict};

/// Adds the trials of one device.
pub(crate) fn add(device: &Device, files: &Path, records: &Records, trials: &mut Vec<Trial>) -> Result<()> {
    let files = load_dir(files).map_err(|error| anyhow!(error))?;
    for file in files.into_iter().filter(|file| file.is(TestKind::Run)) {
        let stem = file.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let device = device.clone();
        let name = format!("{}::file::{stem}", device.name);
        trials.push(records.trial(name, move || {
            if let Some(missing) = missing(&device, &file.requires) {
                return Verdict::Unsupported(missing);
            }
            file.check_run(|program, case| {
                let decls = program.program().buffers.iter();
                let bound = decls.filter(|decl| decl.space != MemorySpace::Workgroup);
                let mut data: Vec<Data> = bound
                    .zip(&case.buffers)
                    .map(|(decl, bytes)| Data { element: decl.element, bytes: bytes.clone() })
                    .collect();
                let outcome = programs::run(device.backend.as_ref(), program, &mut data, case.grid)
                    .map_err(|error| programs::describe(&error))?;
                Ok(RunOutcome {
                    buffers: data.into_iter().map(|data| data.bytes).collect(),
                    trap: outcome.trap.map(|trap| trap.code),
                })
            })
            .into()
        }));
    }

    // One megakernel for all vectors: it is the same for each.
    let fixture: Arc<OnceLock<Result<Megakernel, String>>> = Arc::default();
    for vector in VECTORS {
        let (device, fixture) = (device.clone(), Arc::clone(&fixture));
        let name = format!("{}::vector::{}", device.name, vector.name.replace(' ', "_"));
        trials.push(records.trial(name, move || {
            let built = fixture.get_or_init(|| {
                let builder = conformance::builder(Arc::clone(&device.backend));
                builder.and_then(|builder| builder.build()).map_err(|error| programs::describe(&error))
            });
            match built {
                Err(error) => Verdict::Failed(error.clone()),
                Ok(megakernel) => conformance::run_vector(megakernel, vector)
                    .map_err(|error| programs::describe(&error))
                    .into(),
            }
        }));
    }
    for (scenario, body) in SCENARIOS {
        let device = device.clone();
        let name = format!("{}::batch::{}", device.name, scenario.replace(' ', "_"));
        trials.push(
            records.trial(name, move || {
                body(&device.backend).map_err(|error| programs::describe(&error)).into()
            }),
        );
    }
    {
        let whole = device;
        let device = device.clone();
        let name = format!("{}::session::vectors", device.name);
        trials.push(records.trial_alone(whole, name, move || {
            if !device.backend.capabilities().persistent {
                return Verdict::Unsupported("the backend keeps no kernel resident".to_owned());
            }
            conformance::run_sessions(&device.backend)
                .map(drop)
                .map_err(|error| programs::describe(&error))
                .into()
        }));
    }
    {
        let (whole, device) = (device, device.clone());
        let name = format!("{}::items::gemm", device.name);
        trials.push(records.trial_alone(whole, name, move || {
            conformance::run_gemm(&device.backend).map_err(|error| programs::describe(&error)).into()
        }));
    }
    {
        let (whole, device) = (device, device.clone());
        let name = format!("{}::session::files", device.name);
        trials.push(records.trial_alone(whole, name, move || {
            if !device.backend.capabilities().persistent {
                return Verdict::Unsupported("the backend keeps no kernel resident".to_owned());
            }
            conformance::run_io(&device.backend).map_err(|error| programs::describe(&error)).into()
        }));
    }
    sessions::add(device, records, trials);
    litmus::add(device, records, trials);
    programs::add(device, records, trials);
    errors::add(device, records, trials);
    gemm::add(device, records, trials);
    Ok(())
}

/// What a file requires and a device has not.
fn missing(device: &Device, requires: &[String]) -> Option<String> {
    let capabilities = device.backend.capabilities();
    requires.iter().find_map(|feature| match feature.as_str() {
        "grid_barrier" if capabilities.grid_barriers => None,
        // Every backend here has the functions of `vyre_foundation::externals`.
        "external_functions" => None,
        "subgroup_operations" if capabilities.subgroup_operations => None,
        "subgroups_of_32" if capabilities.subgroup_operations && capabilities.subgroup_width == 32 => None,
        _ => Some(format!("it requires `{feature}`")),
    })
}
