//! Which architectures to build for, by which compiler, and which not and why.

use std::sync::Arc;

use serde::Serialize;
use vyre_hip::compile::{Architecture, CompileError, Compiler, Platform, Toolchain};
use vyre_hip::detect::DeviceReport;

use super::in_parallel;

/// The architectures in use, tried when neither the caller nor a device names one.
const IN_USE: &[&str] = &[
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1010", "gfx1030", "gfx1100", "gfx1101",
    "gfx1102", "gfx1150", "gfx1151", "gfx1200", "gfx1201", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90",
    "sm_90a", "sm_100", "sm_103", "sm_120",
];

/// What to build.
pub(crate) struct Plan {
    pub(crate) wanted: Vec<(Architecture, Arc<Toolchain>)>,
    pub(crate) skipped: Vec<Skipped>,
    /// Whether one of the skipped was named, or is of a device present: nothing is built then.
    pub(crate) lacks_compiler: bool,
}

/// An architecture, or a whole vendor, that is not built for.
#[derive(Debug, Serialize)]
pub(crate) struct Skipped {
    pub(crate) arch: String,
    pub(crate) why: String,
}

impl Plan {
    /// The architectures named, else those of the devices present, else all in use that `wants` takes.
    ///
    /// # Errors
    /// A compiler cannot be asked what it builds. An architecture without a compiler is no error: it is skipped.
    pub(crate) fn make(
        compiler: &Compiler,
        named: &[Architecture],
        wants: impl Fn(&Architecture) -> bool,
    ) -> Result<Self, CompileError> {
        if !named.is_empty() {
            return Self::of(compiler, named.to_vec(), true);
        }
        let present: Vec<Architecture> = devices_present().into_iter().filter(&wants).collect();
        if !present.is_empty() {
            return Self::of(compiler, present, true);
        }
        eprintln!("no device to build for: building for all that the compilers found build");
        let in_use = IN_USE.iter().map(|name| name.parse()).collect::<Result<Vec<Architecture>, _>>()?;
        Self::of(compiler, in_use.into_iter().filter(wants).collect(), false)
    }

    fn of(
        compiler: &Compiler,
        mut archs: Vec<Architecture>,
        all_must_build: bool,
    ) -> Result<Self, CompileError> {
        archs.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        archs.dedup();
        let mut plan = Self { wanted: Vec::new(), skipped: Vec::new(), lacks_compiler: false };
        // A vendor without a compiler is one line, not one for each architecture that nobody named.
        for platform in [Platform::Amd, Platform::Nvidia] {
            if all_must_build || !archs.iter().any(|arch| arch.platform() == platform) {
                continue;
            }
            if let Err(error) = compiler.toolchains(platform) {
                archs.retain(|arch| arch.platform() != platform);
                plan.skipped.push(Skipped { arch: format!("{platform}, all"), why: error.to_string() });
            }
        }
        let choices =
            in_parallel(&archs, |arch| format!("compiler for {arch}"), |arch| compiler.toolchain_for(arch));
        for (arch, choice) in archs.into_iter().zip(choices) {
            match choice {
                Ok(toolchain) => plan.wanted.push((arch, toolchain)),
                Err(error) if all_must_build && !error.is_missing_compiler() => return Err(error),
                Err(error) if all_must_build => {
                    plan.lacks_compiler = true;
                    plan.skipped.push(Skipped { arch: arch.to_string(), why: error.to_string() });
                }
                Err(error) => {
                    plan.skipped.push(Skipped { arch: arch.to_string(), why: one_line(&error) });
                }
            }
        }
        Ok(plan)
    }
}

/// What each compiler said, on one line: a list of the skipped is read as a table.
fn one_line(error: &CompileError) -> String {
    match error {
        CompileError::UnsupportedArchitecture { reasons, .. } => {
            let said = reasons.iter().map(|tried| match &tried.path {
                Some(path) => format!("{}: {}", path.display(), tried.why),
                None => tried.why.clone(),
            });
            said.collect::<Vec<_>>().join("; ")
        }
        error => error.to_string(),
    }
}

/// The architectures of the devices of this machine that can be used; the others are told with their reason.
fn devices_present() -> Vec<Architecture> {
    let report = vyre_hip::detect::detect();
    for (ordinal, error) in report.unusable() {
        eprintln!("skipped device {ordinal}: {error}");
    }
    let arch_of = |device: &DeviceReport| {
        let parsed = Architecture::of_device(&device.info.arch);
        parsed.inspect_err(|error| eprintln!("skipped {}: {error}", device.info.name)).ok()
    };
    report.devices().iter().filter_map(arch_of).collect()
}
