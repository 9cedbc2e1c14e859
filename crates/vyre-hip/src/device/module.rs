//! Code objects, their kernels, and launching them.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::Arc;

use super::context::{Context, Handle};
use super::release::Release;
use super::stream::{Stream, keep};
use crate::api::{Api, FunctionAttribute, Platform, status};
use crate::error::{DeviceError, HipError};

/// A code object, loaded.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    handle: Handle,
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Function {
    module: Arc<Module>,
    handle: Handle,
    name: Arc<str>,
    attributes: FunctionAttributes,
}

/// What a kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionAttributes {
    /// 32-bit registers of an invocation.
    pub registers: u32,
    /// Bytes of local memory of an invocation: spills and arrays.
    pub local_bytes: u32,
    /// Bytes of shared memory that are declared in the source.
    pub shared_bytes: u32,
    /// Bytes of constant memory.
    pub constant_bytes: u32,
    /// Invocations that a workgroup may have.
    pub max_workgroup_invocations: u32,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Workgroups along each axis.
    pub grid: [u32; 3],
    /// Invocations of a workgroup along each axis.
    pub workgroup: [u32; 3],
    /// Bytes of shared memory beside what the source declares.
    pub shared_bytes: u32,
}

/// What the `extra` argument of a launch is made of. Only the end differs between the vendors.
const PARAM_BUFFER_POINTER: *mut c_void = std::ptr::without_provenance_mut(1);
const PARAM_BUFFER_SIZE: *mut c_void = std::ptr::without_provenance_mut(2);
const PARAM_END_HIP: *mut c_void = std::ptr::without_provenance_mut(3);
const PARAM_END_CUDA: *mut c_void = std::ptr::null_mut();

impl Module {
    /// Loads a code object: an ELF of the device's architecture, or a bundle that has one.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Module>, DeviceError> {
        // Neither library is told the size: it finds the image's end from its headers, and would read past
        // the end of one that was cut short.
        if !is_whole(image) {
            let source = HipError {
                call: "Module::load",
                code: status::INVALID_IMAGE,
                name: "not loaded".to_owned(),
                text: "neither a whole ELF file, nor an offload bundle, nor PTX that ends in a zero byte"
                    .to_owned(),
            };
            let arch = context.info().arch.clone();
            return Err(DeviceError::InvalidImage { arch, bytes: image.len(), source });
        }
        let handle = context.call(|api| {
            let mut handle = std::ptr::null_mut();
            // SAFETY: a valid place for the handle. The image is whole: its writer checked it.
            unsafe { api.module_load(&mut handle, image.as_ptr().cast()) }?;
            Ok(Handle(handle))
        });
        let handle = handle.map_err(|error| {
            let arch = context.info().arch.clone();
            match error {
                DeviceError::Hip(source) if source.code == status::NO_BINARY_FOR_GPU => {
                    DeviceError::NoCodeObject { arch, source }
                }
                DeviceError::Hip(source) if refuses_image(source.code) => {
                    DeviceError::InvalidImage { arch, bytes: image.len(), source }
                }
                other => other,
            }
        })?;
        Ok(Arc::new(Module { context: Arc::clone(context), handle }))
    }

    /// Whose it is.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Finds a kernel and loads it whole: a kernel that is loaded at its first launch would wait for ever
    /// behind a resident one.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Function, DeviceError> {
        let missing =
            || DeviceError::invalid("name", format!("`{name}`"), "an extern \"C\" kernel of the module");
        let symbol = CString::new(name).map_err(|_| missing())?;
        let found = self.context.call(|api| {
            let mut handle = std::ptr::null_mut();
            // SAFETY: a valid place for the handle, a live module, a string that ends in a zero.
            unsafe { api.module_function(&mut handle, self.handle.0, symbol.as_ptr()) }?;
            if api.symbols().function_load.is_some() {
                // SAFETY: the function was just found.
                unsafe { api.function_load(handle) }?;
            }
            let attributes = FunctionAttributes::query(api, Handle(handle))?;
            allow_shared(&self.context, api, Handle(handle), &attributes)?;
            Ok((Handle(handle), attributes))
        });
        let (handle, attributes) = found.map_err(|error| match error {
            DeviceError::Hip(source) if source.code == status::NOT_FOUND => missing(),
            other => other,
        })?;
        Ok(Function { module: Arc::clone(self), handle, name: name.into(), attributes })
    }

    /// The device's address of a global variable, and its size in bytes.
    pub fn global(&self, name: &str) -> Result<(u64, u64), DeviceError> {
        let missing = || DeviceError::invalid("name", format!("`{name}`"), "a global variable of the module");
        let symbol = CString::new(name).map_err(|_| missing())?;
        let found = self.context.call(|api| {
            let (mut address, mut bytes) = (std::ptr::null_mut(), 0);
            // SAFETY: valid places for both, a live module, a string that ends in a zero.
            unsafe { api.module_global(&mut address, &mut bytes, self.handle.0, symbol.as_ptr()) }?;
            Ok((address.addr() as u64, bytes as u64))
        });
        found.map_err(|error| match error {
            DeviceError::Hip(source) if source.code == status::NOT_FOUND => missing(),
            other => other,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.context.release(Release::Module(self.handle));
    }
}

fn refuses_image(code: c_int) -> bool {
    matches!(code, status::INVALID_IMAGE | status::INVALID_KERNEL_FILE | status::INVALID_SOURCE)
}

/// Whether the loader can find the image's end inside of it.
fn is_whole(image: &[u8]) -> bool {
    /// Compressed bundles of HIP, and fat binaries of CUDA, which say their own size.
    const OTHERS: [&[u8]; 2] = [b"CCOB", &[0x50, 0xed, 0x55, 0xba]];
    if image.starts_with(b"\x7fELF") {
        return elf_tables_are_inside(image);
    }
    if image.starts_with(BUNDLE) {
        return bundle_entries_are_inside(image).unwrap_or(false);
    }
    OTHERS.iter().any(|magic| image.starts_with(magic)) || is_text(image)
}

/// The little-endian number of `bytes` bytes at `at`.
fn field(image: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = image.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// Whether both header tables of a 64-bit little-endian ELF file end inside of it. Compilers write one of
/// them last, so that a file cut short fails this.
fn elf_tables_are_inside(image: &[u8]) -> bool {
    // Offset, and size and number of the entries: of the program header table, of the section header table.
    [(0x20, 0x36, 0x38), (0x28, 0x3a, 0x3c)].into_iter().all(|(offset, size, number)| {
        let bytes = || Some(field(image, size, 2)? * field(image, number, 2)?);
        let end = || field(image, offset, 8)?.checked_add(bytes()?);
        end().is_some_and(|end| end <= image.len() as u64)
    })
}

/// What an offload bundle of clang begins with. A count follows, then for each entry its offset, its size, the
/// length of its target's name, and the name.
const BUNDLE: &[u8] = b"__CLANG_OFFLOAD_BUNDLE__";

/// Whether every entry of an offload bundle ends inside of it; `None` if the table itself does not.
fn bundle_entries_are_inside(image: &[u8]) -> Option<bool> {
    let mut at = BUNDLE.len() + 8;
    for _ in 0..field(image, BUNDLE.len(), 8)? {
        let end = field(image, at, 8)?.checked_add(field(image, at + 8, 8)?)?;
        if end > image.len() as u64 {
            return Some(false);
        }
        let name = usize::try_from(field(image, at + 16, 8)?).ok()?;
        at = at.checked_add(24)?.checked_add(name)?;
    }
    Some(at <= image.len())
}

/// PTX, which ends in a zero byte.
fn is_text(image: &[u8]) -> bool {
    image
        .split_last()
        .is_some_and(|(&last, text)| last == 0 && !text.is_empty() && text.iter().all(u8::is_ascii))
}

impl FunctionAttributes {
    fn query(api: &Api, function: Handle) -> Result<FunctionAttributes, HipError> {
        let query = |attribute: FunctionAttribute| {
            let mut value = 0;
            // SAFETY: a valid place for the value, and a live function.
            unsafe { api.function_attribute(&mut value, attribute as c_uint, function.0) }?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(FunctionAttributes {
            registers: query(FunctionAttribute::Registers)?,
            local_bytes: query(FunctionAttribute::LocalBytes)?,
            shared_bytes: query(FunctionAttribute::SharedBytes)?,
            constant_bytes: query(FunctionAttribute::ConstantBytes)?,
            max_workgroup_invocations: query(FunctionAttribute::MaxThreadsPerBlock)?,
        })
    }
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The module it is of.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// What it uses.
    pub fn attributes(&self) -> FunctionAttributes {
        self.attributes
    }

    /// How many workgroups of that size a multiprocessor can have resident at once.
    pub fn resident_workgroups(&self, invocations: u32, shared_bytes: u32) -> Result<u32, DeviceError> {
        let invocations = c_int::try_from(invocations)
            .map_err(|_| DeviceError::invalid("invocations", invocations, "a workgroup's size"))?;
        self.check_shared(shared_bytes)?;
        self.module.context.call(|api| {
            let mut blocks = 0;
            // SAFETY: a valid place for the count, and a live function.
            unsafe { api.occupancy(&mut blocks, self.handle.0, invocations, shared_bytes as usize) }?;
            Ok(u32::try_from(blocks).unwrap_or(0))
        })
    }

    /// Enqueues a launch. `arguments` are the kernel's parameters as one buffer, laid out as a C struct of
    /// them; they are copied. An empty grid launches nothing.
    ///
    /// # Safety
    ///
    /// The arguments are what the kernel expects, and every address in them is valid until the stream is done
    /// with the launch (see [`Stream::keep_alive`]).
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        if !self.prepare(stream, config)? {
            return Ok(());
        }
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.workgroup);
        stream.enqueue([keep(&self.module)], |api, stream| {
            let mut size = arguments.len();
            let end = match api.platform() {
                Platform::Amd => PARAM_END_HIP,
                Platform::Nvidia => PARAM_END_CUDA,
            };
            let mut extra = [
                PARAM_BUFFER_POINTER,
                arguments.as_ptr().cast_mut().cast(),
                PARAM_BUFFER_SIZE,
                (&raw mut size).cast(),
                end,
            ];
            // A kernel without parameters has no buffer.
            let extra = if arguments.is_empty() { std::ptr::null_mut() } else { extra.as_mut_ptr() };
            let (parameters, shared) = (std::ptr::null_mut(), config.shared_bytes);
            // SAFETY: live handles, checked sizes, a well-formed list; the arguments are the caller's promise.
            unsafe { api.launch(self.handle.0, gx, gy, gz, bx, by, bz, shared, stream.0, parameters, extra) }
        })
    }

    /// Enqueues a launch whose workgroups are all resident at once, so that they can wait for one another.
    /// `parameters` has one item for each parameter of the kernel.
    ///
    /// # Safety
    ///
    /// As for [`Function::launch`]; and each parameter's bytes are at least as many as its type has.
    pub unsafe fn launch_cooperative(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
        parameters: &[&[u8]],
    ) -> Result<(), DeviceError> {
        if !self.module.context.info().cooperative_launch {
            let what = format!("cooperative launch on {}", self.module.context.info().name);
            let remedy = "split the kernel at its grid barriers".to_owned();
            return Err(DeviceError::Unsupported { what, remedy });
        }
        if !self.prepare(stream, config)? {
            return Ok(());
        }
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.workgroup);
        let mut addresses: Vec<*mut c_void> =
            parameters.iter().map(|bytes| bytes.as_ptr().cast_mut().cast()).collect();
        stream.enqueue([keep(&self.module)], |api, stream| {
            let (parameters, shared) = (addresses.as_mut_ptr(), config.shared_bytes);
            // SAFETY: live handles and checked sizes; the parameters are the caller's promise.
            unsafe {
                api.launch_cooperative(self.handle.0, gx, gy, gz, bx, by, bz, shared, stream.0, parameters)
            }
        })
    }

    /// Checks a launch before it is made. Says whether there is anything to launch.
    fn prepare(&self, stream: &Stream, config: &LaunchConfig) -> Result<bool, DeviceError> {
        let context = &self.module.context;
        context.must_own("stream", stream.context())?;
        let invocations = config.workgroup.iter().fold(1_u64, |n, &axis| n.saturating_mul(axis.into()));
        let limit = self.attributes.max_workgroup_invocations;
        if invocations == 0 || invocations > limit.into() {
            let expected = format!("1 to {limit} invocations for `{}`", self.name);
            return Err(DeviceError::invalid("workgroup", format!("{:?}", config.workgroup), expected));
        }
        let axes = [
            ("workgroup", config.workgroup, context.info().max_workgroup),
            ("grid", config.grid, context.info().max_grid),
        ];
        for (argument, got, limit) in axes {
            if got.iter().zip(limit).any(|(&got, limit)| got > limit) {
                return Err(DeviceError::invalid(argument, format!("{got:?}"), format!("at most {limit:?}")));
            }
        }
        self.check_shared(config.shared_bytes)?;
        Ok(!config.grid.contains(&0))
    }

    fn check_shared(&self, shared_bytes: u32) -> Result<(), DeviceError> {
        let declared = self.attributes.shared_bytes;
        let most = self.module.context.info().shared_bytes_opt_in;
        if shared_bytes.saturating_add(declared) <= most {
            return Ok(());
        }
        let left = most.saturating_sub(declared);
        let expected = format!("at most {left} beside the {declared} that `{}` declares", self.name);
        Err(DeviceError::invalid("shared_bytes", shared_bytes, expected))
    }
}

/// Asks for all the shared memory there is: NVIDIA's launches get less without asking.
fn allow_shared(
    context: &Context,
    api: &Api,
    function: Handle,
    attributes: &FunctionAttributes,
) -> Result<(), HipError> {
    let info = context.info();
    if info.platform == Platform::Amd || info.shared_bytes_opt_in <= info.shared_bytes {
        return Ok(());
    }
    let most = info.shared_bytes_opt_in.saturating_sub(attributes.shared_bytes);
    let (attribute, most) = (FunctionAttribute::MaxDynamicSharedBytes, c_int::try_from(most).unwrap_or(0));
    // SAFETY: a live function.
    unsafe { api.function_set_attribute(function.0, attribute as c_uint, most) }
}
