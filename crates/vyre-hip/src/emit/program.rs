//! The frame of a program: its buffers, its functions, and its entries.

use vyre_foundation::validate::Step;
use vyre_foundation::{BufferDecl, MemorySpace, ScalarType, ValidatedProgram};

use super::abi::MAX_INLINE_BINDINGS;
use super::analysis::Analysis;
use super::expression::{element, letter, local_name};
use super::function::Body;
use super::passes::{self, Pass};
use super::source::Source;
use super::{Bindings, EmitOptions, EmittedKernel, GridBarriers, SpillSizes};
use vyre_foundation::Axis;

/// Emits a kernel.
pub(super) fn emit(validated: &ValidatedProgram, options: &EmitOptions) -> EmittedKernel {
    let program = validated.program();
    let (bound, mut shared): (Vec<&BufferDecl>, Vec<&BufferDecl>) =
        program.buffers.iter().partition(|decl| decl.space != MemorySpace::Workgroup);
    // Wide elements first, so that nothing lies between them.
    shared.sort_by_key(|decl| std::cmp::Reverse(decl.element.size()));
    let bindings = match bound.len() {
        count @ 0..=MAX_INLINE_BINDINGS => Bindings::Inline(count),
        count => Bindings::Table(count),
    };
    let split = options.grid_barriers == GridBarriers::Split && validated.facts().grid_barriers;
    let analysis = Analysis::new(validated);
    let mut frame = Frame {
        validated,
        analysis: &analysis,
        bound,
        shared,
        bindings,
        spill: SpillSizes::default(),
        invocations: program.workgroup_size.iter().product(),
        out: Source::default(),
    };
    frame.head();
    let entries = if split { frame.passes() } else { frame.whole() };
    frame.out.close("}");
    let spill = frame.spill;
    let (source, lines) = frame.out.finish();
    EmittedKernel {
        source,
        entries,
        workgroup_size: program.workgroup_size,
        shared_bytes: validated.facts().workgroup_bytes,
        uses_grid_barrier: validated.facts().grid_barriers && !split,
        bindings,
        spill,
        lines,
    }
}

struct Frame<'p, 's> {
    validated: &'p ValidatedProgram,
    analysis: &'s Analysis,
    bound: Vec<&'p BufferDecl>,
    shared: Vec<&'p BufferDecl>,
    bindings: Bindings,
    spill: SpillSizes,
    invocations: u32,
    out: Source,
}

impl Frame<'_, '_> {
    /// Everything before the entries.
    fn head(&mut self) {
        let program = self.validated.program();
        self.out.line(format_args!("// The program `{}`.", program.name));
        let externals = !program.externals.is_empty();
        if externals {
            // With the addresses of buffers told apart, cicc of CUDA 13.0 does not end on some of these programs.
            self.out.line("#define VYRE_GENERIC_ADDRESSES 1");
        }
        self.out.line("#include \"vyre_device.h\"");
        if externals {
            self.out.line("#include \"vyre_externals.h\"");
        }
        self.out.gap();
        self.out.line(format_args!("namespace program_{} {{", program.name));
        self.out.gap();
        self.out.open("struct Arguments {");
        self.out.line("VyreArguments common;");
        match self.bindings {
            Bindings::Inline(_) => self.buffers(|decl| format!("VyreBinding b_{};", decl.name)),
            Bindings::Table(_) => self.out.line("unsigned long long bindings;"),
        }
        self.out.close("};");
        self.out.gap();
        if let Bindings::Table(_) = self.bindings {
            self.out.open("struct Bindings {");
            self.buffers(|decl| format!("VyreBinding b_{};", decl.name));
            self.out.close("};");
            self.out.gap();
        }
        self.out.open("struct Context : VyreContext {");
        let buffers: Vec<_> = self.bound.iter().chain(&self.shared).copied().collect();
        for decl in buffers {
            self.out.line(format_args!("VyreBuffer<{}> b_{};", element(decl.element), decl.name));
        }
        self.out.close("};");
        self.out.gap();
        for &id in &self.validated.facts().call_order {
            if let Some(function) = program.functions.get(id.0 as usize) {
                Body::function(self.validated, self.analysis, &mut self.out, id, function);
            }
        }
    }

    /// A line for each bound buffer.
    fn buffers(&mut self, line: impl Fn(&BufferDecl) -> String) {
        for decl in &self.bound {
            self.out.line(line(decl));
        }
    }

    /// The head of an entry: what every invocation needs.
    fn open_entry(&mut self, entry: &str, clear: bool) {
        let all = self.invocations;
        self.out.unmark();
        self.out.open(format_args!(
            "extern \"C\" __global__ void __launch_bounds__({all}) {entry}(const Arguments arguments) {{"
        ));
        let local = self.local();
        self.out.line("Context vyre;");
        self.out.line(format_args!("vyre_begin(vyre, arguments.common, {local}, {all}u);"));
        let from = match self.bindings {
            Bindings::Inline(_) => "arguments",
            Bindings::Table(_) => {
                self.out.line("const Bindings& bindings = *(const Bindings*)arguments.bindings;");
                "bindings"
            }
        };
        self.buffers(|decl| {
            let (name, ty) = (&decl.name, element(decl.element));
            format!("vyre.b_{name} = vyre_bind<{ty}>({from}.b_{name});")
        });
        for decl in &self.shared {
            let (name, ty, len) = (&decl.name, element(decl.element), decl.len);
            self.out.line(format_args!("__shared__ {ty} s_{name}[{}];", len.max(1)));
            self.out.line(format_args!("vyre.b_{name} = vyre_share(s_{name}, {len}u);"));
            if clear {
                self.out.line(format_args!("vyre_clear(vyre, vyre.b_{name});"));
            }
        }
        if clear && !self.shared.is_empty() {
            self.out.line("vyre_barrier();");
        }
    }

    /// The linear id of an invocation in its workgroup.
    fn local(&self) -> String {
        let [x, y, z] = self.validated.program().workgroup_size;
        let mut terms = Vec::new();
        for (axis, size, below) in [(Axis::X, x, 1), (Axis::Y, y, x), (Axis::Z, z, x.saturating_mul(y))] {
            match (size, below) {
                (1, _) => {}
                (_, 1) => terms.push(format!("vyre_local_id_{}()", letter(axis))),
                _ => terms.push(format!("vyre_local_id_{}() * {below}u", letter(axis))),
            }
        }
        if terms.is_empty() { "0u".to_owned() } else { terms.join(" + ") }
    }

    /// One entry.
    fn whole(&mut self) -> Vec<String> {
        let program = self.validated.program();
        let entry = format!("kernel_{}", program.name);
        self.open_entry(&entry, true);
        let leave = vec!["return;".to_owned()];
        let mut body = Body::entry(self.validated, self.analysis, &mut self.out, leave);
        for (index, node) in program.entry.body.iter().enumerate() {
            body.statement(node, Step::Body(index));
        }
        self.out.unmark();
        self.out.close("}");
        self.out.gap();
        vec![entry]
    }

    /// An entry for each part between grid barriers.
    fn passes(&mut self) -> Vec<String> {
        let program = self.validated.program();
        let (passes, per_invocation) = passes::split(&program.entry);
        self.spill = passes::sizes(per_invocation, self.shared.iter().copied());
        let last = passes.len().saturating_sub(1);
        let mut entries = Vec::new();
        for (number, pass) in passes.iter().enumerate() {
            let entry = format!("kernel_{}_pass{number}", program.name);
            self.open_entry(&entry, number == 0);
            if number > 0 {
                self.resume(number, pass);
            }
            let leave = vec![format!("vyre_end(vyre, {number}u);"), "return;".to_owned()];
            let mut body = Body::entry(self.validated, self.analysis, &mut self.out, leave);
            for (index, node) in pass.nodes.iter().enumerate() {
                body.statement(node, Step::Body(pass.first + index));
            }
            self.out.unmark();
            if number < last {
                self.suspend(pass);
            }
            self.out.close("}");
            self.out.gap();
            entries.push(entry);
        }
        entries
    }

    /// Goes on where the pass before ended.
    fn resume(&mut self, number: usize, pass: &Pass<'_>) {
        self.out.open(format_args!("if (vyre_ended(vyre, {number}u)) {{"));
        self.out.line("vyre_leave(vyre);");
        self.out.line("return;");
        self.out.close("}");
        self.shared_lines(|name, spilled| format!("vyre_restore(vyre, {name}, {spilled});"));
        if !self.shared.is_empty() {
            self.out.line("vyre_barrier();");
        }
        for column in &pass.loads {
            let (name, ty, stored, mutable) = self.column(column.var);
            let constant = if mutable { "" } else { "const " };
            self.out.line(format_args!(
                "{constant}{ty} {name} = *vyre_spilled<{stored}>(vyre, arguments.common, {}u);",
                column.offset
            ));
        }
    }

    /// Keeps what later passes need.
    fn suspend(&mut self, pass: &Pass<'_>) {
        for column in &pass.stores {
            let (name, _, stored, _) = self.column(column.var);
            self.out.line(format_args!(
                "*vyre_spilled<{stored}>(vyre, arguments.common, {}u) = {name};",
                column.offset
            ));
        }
        if !self.shared.is_empty() {
            self.out.line("vyre_barrier();");
        }
        self.shared_lines(|name, spilled| format!("vyre_spill(vyre, {name}, {spilled});"));
    }

    /// Name, type and stored type of a local of the entry, and whether it is mutable.
    fn column(&self, var: u32) -> (String, &'static str, &'static str, bool) {
        let entry = &self.validated.program().entry;
        let local = entry.locals.get(var as usize);
        let ty = local.map_or(ScalarType::U32, |local| local.ty);
        let stored = if ty == ScalarType::Bool { "u32" } else { ty.name() };
        (local_name(entry, var), ty.name(), stored, local.is_some_and(|local| local.mutable))
    }

    /// A line for each workgroup buffer with its place in the spill memory.
    fn shared_lines(&mut self, line: impl Fn(&str, &str) -> String) {
        let all = self.spill.per_workgroup;
        let mut offset = 0;
        for decl in &self.shared {
            let ty = element(decl.element);
            let spilled = format!("vyre_spilled_shared<{ty}>(arguments.common, {all}u, {offset}u)");
            self.out.line(line(&format!("vyre.b_{}", decl.name), &spilled));
            offset += u64::from(decl.len) * decl.element.size() as u64;
        }
    }
}
