//! One device of this process.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vyre_driver::Generation;

use super::info::{DeviceInfo, device_of};
use super::release::Deferred;
use crate::api::{Api, Platform, RawHandle, status};
use crate::error::{DeviceError, HipError};

/// An opaque pointer of the library. Both vendors' handles may be used from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handle(pub(crate) RawHandle);

// SAFETY: the libraries are thread-safe and their handles are not bound to threads.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// A device, retained. On NVIDIA it is the primary context, which other libraries of the process share.
#[derive(Debug)]
pub struct Context {
    api: Arc<Api>,
    info: DeviceInfo,
    generation: Generation,
    device: c_int,
    primary: Handle,
    /// The first status that said the device is lost.
    lost: OnceLock<HipError>,
    /// Bytes of device memory in use, and the most there ever were. Statistics: no order is relied on.
    in_use: AtomicU64,
    peak: AtomicU64,
    deferred: Mutex<Deferred>,
}

/// How much device memory there is and is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes allocated through this context.
    pub in_use: u64,
    /// The most bytes that were allocated through this context at once.
    pub peak: u64,
    /// Bytes free on the device, whoever uses the rest.
    pub free: u64,
    /// Bytes of the device.
    pub total: u64,
}

impl Context {
    /// Retains device `ordinal`. `generation` is the backend's incarnation that it is opened for.
    pub fn open(api: &Arc<Api>, ordinal: u32, generation: Generation) -> Result<Arc<Context>, DeviceError> {
        if ordinal >= api.devices() {
            let expected = format!("less than {}, the number of devices", api.devices());
            return Err(DeviceError::invalid("ordinal", ordinal, expected));
        }
        let info = DeviceInfo::query(api, ordinal)?;
        let device = device_of(api, ordinal)?;
        let mut primary = std::ptr::null_mut();
        if api.platform() == Platform::Nvidia {
            // SAFETY: a valid place for the context, and a device of the library's.
            unsafe { api.context_retain(&mut primary, device) }?;
        }
        let context = Context {
            api: Arc::clone(api),
            info,
            generation,
            device,
            primary: Handle(primary),
            lost: OnceLock::new(),
            in_use: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            deferred: Mutex::default(),
        };
        // HIP makes its context at the first call: fail here rather than later.
        context.call(|_| Ok(()))?;
        Ok(Arc::new(context))
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The library.
    pub fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// The incarnation that it was opened for.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The first status that said the device is lost, if one did.
    pub fn lost(&self) -> Option<&HipError> {
        self.lost.get()
    }

    /// How much memory there is and is used.
    pub fn memory_use(&self) -> Result<MemoryUse, DeviceError> {
        let (free, total) = self.call(|api| {
            let (mut free, mut total) = (0, 0);
            // SAFETY: valid places for both sizes.
            unsafe { api.memory_info(&mut free, &mut total) }.map(|()| (free as u64, total as u64))
        })?;
        let (in_use, peak) = (self.in_use.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed));
        Ok(MemoryUse { in_use, peak, free, total })
    }

    /// Makes a call with this context current, unless the device is lost.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&Api) -> Result<T, HipError>) -> Result<T, DeviceError> {
        if let Some(first) = self.lost.get() {
            return Err(DeviceError::Lost(first.clone()));
        }
        self.make_current().and_then(|()| call(&self.api)).map_err(|error| self.classify(error))
    }

    /// A call that allocates: its lack of memory is told apart, with what there is.
    pub(crate) fn allocate<T>(
        &self,
        what: &str,
        requested: u64,
        call: impl FnOnce(&Api) -> Result<T, HipError>,
    ) -> Result<T, DeviceError> {
        self.call(call).map_err(|error| match error {
            DeviceError::Hip(source) if source.code == status::OUT_OF_MEMORY => {
                let available = self.memory_use().map_or(0, |memory| memory.free);
                DeviceError::OutOfMemory { what: what.to_owned(), requested, available, source }
            }
            other => other,
        })
    }

    /// Other code of the process may have made another context current on this thread, so this is done for
    /// each call. It costs tens of nanoseconds.
    fn make_current(&self) -> Result<(), HipError> {
        match self.api.platform() {
            // SAFETY: a device of the library's; HIP's handles are the ordinals.
            Platform::Amd => unsafe { self.api.device_set(self.device) },
            // SAFETY: the context is retained for as long as `self` lives.
            Platform::Nvidia => unsafe { self.api.context_set_current(self.primary.0) },
        }
    }

    fn classify(&self, error: HipError) -> DeviceError {
        if !error.is_sticky() {
            return DeviceError::Hip(error);
        }
        // The first one wins: what follows a fault is noise.
        DeviceError::Lost(
            self.lost
                .get_or_init(|| {
                    tracing::error!(device = self.info.ordinal, %error, "device lost");
                    error
                })
                .clone(),
        )
    }

    pub(crate) fn count_allocated(&self, bytes: u64) {
        let now = self.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn count_freed(&self, bytes: u64) {
        self.in_use.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn deferred(&self) -> MutexGuard<'_, Deferred> {
        // A list of handles is whole whatever panicked beside it.
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what belongs to another context.
    pub(crate) fn must_own(&self, argument: &'static str, owner: &Arc<Context>) -> Result<(), DeviceError> {
        if std::ptr::eq(self, Arc::as_ptr(owner)) {
            return Ok(());
        }
        let got = format!("one of device {}, generation {}", owner.info.ordinal, owner.generation);
        let expected =
            format!("one of this context: device {}, generation {}", self.info.ordinal, self.generation);
        Err(DeviceError::InvalidArgument { argument, got, expected })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.api.platform() == Platform::Nvidia
            // SAFETY: retained once by `open`; everything made in it held an `Arc` and is gone.
            && let Err(error) = unsafe { self.api.context_release(self.device) }
        {
            tracing::warn!(device = self.info.ordinal, %error, "releasing the primary context failed");
        }
    }
}

/// Flags of streams, events and host memory that mean the same to both vendors.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
