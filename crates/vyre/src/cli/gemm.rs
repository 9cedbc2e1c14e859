//! `vyre gemm`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use vyre::BackendError;
use vyre::driver::gemm::{GemmError, GemmOutput, GemmProblem};
use vyre::gemm::{self, CpuGemm, GemmDevice, HipGemm};
use vyre::hip::HipBackend;
use vyre::hip::api::Api;
use vyre::hip::compile::{CompileEvent, CompilerOptions};

use super::{Backend, messages};

/// What `--help` says behind the options.
const HELP: &str = "\
C = alpha * A * B + beta * C with A (m x k) and B (k x n) in fp16, sums in fp32, row-major, on random data. The
result is verified by every gate of docs/gemm.md, then timed. Leading dimensions and strides count elements.

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
    /// From one row of A to the next, at least K [default: K]
    #[arg(long, value_name = "ELEMENTS")]
    lda: Option<u64>,
    /// From one row of B to the next, at least N [default: N]
    #[arg(long, value_name = "ELEMENTS")]
    ldb: Option<u64>,
    /// From one row of C to the next, at least N [default: N]
    #[arg(long, value_name = "ELEMENTS")]
    ldc: Option<u64>,
    /// From one A of the batch to the next; 0 for one that all share [default: M * LDA]
    #[arg(long, value_name = "ELEMENTS")]
    stride_a: Option<u64>,
    /// From one B of the batch to the next; 0 for one that all share [default: K * LDB]
    #[arg(long, value_name = "ELEMENTS")]
    stride_b: Option<u64>,
    /// From one C of the batch to the next [default: M * LDC]
    #[arg(long, value_name = "ELEMENTS")]
    stride_c: Option<u64>,
    /// Factor of the product.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = factor)]
    alpha: f32,
    /// Factor of C.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = factor)]
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

/// A factor as it is typed.
fn factor(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "no number; pass one like 0.5".to_owned())?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(format!("not finite in fp32; pass a number from {:e} to {:e}", f32::MIN, f32::MAX))
    }
}

impl GemmArguments {
    fn problem(&self) -> GemmProblem {
        let GemmArguments { m, n, k, batch, alpha, beta, .. } = *self;
        let (lda, ldb, ldc) = (self.lda.unwrap_or(k), self.ldb.unwrap_or(n), self.ldc.unwrap_or(n));
        // Where this saturates, the problem is refused.
        let stride = |given: Option<u64>, rows: u64, ld| given.unwrap_or_else(|| rows.saturating_mul(ld));
        let stride_a = stride(self.stride_a, m, lda);
        let stride_b = stride(self.stride_b, k, ldb);
        let stride_c = stride(self.stride_c, m, ldc);
        GemmProblem { m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c, alpha, beta }
    }

    fn output(&self) -> GemmOutput {
        match self.out {
            Out::F16 => GemmOutput::F16,
            Out::F32 => GemmOutput::F32,
        }
    }
}

pub(crate) fn run(arguments: &GemmArguments) -> anyhow::Result<ExitCode> {
    // What is wrong with the arguments is said before a device is looked for.
    let problem = arguments.problem();
    if let Err(GemmError::LeadingDimension { matrix, got, columns }) =
        problem.check(u64::MAX, u64::MAX, u64::MAX)
    {
        let (flag, size) = (matrix.to_lowercase(), if matrix == "A" { "K" } else { "N" });
        bail!("--ld{flag} {got} is less than {size} = {columns}; pass at least {columns}");
    }
    gemm::admit(&problem, arguments.output())?;
    let markdown = arguments.markdown.as_deref().map(open_report).transpose()?;
    let device = open(arguments.backend)?;
    report(arguments, device.as_ref(), markdown, &mut io::stdout().lock())
}

/// The file of the report, before time is spent on what it could not take. It keeps what is in it until then.
fn open_report(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("--markdown {}: cannot be written; name a file that can", path.display()))
}

/// Runs the product, writes what was found, and turns the verdict into the exit status.
fn report(
    arguments: &GemmArguments,
    device: &dyn GemmDevice,
    markdown: Option<File>,
    to: &mut dyn io::Write,
) -> anyhow::Result<ExitCode> {
    let (problem, output) = (arguments.problem(), arguments.output());
    let report = gemm::run(device, &problem, output, arguments.seed, arguments.repeat)?;
    if let (Some(mut file), Some(path)) = (markdown, &arguments.markdown) {
        // A pipe has no length.
        let emptied = if file.metadata().is_ok_and(|data| data.is_file()) { file.set_len(0) } else { Ok(()) };
        emptied
            .and_then(|()| file.write_all(report.to_markdown().as_bytes()))
            .with_context(|| format!("{}: cannot write the report", path.display()))?;
    }
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.to_markdown() };
    match to.write_all(text.as_bytes()) {
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vyre::gemm::{GemmElements, GemmFacts, GemmOperands, GemmTiming};

    use super::*;

    /// The host's product, with one element changed or none.
    struct Nudged(f64);

    impl GemmDevice for Nudged {
        fn facts(&self, problem: &GemmProblem, operands: &GemmOperands) -> Result<GemmFacts, BackendError> {
            CpuGemm::default().facts(problem, operands)
        }

        fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError> {
            CpuGemm::default().multiply(problem, operands)?;
            let (at, by) = (operands.first as usize + 1, self.0);
            let c: &mut GemmElements = &mut operands.c;
            c.set(at, c.value(at) + by);
            Ok(())
        }

        fn time(
            &self,
            problem: &GemmProblem,
            operands: &mut GemmOperands,
            samples: u32,
        ) -> Result<GemmTiming, BackendError> {
            CpuGemm::default().time(problem, operands, samples)
        }

        fn copy_rate(&self) -> Result<f64, BackendError> {
            Ok(1e9)
        }
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gemm: GemmArguments,
    }

    fn arguments(more: &[&str]) -> GemmArguments {
        let size = ["", "--m", "5", "--n", "4", "--k", "3", "--repeat", "1"];
        Line::parse_from(size.iter().chain(more)).gemm
    }

    fn said(more: &[&str], device: &dyn GemmDevice) -> (ExitCode, String) {
        let mut text = Vec::new();
        let status = report(&arguments(more), device, None, &mut text).expect("runs");
        (status, String::from_utf8(text).expect("text"))
    }

    #[test]
    fn a_wrong_product_is_status_one() {
        let (status, text) = said(&[], &Nudged(0.5));
        assert_eq!(status, ExitCode::from(1));
        assert!(text.starts_with("# GEMM 5 x 4 x 3: WRONG\n") && text.contains("| exact | NO |"), "{text}");
        let (status, text) = said(&["--json", "--out", "f16"], &Nudged(0.5));
        assert!(status == ExitCode::from(1) && text.contains("\"passed\":false"), "{text}");
        let (status, text) = said(&[], &Nudged(0.0));
        assert!(status == ExitCode::SUCCESS && text.contains(": right\n"), "{text}");
    }

    #[test]
    fn strides_follow_leading_dimensions() {
        let p = arguments(&["--lda", "7", "--ldb", "8", "--ldc", "9", "--stride-b", "0"]).problem();
        assert_eq!([p.lda, p.ldb, p.ldc, p.stride_a, p.stride_b, p.stride_c], [7, 8, 9, 35, 0, 45]);
        assert_eq!(arguments(&[]).problem(), GemmProblem::dense(5, 4, 3));
    }
}
