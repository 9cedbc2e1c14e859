//! What is built: the kernels of `kernels/`, and the programs of `.vir` files as the backend emits them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vyre_foundation::text;
use vyre_foundation::validate::validate;
use vyre_hip::compile::{Architecture, CompileRequest};
use vyre_hip::emit::{self, EmitOptions, EmittedKernel, GridBarriers};
use vyre_hip::kernels::{self, Source};

/// Digits of the source's digest in the name of an emitted kernel's file: programs may have the same name.
const DIGITS: usize = 16;

/// One source to build.
pub(crate) enum Kernel {
    ByHand(&'static Source),
    Emitted {
        /// The program's name.
        name: String,
        /// The file it is from.
        file: PathBuf,
        emitted: EmittedKernel,
    },
}

impl Kernel {
    /// The kernels of `kernels/`, then those of the programs.
    pub(crate) fn all(programs: &[PathBuf]) -> Result<Vec<Kernel>> {
        let mut all: Vec<Kernel> = kernels::kernels().map(Kernel::ByHand).collect();
        for file in programs {
            for new in emit(file).with_context(|| file.display().to_string())? {
                // The same program from two files is one code object.
                if !all.iter().any(|old| old.source() == new.source()) {
                    all.push(new);
                }
            }
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
    pub(crate) fn origin(&self) -> &Path {
        match self {
            Kernel::ByHand(source) => Path::new(source.path),
            Kernel::Emitted { file, .. } => file,
        }
    }

    pub(crate) fn source(&self) -> &str {
        match self {
            Kernel::ByHand(source) => source.text,
            Kernel::Emitted { emitted, .. } => &emitted.source,
        }
    }

    /// The name of its file, without the extension.
    pub(crate) fn stem(&self, request: &CompileRequest<'_>) -> String {
        match self {
            Kernel::ByHand(_) => self.name().to_owned(),
            Kernel::Emitted { name, .. } => {
                let digest = request.source_digest();
                format!("{name}-{}", digest.get(..DIGITS).unwrap_or(&digest))
            }
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
            Kernel::Emitted { name, emitted, .. } => CompileRequest::of_emitted(name, emitted, arch, with),
        }
    }
}

/// The program of a file, in every form that a backend may ask for.
fn emit(file: &Path) -> Result<Vec<Kernel>> {
    let program = validate(text::parse(&fs::read_to_string(file)?)?)?;
    let mut forms = vec![GridBarriers::Native];
    if program.facts().grid_barriers {
        forms.push(GridBarriers::Split);
    }
    let kernel = |form| {
        let emitted = emit::kernel(&program, &EmitOptions::default().with_grid_barriers(form))?;
        Ok(Kernel::Emitted { name: program.program().name.clone(), file: file.to_owned(), emitted })
    };
    forms.into_iter().map(kernel).collect()
}
