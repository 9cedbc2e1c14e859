//! What is declared: names, buffers, workgroup size, parameters, the entry's signature.

use std::collections::HashSet;

use super::error::{Location, ValidationErrorKind};
use super::report::{Report, at, shown};
use crate::ir::{BufferAccess, BufferDecl, Function, Granularity, MemorySpace, Program, ProgramKind};
use crate::limits::{
    MAX_ARITY, MAX_BUFFERS, MAX_EXTERNALS, MAX_FUNCTIONS, MAX_LOCALS, MAX_WORKGROUP_BYTES,
    MAX_WORKGROUP_INVOCATIONS,
};
use crate::names::check_name;

/// Checks all declarations; yields the bytes of workgroup memory.
pub(super) fn check(program: &Program, report: &mut Report) -> u64 {
    check_one_name("program", &program.name, report, || Location::Program);
    check_workgroup_size(program, report);
    let workgroup_bytes = check_buffers(program, report);
    check_externals(program, report);
    check_functions(program, report);
    workgroup_bytes
}

fn check_workgroup_size(program: &Program, report: &mut Report) {
    for (axis, size) in ['x', 'y', 'z'].into_iter().zip(program.workgroup_size) {
        if size == 0 {
            report.add(|| Location::Program, ValidationErrorKind::ZeroWorkgroupSize { axis });
        }
    }
    let invocations = program.workgroup_size.iter().fold(1_u64, |n, &size| n.saturating_mul(size.into()));
    limit(
        "invocations in a workgroup",
        invocations,
        MAX_WORKGROUP_INVOCATIONS,
        "make the workgroup smaller",
        report,
        || Location::Program,
    );
}

fn check_buffers(program: &Program, report: &mut Report) -> u64 {
    let count = program.buffers.len() as u64;
    limit("buffers", count, MAX_BUFFERS as u64, "join some of them", report, || Location::Program);
    let mut names = HashSet::new();
    let mut workgroup_bytes = 0_u64;
    for buffer in &program.buffers {
        let here = || Location::Buffer(shown(&buffer.name));
        check_one_name("buffer", &buffer.name, report, here);
        if !names.insert(buffer.name.as_str()) {
            report.add(here, duplicate("buffer", &buffer.name));
        }
        if let Some((problem, remedy)) = contradiction(program.kind, buffer) {
            report.add(here, ValidationErrorKind::BufferDeclaration { problem, remedy });
        }
        if buffer.space == MemorySpace::Workgroup {
            let bytes = u64::from(buffer.len).saturating_mul(buffer.element.size() as u64);
            workgroup_bytes = workgroup_bytes.saturating_add(bytes);
        }
    }
    limit(
        "bytes of workgroup memory",
        workgroup_bytes,
        MAX_WORKGROUP_BYTES,
        "make the workgroup buffers smaller",
        report,
        || Location::Program,
    );
    workgroup_bytes
}

fn contradiction(kind: ProgramKind, buffer: &BufferDecl) -> Option<(&'static str, &'static str)> {
    match (buffer.space, buffer.access) {
        (MemorySpace::Uniform, BufferAccess::Write | BufferAccess::ReadWrite) => {
            Some(("a uniform buffer is read only", "declare it read, or move it to global memory"))
        }
        (MemorySpace::Workgroup, BufferAccess::Read | BufferAccess::Write) => Some((
            "a workgroup buffer must be read and written, as nobody else does either",
            "declare it read_write",
        )),
        (MemorySpace::Workgroup, _) if buffer.len == 0 => {
            Some(("a workgroup buffer has no elements", "give it a length of at least 1"))
        }
        (MemorySpace::Workgroup, _) if kind == ProgramKind::Item(Granularity::Lane) => Some((
            "an item of lane granularity has no workgroup memory",
            "make the program an item of workgroup granularity",
        )),
        _ => None,
    }
}

fn check_externals(program: &Program, report: &mut Report) {
    let count = program.externals.len() as u64;
    let remedy = "declare those that are called";
    limit("external functions", count, MAX_EXTERNALS as u64, remedy, report, || Location::Program);
    let mut names = HashSet::new();
    for external in &program.externals {
        let here = || Location::External(shown(&external.name));
        check_one_name("external function", &external.name, report, here);
        if !names.insert(external.name.as_str()) {
            report.add(here, duplicate("external function", &external.name));
        }
        for (what, count) in [
            ("parameters", external.params.len()),
            ("buffers of an external function", external.buffers.len()),
            ("results", external.results.len()),
        ] {
            limit(what, count as u64, MAX_ARITY as u64, "pass them through a buffer", report, here);
        }
    }
}

fn check_functions(program: &Program, report: &mut Report) {
    let count = program.functions.len() as u64;
    limit("functions", count, MAX_FUNCTIONS as u64, "join some of them", report, || Location::Program);
    let mut names = HashSet::new();
    let functions = program.functions.iter().map(|function| (function, false));
    for (function, entry) in functions.chain([(&program.entry, true)]) {
        let here = || at(function, entry, &[]);
        check_one_name("function", &function.name, report, here);
        if !names.insert(function.name.as_str()) {
            report.add(here, duplicate("function", &function.name));
        }
        check_locals(function, report, here);
    }
    let entry = &program.entry;
    if program.kind == ProgramKind::Kernel && (entry.params != 0 || !entry.results.is_empty()) {
        let (params, results) = (entry.params, entry.results.len());
        report.add(|| at(entry, true, &[]), ValidationErrorKind::KernelSignature { params, results });
    }
}

fn check_locals(function: &Function, report: &mut Report, here: impl Fn() -> Location) {
    let remedy = "pass them through a buffer";
    limit("parameters", function.params.into(), MAX_ARITY as u64, remedy, report, &here);
    limit("results", function.results.len() as u64, MAX_ARITY as u64, remedy, report, &here);
    let remedy = "split the function";
    limit("locals", function.locals.len() as u64, MAX_LOCALS as u64, remedy, report, &here);
    if function.params as usize > function.locals.len() {
        let (params, locals) = (function.params, function.locals.len());
        report.add(&here, ValidationErrorKind::MissingParameters { params, locals });
    }
    let mut names = HashSet::new();
    for (index, local) in function.locals.iter().enumerate() {
        check_one_name("local", &local.name, report, &here);
        if !names.insert(local.name.as_str()) {
            report.add(&here, duplicate("local", &local.name));
        }
        if local.mutable && index < function.params as usize {
            let (local, role) = (shown(&local.name), "a parameter");
            report.add(&here, ValidationErrorKind::MustBeImmutable { local, role });
        }
    }
}

fn check_one_name(what: &'static str, name: &str, report: &mut Report, here: impl FnOnce() -> Location) {
    if let Err(reason) = check_name(name) {
        report.add(here, ValidationErrorKind::Name { what, name: shown(name), reason });
    }
}

fn duplicate(what: &'static str, name: &str) -> ValidationErrorKind {
    ValidationErrorKind::DuplicateName { what, name: shown(name) }
}

pub(super) fn limit(
    what: &'static str,
    count: u64,
    limit: u64,
    remedy: &'static str,
    report: &mut Report,
    here: impl FnOnce() -> Location,
) {
    if count > limit {
        report.add(here, ValidationErrorKind::Limit { what, count, limit, remedy });
    }
}
