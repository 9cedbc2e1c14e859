//! `vyre info`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use vyre::{BackendReport, Capabilities};

#[derive(Debug, Args)]
pub(crate) struct InfoArguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    backends: Vec<Backend>,
}

#[derive(Serialize)]
struct Backend {
    name: &'static str,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    name: String,
    build: String,
    max_workgroup_invocations: u32,
    max_workgroup_bytes: u64,
    max_grid: [u32; 3],
    max_buffer_bytes: u64,
    memory_bytes: u64,
    subgroup_width: u32,
    resident_workgroups: u32,
    grid_barriers: bool,
    persistent: bool,
    storage: Vec<String>,
}

pub(crate) fn run(arguments: &InfoArguments) -> anyhow::Result<ExitCode> {
    let backends = vyre::survey().into_iter().map(describe).collect();
    let info = Info { version: env!("CARGO_PKG_VERSION"), backends };
    let text =
        if arguments.json { serde_json::to_string(&info)? + "\n" } else { plain(&info) + &gpus(&info) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// All that is known of the GPUs, where they can be used; where not, the reason has said it.
fn gpus(info: &Info) -> String {
    let usable = info.backends.iter().any(|backend| backend.name == "hip" && backend.available);
    if usable { format!("\n{}", vyre::hip::detect()) } else { String::new() }
}

fn describe(report: BackendReport) -> Backend {
    let (reason, devices) = match report.status {
        Ok((identity, can)) => (None, vec![device(identity.device, identity.build, can)]),
        Err(reason) => (Some(reason), Vec::new()),
    };
    Backend { name: report.name, available: reason.is_none(), reason, devices }
}

fn device(name: String, build: String, can: Capabilities) -> Device {
    Device {
        name,
        build,
        max_workgroup_invocations: can.max_workgroup_invocations,
        max_workgroup_bytes: can.max_workgroup_bytes,
        max_grid: can.max_grid,
        max_buffer_bytes: can.max_buffer_bytes,
        memory_bytes: can.memory_bytes,
        subgroup_width: can.subgroup_width,
        resident_workgroups: can.resident_workgroups,
        grid_barriers: can.grid_barriers,
        persistent: can.persistent,
        storage: can.storage.iter().map(ToString::to_string).collect(),
    }
}

fn plain(info: &Info) -> String {
    let mut text = format!("vyre {}\n", info.version);
    for backend in &info.backends {
        match &backend.reason {
            Some(reason) => text += &format!("{}: not available: {reason}\n", backend.name),
            None => text += &format!("{}: available\n", backend.name),
        }
        for device in &backend.devices {
            let rows = [
                ("device", device.name.clone()),
                ("build", device.build.clone()),
                (
                    "memory",
                    format!(
                        "{} MiB, {} MiB in one buffer",
                        device.memory_bytes >> 20,
                        device.max_buffer_bytes >> 20
                    ),
                ),
                (
                    "workgroup",
                    format!(
                        "{} invocations, {} KiB of memory",
                        device.max_workgroup_invocations,
                        device.max_workgroup_bytes >> 10
                    ),
                ),
                (
                    "resident",
                    format!(
                        "{} workgroups, subgroups of {}",
                        device.resident_workgroups, device.subgroup_width
                    ),
                ),
                ("persistent", yes(device.persistent)),
                ("grid barriers", yes(device.grid_barriers)),
                ("storage", device.storage.join(" ")),
            ];
            for (name, value) in rows {
                text += &format!("  {name:<14}{value}\n");
            }
        }
    }
    text
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}
