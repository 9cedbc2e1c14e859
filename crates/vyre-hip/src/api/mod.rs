//! Finds a GPU library and fills the table of its functions.
//!
//! [`Api::open`] looks for `libamdhip64`, then for `libcuda`, at run time, and keeps the first that has a
//! device. What was tried and why it was passed over stays in [`Api::attempts`], or comes back in the
//! [`OpenError`]. A library is never unloaded: both vendors' start threads that outlive their last handle.
//!
//! Absent on purpose: contexts, ownership, waiting. They are [`crate::device`]'s.

mod attribute;
#[cfg(feature = "hip-link")]
mod link;
mod permissions;
mod search;
pub mod status;
mod symbols;

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub use attribute::Attribute;
pub(crate) use attribute::FunctionAttribute;
pub use search::{Attempt, Outcome, Search};
pub use symbols::{RawHandle, Status, Symbols};

use crate::{HipError, OpenError};

/// Whose library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// AMD: HIP, `libamdhip64`.
    Amd,
    /// NVIDIA: the CUDA driver, `libcuda`.
    Nvidia,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Platform::Amd => "amd",
            Platform::Nvidia => "nvidia",
        })
    }
}

impl FromStr for Platform {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Platform, OpenError> {
        match text {
            "amd" => Ok(Platform::Amd),
            "nvidia" => Ok(Platform::Nvidia),
            _ => Err(OpenError::UnknownPlatform { value: text.to_owned() }),
        }
    }
}

/// A library with its functions, initialised.
#[derive(Clone, Debug)]
pub struct Api {
    platform: Platform,
    library: PathBuf,
    symbols: Symbols,
    devices: u32,
    attempts: Vec<Attempt>,
}

impl Api {
    /// Finds the library of the first vendor that has a device, as the environment says (docs/gpu-setup.md).
    pub fn open() -> Result<Arc<Api>, OpenError> {
        Api::open_with(&Search::from_environment()?)
    }

    /// Finds a library as `search` says.
    pub fn open_with(search: &Search) -> Result<Arc<Api>, OpenError> {
        search.open().map(Arc::new)
    }

    /// Uses functions that are already at hand, of a library that needs no further loading.
    ///
    /// # Safety
    ///
    /// The functions behave as those of the platform's library, and are callable for ever.
    pub unsafe fn from_symbols(platform: Platform, symbols: Symbols) -> Result<Arc<Api>, HipError> {
        let mut api = Api::uninitialized(platform, PathBuf::from("<given>"), symbols);
        api.initialize()?;
        Ok(Arc::new(api))
    }

    fn uninitialized(platform: Platform, library: PathBuf, symbols: Symbols) -> Api {
        Api { platform, library, symbols, devices: 0, attempts: Vec::new() }
    }

    /// Initialises the library and counts its devices.
    fn initialize(&mut self) -> Result<(), HipError> {
        let mut count: c_int = 0;
        // SAFETY: the only flag value that both libraries define is 0.
        unsafe { self.init(0) }?;
        // SAFETY: a valid place for the count.
        unsafe { self.device_count(&mut count) }?;
        self.devices = u32::try_from(count).unwrap_or(0);
        Ok(())
    }

    /// Whose library it is.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Where it was found: the path or soname that the loader was given.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// How many devices it has.
    pub fn devices(&self) -> u32 {
        self.devices
    }

    /// What was tried before, and with, this library.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The functions.
    pub(crate) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// The kernel driver's version as its library counts it: CUDA 13.0 is 13000; HIP has its own numbers.
    pub fn version_of_driver(&self) -> Result<i32, HipError> {
        let mut version = 0;
        // SAFETY: a valid place for the version.
        unsafe { self.driver_version(&mut version) }.map(|()| version)
    }

    /// The runtime's version; the CUDA driver is its own runtime.
    pub fn version_of_runtime(&self) -> Result<i32, HipError> {
        if self.symbols.runtime_version.is_none() {
            return self.version_of_driver();
        }
        let mut version = 0;
        // SAFETY: a valid place for the version.
        unsafe { self.runtime_version(&mut version) }.map(|()| version)
    }

    /// Turns a status into an error with the call's name, the code in HIP's numbers, and the library's words.
    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<(), HipError> {
        if status == status::SUCCESS {
            return Ok(());
        }
        Err(HipError {
            call,
            code: status::translate(self.platform, status),
            name: self.words(status, self.symbols.error_name, self.symbols.error_name_into),
            text: self.words(status, self.symbols.error_text, self.symbols.error_text_into),
        })
    }

    fn words(
        &self,
        status: Status,
        returned: Option<unsafe extern "C" fn(Status) -> *const c_char>,
        written: Option<unsafe extern "C" fn(Status, *mut *const c_char) -> Status>,
    ) -> String {
        let mut text: *const c_char = std::ptr::null();
        match (returned, written) {
            // SAFETY: the library takes any number.
            (Some(function), _) => text = unsafe { function(status) },
            (None, Some(function)) => {
                // SAFETY: the library takes any number; the place is valid. It may leave it null.
                unsafe { function(status, &mut text) };
            }
            (None, None) => {}
        }
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: the library returns a string of its own that ends in a zero and lives as long as it.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
