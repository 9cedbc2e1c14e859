//! The table filled by linking (feature `hip-link`), and our signatures held against hip-sys's.
//!
//! hip-sys was generated from ROCm 5 headers, so its functions are a second opinion on each signature that
//! the table writes down by hand. What cannot be compared: `hipGetDevicePropertiesR0600` and
//! `hipModuleLaunchCooperativeKernel`, which it does not have (they are looked up in the linked library), and
//! what a `void *` of ours points to. No function is called through hip-sys's types: its `hipError_t` is a
//! Rust enum, and a newer library may return a number that it does not have.

use std::ffi::{c_char, c_int, c_uint, c_void};

use hip_sys::hiprt;
use libloading::os::unix::Library;

use super::symbols::{RawHandle, Status, symbol_table};

/// A type of ours that a call passes or returns exactly as it does `Theirs`.
trait SameAbi<Theirs> {}

macro_rules! same_abi {
    ($($ours:ty = $theirs:ty;)*) => {
        $(
            impl SameAbi<$theirs> for $ours {}
            const _: () = assert!(size_of::<$ours>() == size_of::<$theirs>());
            const _: () = assert!(align_of::<$ours>() == align_of::<$theirs>());
        )*
    };
}

same_abi! {
    u8 = u8;
    c_int = c_int;
    c_uint = c_uint;
    u64 = u64;
    usize = usize;
    f32 = f32;
    // Integers against enums of theirs that are `repr(u32)`.
    Status = hiprt::hipError_t;
    c_uint = hiprt::hipDeviceAttribute_t;
    c_uint = hiprt::hipFunction_attribute;
    c_uint = hiprt::hipStreamCaptureMode;
}

impl<Ours: SamePointee<Theirs>, Theirs> SameAbi<*mut Theirs> for *mut Ours {}
impl<Ours: SamePointee<Theirs>, Theirs> SameAbi<*const Theirs> for *const Ours {}

/// What a pointer of ours points to, where theirs points to `Theirs`.
trait SamePointee<Theirs> {}

/// An opaque type, or bytes.
impl<Theirs> SamePointee<Theirs> for c_void {}
impl SamePointee<c_char> for c_char {}
impl SamePointee<c_int> for c_int {}
impl SamePointee<usize> for usize {}
impl SamePointee<f32> for f32 {}
impl<Ours: SamePointee<Theirs>, Theirs> SamePointee<*mut Theirs> for *mut Ours {}

/// A function pointer type of ours that may stand for one of theirs.
trait StandsFor<Theirs> {}

macro_rules! stands_for {
    ($($ours:ident $theirs:ident),*) => {
        impl<R: SameAbi<S>, S, $($ours: SameAbi<$theirs>, $theirs),*>
            StandsFor<unsafe extern "C" fn($($theirs),*) -> S> for unsafe extern "C" fn($($ours),*) -> R
        {
        }
    };
}

stands_for!(A1 B1);
stands_for!(A1 B1, A2 B2);
stands_for!(A1 B1, A2 B2, A3 B3);
stands_for!(A1 B1, A2 B2, A3 B3, A4 B4);
stands_for!(A1 B1, A2 B2, A3 B3, A4 B4, A5 B5, A6 B6, A7 B7, A8 B8, A9 B9, A10 B10, A11 B11);

fn checked<Ours: StandsFor<Theirs>, Theirs>(_: Theirs) {}

macro_rules! any_type {
    ($type:ty) => {
        _
    };
}

/// Returns from the surrounding function when the row is the one asked for.
macro_rules! linked {
    ($wanted:ident, none, ($($type:ty),*) -> $result:ty) => {};
    ($wanted:ident, hipGetDevicePropertiesR0600, ($($type:ty),*) -> $result:ty) => {};
    ($wanted:ident, hipModuleLaunchCooperativeKernel, ($($type:ty),*) -> $result:ty) => {};
    ($wanted:ident, $hip:ident, ($($type:ty),*) -> $result:ty) => {
        if $wanted == stringify!($hip) {
            let theirs: unsafe extern "C" fn($(any_type!($type)),*) -> _ = hiprt::$hip;
            checked::<unsafe extern "C" fn($($type),*) -> $result, _>(theirs);
            return Some(theirs as *mut c_void);
        }
    };
}

macro_rules! define_lookup {
    (
        status { $($need:ident $field:ident($($argument:ident: $type:ty),*) = $hip:ident, $cuda:ident;)* }
        text { $($text:ident($code:ident: $code_type:ty) = $text_hip:ident;)* }
    ) => {
        /// The address of the linked library's function `wanted`.
        pub(super) fn lookup(wanted: &str) -> Option<*mut c_void> {
            $(linked!(wanted, $hip, ($($type),*) -> Status);)*
            $(linked!(wanted, $text_hip, ($code_type) -> *const c_char);)*
            let process = Library::this();
            // SAFETY: only the address is taken; nothing is read or called through it here.
            let symbol = unsafe { process.get::<*mut c_void>(wanted) }.ok()?;
            Some(*symbol).filter(|address| !address.is_null())
        }
    };
}

symbol_table!(define_lookup);
