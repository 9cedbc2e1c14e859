//! What is built: the kernels of `kernels/`, and what the backend makes of programs and of megakernels.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use vyre::scan::scan_handler;
use vyre_driver::VyreBackend as _;
use vyre_foundation::{ValidatedProgram, limits, text, validate};
use vyre_hip::OfflineBackend;
use vyre_hip::compile::{Architecture, CodeObject, CompileRequest, EmittedSource, PrebuiltObject};
use vyre_hip::emit::LineMap;
use vyre_hip::kernels::{self, Source};
use vyre_runtime::{Megakernel, MegakernelError, OpcodeHandler, SlotOpcode};

/// The most that is read of a program: 64 bytes for each node that one may have.
const MAX_TEXT_BYTES: u64 = 64 * limits::MAX_NODES;

/// One source to build.
pub(crate) enum Kernel {
    ByHand(&'static Source),
    Emitted {
        /// The program's name.
        name: String,
        /// What it is for: the file it is from, or the megakernel.
        origin: String,
        source: String,
        lines: LineMap,
    },
}

/// A handler of a megakernel to build: `0x40=add_one.vir`.
#[derive(Clone, Debug)]
pub(crate) struct HandlerFile {
    opcode: u32,
    file: PathBuf,
}

impl FromStr for HandlerFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| match digits.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        let (opcode, file) = text.split_once('=').ok_or("write OPCODE=FILE, e.g. 0x40=add_one.vir")?;
        let opcode = number(opcode).map_err(|error| format!("the opcode `{opcode}`: {error}"))?;
        Ok(Self { opcode, file: file.into() })
    }
}

/// A megakernel of the user's: its handlers in order, and its workgroup's invocations where they are not the default.
pub(crate) struct Handlers<'a> {
    pub(crate) files: &'a [HandlerFile],
    pub(crate) workgroup_size: Option<u32>,
}

impl Kernel {
    /// The kernels of `kernels/`, then those of the megakernels that come along, of the user's, and of programs.
    pub(crate) fn all(programs: &[PathBuf], handlers: &Handlers<'_>) -> Result<Vec<Kernel>> {
        let mut all: Vec<Kernel> = kernels::kernels().map(Kernel::ByHand).collect();
        let mut add = |new: Vec<Kernel>| {
            for new in new {
                // The same program from two files is one code object.
                if !all.iter().any(|old| old.source() == new.source()) {
                    all.push(new);
                }
            }
        };
        add(megakernel("the megakernel of the built-in opcodes", Vec::new(), None)?);
        add(megakernel("the scanner's megakernel", vec![scan_handler()], None)?);
        if !handlers.files.is_empty() {
            let read = |handler: &HandlerFile| {
                let path = || handler.file.display().to_string();
                let opcode = SlotOpcode::new(handler.opcode);
                if !opcode.is_user() {
                    return Err(MegakernelError::ReservedOpcode { opcode })
                        .with_context(|| format!("--handler {:#x}={}", handler.opcode, path()));
                }
                let program = read(&handler.file).with_context(path)?;
                OpcodeHandler::from_program(opcode, &program).with_context(path)
            };
            let handlers_read = handlers.files.iter().map(read).collect::<Result<_>>()?;
            add(megakernel("the megakernel of --handler", handlers_read, handlers.workgroup_size)?);
        }
        for file in programs {
            let path = file.display().to_string();
            let compile = |backend: Arc<OfflineBackend>| {
                backend.compile(&read(file)?)?;
                Ok(())
            };
            add(recorded(&path, compile).with_context(|| path.clone())?);
        }
        Ok(all)
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Kernel::ByHand(source) => source.kernel_name().unwrap_or(source.path),
            Kernel::Emitted { name, .. } => name,
        }
    }

    /// Where it is from.
    pub(crate) fn origin(&self) -> &str {
        match self {
            Kernel::ByHand(source) => source.path,
            Kernel::Emitted { origin, .. } => origin,
        }
    }

    pub(crate) fn source(&self) -> &str {
        match self {
            Kernel::ByHand(source) => source.text,
            Kernel::Emitted { source, .. } => source,
        }
    }

    /// Lends what a compiler is asked.
    pub(crate) fn request<R>(&self, arch: &Architecture, with: impl FnOnce(&CompileRequest<'_>) -> R) -> R {
        match self {
            Kernel::ByHand(source) => with(&CompileRequest {
                name: self.name(),
                source: source.text,
                headers: &source.headers(),
                arch,
                flags: &[],
                lines: None,
            }),
            Kernel::Emitted { name, source, lines, .. } => {
                EmittedSource { name, source, lines }.request(arch, with)
            }
        }
    }

    /// Its row of the manifest.
    pub(crate) fn row(&self, request: &CompileRequest<'_>, object: &CodeObject) -> PrebuiltObject {
        match self {
            Kernel::ByHand(_) => PrebuiltObject::new(request, object, self.name()),
            Kernel::Emitted { .. } => PrebuiltObject::of_emitted(request, object),
        }
    }
}

fn read(file: &Path) -> Result<ValidatedProgram> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        bail!("it has more than the {MAX_TEXT_BYTES} bytes of the longest program taken: name a .vir file");
    }
    Ok(validate(text::parse(std::str::from_utf8(&bytes)?)?)?)
}

/// The kernels of a megakernel: those of its batches and that of its sessions.
fn megakernel(
    origin: &str,
    handlers: Vec<OpcodeHandler>,
    workgroup_size: Option<u32>,
) -> Result<Vec<Kernel>> {
    let build = |backend: Arc<OfflineBackend>| {
        let mut builder = Megakernel::builder(backend.clone()).handlers(handlers);
        if let Some(size) = workgroup_size {
            builder = builder.slots(size).workgroup_size(size);
        }
        backend.compile_resident(&builder.build()?.programs().spec(1))?;
        Ok(())
    };
    recorded(origin, build).with_context(|| origin.to_owned())
}

/// All that a backend compiles meanwhile. No source depends on the architecture.
fn recorded(origin: &str, compile: impl FnOnce(Arc<OfflineBackend>) -> Result<()>) -> Result<Vec<Kernel>> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (keep, to) = (Arc::clone(&kept), origin.to_owned());
    let backend = OfflineBackend::new(&"sm_90a".parse()?, move |&EmittedSource { name, source, lines }| {
        keep.lock().unwrap_or_else(PoisonError::into_inner).push(Kernel::Emitted {
            name: name.to_owned(),
            origin: to.clone(),
            source: source.to_owned(),
            lines: lines.clone(),
        });
        Ok(())
    });
    compile(Arc::new(backend))?;
    let kept = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(kept)
}
