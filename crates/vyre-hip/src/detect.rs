//! What this machine has, and why it lacks the rest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vyre_driver::Generation;

use crate::api::{Api, Attempt, Platform, Search};
use crate::device::{Context, DeviceInfo};
use crate::error::{DeviceError, HipError, OpenError};

/// The GPUs of this machine, or why there are none. Prints as text for people.
#[derive(Clone, Debug)]
pub struct DetectReport {
    attempts: Vec<Attempt>,
    library: Option<LibraryReport>,
    devices: Vec<DeviceReport>,
    unusable: Vec<(u32, DeviceError)>,
    problem: Option<OpenError>,
}

/// The library that will be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryReport {
    /// Whose it is.
    pub platform: Platform,
    /// The path or soname it was loaded by.
    pub path: PathBuf,
    /// The kernel driver's version, where the library says.
    pub driver: Option<String>,
    /// The runtime's version, where the library says.
    pub runtime: Option<String>,
}

/// A device that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// What it is.
    pub info: DeviceInfo,
    /// Bytes of its memory that were free.
    pub memory_free: u64,
}

/// Looks for GPUs as the backend would. It opens a context on each to see its free memory, which takes some
/// tenths of a second on NVIDIA.
pub fn detect() -> DetectReport {
    Search::from_environment().map_or_else(DetectReport::without, |search| detect_with(&search))
}

/// The same, looking where `search` says.
pub fn detect_with(search: &Search) -> DetectReport {
    Api::open_with(search).map_or_else(DetectReport::without, |api| DetectReport::of(&api))
}

impl DetectReport {
    /// The devices of a library that is open.
    pub fn of(api: &Arc<Api>) -> DetectReport {
        let (mut devices, mut unusable) = (Vec::new(), Vec::new());
        for ordinal in 0..api.devices() {
            match DeviceReport::query(api, ordinal) {
                Ok(device) => devices.push(device),
                Err(error) => unusable.push((ordinal, error)),
            }
        }
        let library = Some(LibraryReport::query(api));
        DetectReport { attempts: api.attempts().to_vec(), library, devices, unusable, problem: None }
    }

    fn without(problem: OpenError) -> DetectReport {
        DetectReport {
            attempts: problem.tried().to_vec(),
            library: None,
            devices: Vec::new(),
            unusable: Vec::new(),
            problem: Some(problem),
        }
    }

    /// Each library tried, in order, and what became of it.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The library that will be used.
    pub fn library(&self) -> Option<&LibraryReport> {
        self.library.as_ref()
    }

    /// The devices that can be used.
    pub fn devices(&self) -> &[DeviceReport] {
        &self.devices
    }

    /// The numbers of devices that cannot be used, and why.
    pub fn unusable(&self) -> &[(u32, DeviceError)] {
        &self.unusable
    }

    /// Why there is no library to use.
    pub fn problem(&self) -> Option<&OpenError> {
        self.problem.as_ref()
    }
}

impl LibraryReport {
    fn query(api: &Api) -> LibraryReport {
        let shown = |version: Result<i32, HipError>| {
            version.ok().map(|version| show_version(api.platform(), version))
        };
        LibraryReport {
            platform: api.platform(),
            path: Path::to_owned(api.library()),
            driver: shown(api.version_of_driver()),
            runtime: shown(api.version_of_runtime()),
        }
    }
}

/// CUDA counts 13.0 as 13000; HIP counts 5.2.21153 as 50221153.
fn show_version(platform: Platform, version: i32) -> String {
    match platform {
        Platform::Nvidia => format!("{}.{}", version / 1000, version % 1000 / 10),
        Platform::Amd => {
            format!("{}.{}.{}", version / 10_000_000, version / 100_000 % 100, version % 100_000)
        }
    }
}

impl DeviceReport {
    fn query(api: &Arc<Api>, ordinal: u32) -> Result<DeviceReport, DeviceError> {
        let context = Context::open(api, ordinal, Generation(0))?;
        let memory_free = context.memory_use()?.free;
        Ok(DeviceReport { info: context.info().clone(), memory_free })
    }
}

impl fmt::Display for DetectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.problem {
            // It lists what was tried.
            return writeln!(f, "{problem}");
        }
        writeln!(f, "libraries tried:")?;
        for attempt in &self.attempts {
            writeln!(f, "  {attempt}")?;
        }
        if let Some(library) = &self.library {
            let unknown = || "unknown".to_owned();
            let driver = library.driver.clone().unwrap_or_else(unknown);
            let runtime = library.runtime.clone().unwrap_or_else(unknown);
            let (path, platform) = (library.path.display(), library.platform);
            writeln!(f, "using {path} ({platform}): driver {driver}, runtime {runtime}")?;
        }
        for device in &self.devices {
            device.fmt(f)?;
        }
        for (ordinal, error) in &self.unusable {
            writeln!(f, "device {ordinal}: cannot be used: {error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = &self.info;
        writeln!(f, "device {}: {} ({})", info.ordinal, info.name, info.arch)?;
        if let Some(id) = &info.pci_bus_id {
            writeln!(f, "  PCI bus          {id}")?;
        }
        let (free, total) = (self.memory_free >> 20, info.memory_bytes >> 20);
        writeln!(f, "  memory           {free} MiB free of {total} MiB")?;
        writeln!(
            f,
            "  memory bus       {} bits, {} MHz",
            info.memory_bus_bits,
            info.memory_clock_khz / 1000
        )?;
        writeln!(f, "  L2 cache         {} KiB", info.l2_bytes >> 10)?;
        writeln!(
            f,
            "  multiprocessors  {}, {} MHz, {} invocations and {} KiB of shared memory each",
            info.multiprocessors,
            info.clock_khz / 1000,
            info.max_invocations_multiprocessor,
            info.shared_bytes_multiprocessor >> 10
        )?;
        writeln!(f, "  wave             {} lanes", info.wave_width)?;
        let [x, y, z] = info.max_workgroup;
        writeln!(
            f,
            "  workgroup        {} invocations, {x} x {y} x {z}, {} registers",
            info.max_workgroup_invocations, info.registers
        )?;
        writeln!(
            f,
            "  shared memory    {} KiB a workgroup, {} KiB on request",
            info.shared_bytes >> 10,
            info.shared_bytes_opt_in >> 10
        )?;
        let [x, y, z] = info.max_grid;
        writeln!(f, "  grid             {x} x {y} x {z} workgroups")?;
        let yes = |yes| if yes { "yes" } else { "no" };
        writeln!(f, "  cooperative      {}", yes(info.cooperative_launch))?;
        writeln!(f, "  host memory      {}", if info.maps_host_memory { "mapped" } else { "not mapped" })?;
        writeln!(f, "  integrated       {}", yes(info.integrated))?;
        writeln!(f, "  kernel timeout   {}", yes(info.kernel_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_as_the_vendors_write_them() {
        assert_eq!(show_version(Platform::Nvidia, 13000), "13.0");
        assert_eq!(show_version(Platform::Nvidia, 12040), "12.4");
        assert_eq!(show_version(Platform::Amd, 50_221_153), "5.2.21153");
        assert_eq!(show_version(Platform::Amd, 60_342_131), "6.3.42131");
    }
}
