//! The frame of a resident kernel: item programs over `kernels/resident`.

use vyre_driver::ResidentSpec;
use vyre_driver::protocol::ARG_WORDS;
use vyre_foundation::{BufferAccess, BufferDecl, MemorySpace, ScalarType, ValidatedProgram};

use super::abi::MAX_INLINE_ITEM_BINDINGS;
use super::analysis::Analysis;
use super::expression::element;
use super::function::Body;
use super::source::Source;
use super::{Bindings, EmittedResident, QuarterAccess};

/// The kernel that stays, and the one that runs before it.
const ENTRIES: [&str; 2] = ["vyre_resident_kernel", "vyre_resident_prepare"];

/// Workgroups are whole waves of either width, and large enough to claim well.
const WAVE: u32 = 64;
const LEAST_INVOCATIONS: u32 = 128;

/// Invocations of workgroups that run items which a multiprocessor should have registers for: such an item waits for memory
/// most of its time, and the more there are at once the better. 10,000 products of 64 cubed took 0.26 ms with 640, and
/// 0.31 ms with the 512 that nvcc leaves room for by itself (H200).
const INVOCATIONS_TOGETHER: u32 = 640;

/// Emits a resident kernel.
pub(super) fn emit(spec: &ResidentSpec, quarters: QuarterAccess) -> EmittedResident {
    let ResidentSpec { lane, accounting, workgroup, .. } = spec;
    let bound: Vec<&BufferDecl> =
        lane.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup).collect();
    let bindings = match bound.len() {
        count @ 0..=MAX_INLINE_ITEM_BINDINGS => Bindings::Inline(count),
        count => Bindings::Table(count),
    };
    let size = |group: &ValidatedProgram| group.program().workgroup_size.iter().product();
    let invocations: u32 = workgroup.as_ref().map_or(1, size);
    let threads = invocations.next_multiple_of(WAVE).max(LEAST_INVOCATIONS);
    let mut out = Source::default();
    out.line(format_args!("// The items of `{}`, resident.", lane.program().name));
    out.line(format_args!("#define VYRE_THREADS {threads}"));
    if quarters == QuarterAccess::Fenced {
        out.line("#define VYRE_FENCED 1");
    }
    out.line("#include \"resident/kernel.h\"");
    let externals = |program: &ValidatedProgram| !program.program().externals.is_empty();
    if externals(lane) || workgroup.as_ref().is_some_and(externals) {
        out.line("#include \"vyre_externals.h\"");
    }
    out.gap();
    out.open("struct Bindings {");
    for decl in &bound {
        out.line(format_args!("VyreItemBinding b_{};", decl.name));
    }
    out.close("};");
    out.gap();
    program(&mut out, lane, &bound, "lane_program");
    let mut types = vec!["lane_program::Program"];
    for (given, namespace, ty, absent) in [
        (accounting, "accounting_program", "accounting_program::Program", "VyreNoAccounting"),
        (workgroup, "group_program", "group_program::Program", "VyreNoGroups"),
    ] {
        if let Some(given) = given {
            program(&mut out, given, &bound, namespace);
        }
        types.push(if given.is_some() { ty } else { absent });
    }
    let together = if workgroup.is_some() { INVOCATIONS_TOGETHER / threads } else { 0 };
    kernel(&mut out, bindings, &types.join(", "), threads, together);
    let (source, lines) = out.finish();
    let [kernel, prepare] = ENTRIES.map(str::to_owned);
    EmittedResident { source, kernel, prepare, threads, bindings, lines }
}

/// The entries.
fn kernel(out: &mut Source, bindings: Bindings, programs: &str, threads: u32, together: u32) {
    out.unmark();
    out.open("struct Arguments {");
    out.line("VyreResident kernel;");
    let given = match bindings {
        Bindings::Inline(_) => {
            out.line("Bindings bindings;");
            "arguments.bindings"
        }
        Bindings::Table(_) => {
            out.line("unsigned long long bindings;");
            "*vyre_global<const Bindings>(arguments.bindings)"
        }
    };
    out.close("};");
    out.gap();
    let [kernel, prepare] = ENTRIES;
    out.open(format_args!(
        "extern \"C\" __global__ void VYRE_BOUNDS({threads}, {together}) {kernel}(const Arguments arguments) {{"
    ));
    out.line(format_args!("vyre_resident<{programs}>(arguments.kernel, {given});"));
    out.close("}");
    out.gap();
    out.open(format_args!("extern \"C\" __global__ void {prepare}(const Arguments arguments) {{"));
    out.line("vyre_prepare(arguments.kernel);");
    out.close("}");
}

/// Whether the host writes a buffer while the kernel runs, and the kernel does not.
fn is_hosts(decl: &BufferDecl) -> bool {
    decl.space == MemorySpace::HostVisible && decl.access == BufferAccess::Read
}

/// One item program in a namespace of its own.
fn program(out: &mut Source, validated: &ValidatedProgram, bound: &[&BufferDecl], namespace: &str) {
    let program = validated.program();
    let shared: Vec<&BufferDecl> =
        program.buffers.iter().filter(|decl| decl.space == MemorySpace::Workgroup).collect();
    let analysis = Analysis::new(validated);
    out.open(format_args!("namespace {namespace} {{"));
    out.gap();
    out.open("struct Context : VyreItemContext {");
    for decl in bound {
        let kind = if is_hosts(decl) { "VyreHostBuffer" } else { "VyreBuffer" };
        out.line(format_args!("{kind}<{}> b_{};", element(decl.element), decl.name));
    }
    for decl in &shared {
        out.line(format_args!("VyreBuffer<{}> b_{};", element(decl.element), decl.name));
    }
    out.close("};");
    out.gap();
    for &id in &validated.facts().call_order {
        if let Some(function) = program.functions.get(id.0 as usize) {
            Body::function(validated, &analysis, out, id, function);
        }
    }
    Body::item(validated, &analysis, out, "item_main");
    let invocations: u32 = program.workgroup_size.iter().product();
    out.unmark();
    out.open("struct Program {");
    out.line(format_args!("typedef {namespace}::Context Context;"));
    out.line("static const bool PRESENT = true;");
    out.line(format_args!("static const u32 INVOCATIONS = {invocations};"));
    out.open("static VYRE_METHOD void bind(Context& vyre, const Bindings& bindings) {");
    for decl in bound {
        let (name, bind) = (&decl.name, if is_hosts(decl) { "vyre_bind_host" } else { "vyre_bind_item" });
        out.line(format_args!("vyre.b_{name} = {bind}<{}>(bindings.b_{name});", element(decl.element)));
    }
    out.close("}");
    run(out, &shared);
    out.close("};");
    out.gap();
    out.close("}");
    out.gap();
}

/// The function that runs one item.
fn run(out: &mut Source, shared: &[&BufferDecl]) {
    out.open("static VYRE_METHOD VyreOutcome run(Context& vyre, VyreItem& item) {");
    for decl in shared {
        let (name, ty, len) = (&decl.name, element(decl.element), decl.len);
        out.line(format_args!("__shared__ {ty} s_{name}[{}];", len.max(1)));
        out.line(format_args!("vyre.b_{name} = vyre_share(s_{name}, {len}u);"));
        out.line(format_args!("vyre_clear(vyre, vyre.b_{name});"));
    }
    if !shared.is_empty() {
        out.line("vyre_item_barrier();");
    }
    out.line("VyreOutcome outcome = {0, 0, 0};");
    out.line(format_args!("{} words[{ARG_WORDS}] = {{}};", ScalarType::U32.name()));
    let mut call = String::from("item_main(vyre, item.opcode, item.tenant, item.flags, item.ticket");
    let list = |call: &mut String, array: &str| {
        for word in 0..ARG_WORDS {
            call.push_str(&format!(", {array}[{word}]"));
        }
    };
    list(&mut call, "item.words");
    call.push_str(", outcome.status, outcome.code, outcome.result");
    list(&mut call, "words");
    out.line(format_args!("{call});"));
    out.line(format_args!("for (u32 i = 0; i < {ARG_WORDS}; i++) item.words[i] = words[i];"));
    out.line("return outcome;");
    out.close("}");
}
