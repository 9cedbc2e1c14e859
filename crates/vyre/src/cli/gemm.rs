//! `vyre gemm`.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use vyre::BackendError;
use vyre::driver::gemm::{GemmOutput, GemmProblem};
use vyre::gemm::{self, CpuGemm, GemmDevice, HipGemm};
use vyre::hip::HipBackend;
use vyre::hip::api::Api;
use vyre::hip::compile::{CompileEvent, CompilerOptions};

use super::{Backend, messages};

/// What `--help` says behind the options.
const HELP: &str = "\
C = alpha * A * B + beta * C with A (m x k) and B (k x n) in fp16, sums in fp32, row-major and dense, on random
data. The result is verified by every gate of docs/gemm.md, then timed.

Exit status:
  0  every gate was passed
  1  one was not
  2  something went wrong";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct GemmArguments {
    /// Rows of A and C.
    #[arg(long, value_name = "M")]
    m: u64,
    /// Columns of B and C.
    #[arg(long, value_name = "N")]
    n: u64,
    /// Columns of A, rows of B.
    #[arg(long, value_name = "K")]
    k: u64,
    /// Products, one behind the other.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    batch: u64,
    /// Factor of the product.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    alpha: f32,
    /// Factor of C.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    beta: f32,
    /// What C holds.
    #[arg(long, value_enum, default_value_t = Out::F32)]
    out: Out,
    /// Where to run; auto is a GPU if there is one.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Where the random numbers begin.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Samples of the time; the median is reported.
    #[arg(long, value_name = "COUNT", default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Write the report to this file as well, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Out {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

pub(crate) fn run(arguments: &GemmArguments) -> anyhow::Result<ExitCode> {
    let GemmArguments { m, n, k, batch, alpha, beta, .. } = *arguments;
    let problem = GemmProblem { batch, alpha, beta, ..GemmProblem::dense(m, n, k) };
    let output = match arguments.out {
        Out::F16 => GemmOutput::F16,
        Out::F32 => GemmOutput::F32,
    };
    let device = open(arguments.backend)?;
    let report = gemm::run(device.as_ref(), &problem, output, arguments.seed, arguments.repeat)?;
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, report.to_markdown())
            .with_context(|| format!("{}: cannot write the report", path.display()))?;
    }
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.to_markdown() };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the report")?;
        }
        _ => {}
    }
    Ok(ExitCode::from(u8::from(!report.passed)))
}

fn open(backend: Backend) -> anyhow::Result<Box<dyn GemmDevice>> {
    let hip = match backend {
        Backend::Cpu => return Ok(Box::new(CpuGemm::default())),
        Backend::Auto | Backend::Hip => open_hip(),
    };
    match hip {
        Ok(hip) => Ok(Box::new(HipGemm::new(&hip)?)),
        // A GPU that does not start, or has no compiler, is an error: it is not quietly passed over.
        Err(error @ BackendError::Unsupported { .. }) if matches!(backend, Backend::Auto) => {
            messages::plain(&format!("vyre: on the host's threads, for there is no GPU: {error}\n"));
            Ok(Box::new(CpuGemm::default()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The first GPU, with a line on stderr for each run of a compiler.
fn open_hip() -> Result<HipBackend, BackendError> {
    let api = Api::open().map_err(vyre::hip::DeviceError::from)?;
    let mut options = CompilerOptions::from_environment().map_err(|error| BackendError::Unsupported {
        what: error.to_string(),
        remedy: "see docs/gpu-setup.md".to_owned(),
    })?;
    options.observer = Some(Arc::new(|event: &CompileEvent<'_>| {
        messages::plain(&match event {
            CompileEvent::Started { name, arch, compiler } => {
                format!("compiling {name} for {arch} by {} ...\n", compiler.display())
            }
            CompileEvent::Finished { name, arch, elapsed } => {
                format!("compiled {name} for {arch} in {:.1} s\n", elapsed.as_secs_f64())
            }
        });
    }));
    HipBackend::open_with(&api, 0, options)
}
