//! Where a GPU library may be, in which order, and what became of each place.

use std::env;
use std::ffi::{OsString, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::permissions::{self, Diagnosis};
use super::status;
use super::symbols::Symbols;
use super::{Api, Platform};
use crate::{HipError, OpenError};

const HIP_NAMES: [&str; 4] = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];
const CUDA_NAME: &str = "libcuda.so.1";
const DEFAULT_ROOT: &str = "/opt/rocm";

/// What to look for, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// This file or soname and nothing else. Whose it is, its symbols say.
    pub library: Option<PathBuf>,
    /// This vendor's only.
    pub platform: Option<Platform>,
    /// Installations of ROCm, whose `lib` and `lib64` come before the loader's own places.
    pub roots: Vec<PathBuf>,
}

impl Search {
    /// As the environment says: `VYRE_HIP_LIBRARY`, `VYRE_HIP_PLATFORM`, `ROCM_PATH`, `HIP_PATH`. A variable
    /// that is set to nothing counts as unset.
    pub fn from_environment() -> Result<Search, OpenError> {
        Search::from_variables(|name| env::var_os(name))
    }

    /// The same from any set of variables.
    pub fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Search, OpenError> {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let platform = match get("VYRE_HIP_PLATFORM") {
            Some(value) => Some(value.to_string_lossy().parse()?),
            None => None,
        };
        let mut roots: Vec<PathBuf> = Vec::new();
        for root in ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(get).map(PathBuf::from) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        Ok(Search { library: get("VYRE_HIP_LIBRARY").map(PathBuf::from), platform, roots })
    }

    /// The places that will be tried, in order.
    pub fn candidates(&self) -> Vec<PathBuf> {
        if let Some(library) = &self.library {
            return vec![library.clone()];
        }
        let mut places = Vec::new();
        if self.platform != Some(Platform::Nvidia) {
            let roots = self.roots.iter().map(PathBuf::as_path);
            places.extend(roots.flat_map(in_root));
            places.extend(HIP_NAMES.map(PathBuf::from));
            places.extend(in_root(Path::new(DEFAULT_ROOT)));
        }
        if self.platform != Some(Platform::Amd) {
            places.push(PathBuf::from(CUDA_NAME));
        }
        places
    }

    /// Tries the places until a library has a device. The first library of a vendor that loads is the only
    /// one of that vendor: two HIPs in one process fight over the same device files.
    pub(super) fn open(&self) -> Result<Api, OpenError> {
        let mut attempts = Vec::new();
        let mut loaded = Vec::new();
        if cfg!(feature = "hip-link") && self.library.is_none() && self.platform != Some(Platform::Nvidia) {
            loaded.push(Platform::Amd);
            if let Some(api) = attempt(Path::new(LINKED), Some(Platform::Amd), &mut attempts) {
                return Ok(finish(api, attempts));
            }
        }
        for place in self.candidates() {
            let vendor = (self.library.is_none()).then(|| vendor_of(&place));
            if vendor.is_some_and(|vendor| loaded.contains(&vendor)) {
                continue;
            }
            if let Some(api) = attempt(&place, self.platform.or(vendor), &mut attempts) {
                return Ok(finish(api, attempts));
            }
            if let (Some(vendor), Some(last)) = (vendor, attempts.last())
                && !matches!(last.outcome, Outcome::NotLoaded(_) | Outcome::MissingSymbol(_))
            {
                loaded.push(vendor);
            }
        }
        Err(OpenError::from_attempts(attempts))
    }
}

/// Stands for the library that the executable is linked against.
const LINKED: &str = "<linked>";

fn finish(mut api: Api, attempts: Vec<Attempt>) -> Api {
    api.attempts = attempts;
    api
}

fn vendor_of(place: &Path) -> Platform {
    if place.as_os_str() == CUDA_NAME { Platform::Nvidia } else { Platform::Amd }
}

/// A place for each library folder of an installation: the first name there is, or the plain name, so that
/// the loader says what it misses.
fn in_root(root: &Path) -> Vec<PathBuf> {
    let folder = |sub| {
        let folder = root.join(sub);
        let there = HIP_NAMES.iter().map(|name| folder.join(name)).find(|path| path.exists());
        there.unwrap_or_else(|| folder.join("libamdhip64.so"))
    };
    vec![folder("lib"), folder("lib64")]
}

/// Tries one place, notes what became of it, and returns the library if it has a device.
fn attempt(place: &Path, platform: Option<Platform>, attempts: &mut Vec<Attempt>) -> Option<Api> {
    let mut platform = platform;
    let (outcome, api) = match try_open(place, &mut platform) {
        Ok(api) => (Outcome::Devices(api.devices), Some(api)),
        Err(outcome) => (outcome, None),
    };
    attempts.push(Attempt { library: place.to_owned(), platform, outcome });
    api
}

fn try_open(place: &Path, platform: &mut Option<Platform>) -> Result<Api, Outcome> {
    let lookup = lookup_in(place)?;
    // Whose library it is, its own symbols say; a name can lie.
    let found = if lookup("hipInit").is_some() {
        Platform::Amd
    } else if lookup("cuInit").is_some() {
        Platform::Nvidia
    } else {
        return Err(Outcome::MissingSymbol("hipInit"));
    };
    if platform.is_some_and(|wanted| wanted != found) {
        return Err(Outcome::OtherPlatform(found));
    }
    *platform = Some(found);
    // SAFETY: the addresses come from the vendor's library, which is never unloaded.
    let symbols = unsafe { Symbols::load(found, &*lookup) }.map_err(Outcome::MissingSymbol)?;
    let mut api = Api::uninitialized(found, place.to_owned(), symbols);
    match api.initialize() {
        Ok(()) if api.devices > 0 => Ok(api),
        Ok(()) => Err(without_device(found, None)),
        Err(error) => Err(without_device(found, Some(error))),
    }
}

type Lookup = Box<dyn Fn(&str) -> Option<*mut c_void>>;

fn lookup_in(place: &Path) -> Result<Lookup, Outcome> {
    #[cfg(feature = "hip-link")]
    if place.as_os_str() == LINKED {
        return Ok(Box::new(super::link::lookup));
    }
    // SAFETY: what the library's initialisers do is the vendor's; the name was given or is the vendor's.
    let library = unsafe { Library::open(Some(place), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| Outcome::NotLoaded(cause(&error, place)))?;
    let library = std::mem::ManuallyDrop::new(library);
    Ok(Box::new(move |name| {
        // SAFETY: only the address is taken; nothing is read or called through it here.
        let symbol = unsafe { library.get::<*mut c_void>(name) }.ok()?;
        Some(*symbol).filter(|address| !address.is_null())
    }))
}

/// The loader's words, less the name that they begin with.
fn cause(error: &dyn std::error::Error, place: &Path) -> String {
    let words = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let name = format!("{}: ", place.display());
    words.strip_prefix(&name).map(ToOwned::to_owned).unwrap_or(words)
}

/// Why a library that loads has no device: what the system shows explains more than what the library says.
fn without_device(platform: Platform, error: Option<HipError>) -> Outcome {
    // HIP 5.2 says "invalid device" where there is none; others say that they are not initialised.
    let may_lack_device = error.as_ref().is_none_or(|error| {
        matches!(
            error.code,
            status::NO_DEVICE | status::INVALID_DEVICE | status::NOT_INITIALIZED | status::UNKNOWN
        )
    });
    let words = error.as_ref().map_or_else(|| "it counts 0 devices".to_owned(), ToString::to_string);
    let diagnosis = match may_lack_device {
        true => permissions::diagnose(platform, Path::new("/dev"), |name| env::var(name).ok()),
        false => Diagnosis::Unknown,
    };
    match (diagnosis, error) {
        (Diagnosis::Denied { path, remedy }, _) => Outcome::PermissionDenied { path, remedy },
        (Diagnosis::Reason(reason), _) => Outcome::NoDevice { reason: format!("{reason} ({words})") },
        (Diagnosis::Unknown, Some(error))
            if !matches!(error.code, status::NO_DEVICE | status::INVALID_DEVICE) =>
        {
            Outcome::NotInitialized(error)
        }
        (Diagnosis::Unknown, _) => Outcome::NoDevice { reason: words },
    }
}

/// One library that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The path or soname given to the loader.
    pub library: PathBuf,
    /// Whose library it is, where known.
    pub platform: Option<Platform>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a library that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The loader refused it; its words.
    NotLoaded(String),
    /// It lacks a function that cannot be done without.
    MissingSymbol(&'static str),
    /// It is another vendor's than was asked for.
    OtherPlatform(Platform),
    /// It loads, but does not initialise.
    NotInitialized(HipError),
    /// It works, and sees no device.
    NoDevice {
        /// Why, as far as can be told.
        reason: String,
    },
    /// It works, and this process may not open the device.
    PermissionDenied {
        /// The device file.
        path: PathBuf,
        /// Who may, and how to become one of them.
        remedy: String,
    },
    /// It has this many devices.
    Devices(u32),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.library.display())?;
        match &self.outcome {
            Outcome::NotLoaded(reason) => write!(f, "not loaded: {reason}"),
            Outcome::MissingSymbol(symbol) => write!(f, "lacks the function {symbol}"),
            Outcome::OtherPlatform(found) => write!(f, "is a library of platform {found}"),
            Outcome::NotInitialized(error) => write!(f, "does not initialise: {error}"),
            Outcome::NoDevice { reason } => write!(f, "no device: {reason}"),
            Outcome::PermissionDenied { path, remedy } => {
                write!(f, "permission denied on {}: {remedy}", path.display())
            }
            Outcome::Devices(1) => f.write_str("1 device"),
            Outcome::Devices(count) => write!(f, "{count} devices"),
        }
    }
}
