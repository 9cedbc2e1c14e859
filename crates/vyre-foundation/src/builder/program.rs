//! Programs under construction.

use super::function::{ExternalHandle, FunctionBuilder, FunctionHandle};
use super::value::{Buffer, Var};
use crate::ir::{
    BufferAccess, BufferDecl, BufferId, External, ExternalId, Function, FunctionId, Granularity, MemorySpace,
    Program, ProgramKind,
};
use crate::types::{DataType, ScalarType};
use crate::validate::{ValidatedProgram, ValidationErrors, validate};

/// A program under construction: buffers first, then functions in the order in which they call one
/// another, then the entry.
#[derive(Debug)]
pub struct ProgramBuilder {
    program: Program,
}

impl ProgramBuilder {
    /// A program that is dispatched over a grid, one invocation per workgroup unless
    /// [`workgroup_size`](Self::workgroup_size) says otherwise.
    pub fn kernel(name: impl Into<String>) -> ProgramBuilder {
        ProgramBuilder::new(name.into(), ProgramKind::Kernel)
    }

    /// A program that is run once per item.
    pub fn item(name: impl Into<String>, granularity: Granularity) -> ProgramBuilder {
        ProgramBuilder::new(name.into(), ProgramKind::Item(granularity))
    }

    fn new(name: String, kind: ProgramKind) -> ProgramBuilder {
        ProgramBuilder {
            program: Program {
                name,
                kind,
                workgroup_size: [1, 1, 1],
                buffers: Vec::new(),
                externals: Vec::new(),
                functions: Vec::new(),
                entry: FunctionBuilder::new("main").finish(),
            },
        }
    }

    /// Invocations per workgroup along x, y and z.
    #[must_use]
    pub fn workgroup_size(mut self, size: [u32; 3]) -> ProgramBuilder {
        self.program.workgroup_size = size;
        self
    }

    /// Declares a buffer of at least `len` elements; of exactly as many in workgroup memory.
    pub fn buffer(
        &mut self,
        name: impl Into<String>,
        space: MemorySpace,
        element: DataType,
        access: BufferAccess,
        len: u32,
    ) -> Buffer {
        let id = BufferId(self.program.buffers.len() as u32);
        self.program.buffers.push(BufferDecl { name: name.into(), space, element, access, len });
        Buffer { id, element, space }
    }

    /// Declares an external function.
    pub fn external(&mut self, external: External) -> ExternalHandle {
        let handle = ExternalHandle::new(ExternalId(self.program.externals.len() as u32), &external);
        self.program.externals.push(external);
        handle
    }

    /// Adds a function; the closure gets its parameters.
    ///
    /// ```
    /// # use vyre_foundation::{ScalarType::U32, builder::ProgramBuilder};
    /// # let mut p = ProgramBuilder::kernel("example");
    /// let mix = p.function("mix", [("a", U32), ("b", U32)], [U32], |f, [a, b]| f.ret((a ^ b) * 31));
    /// p.entry(|f| {
    ///     let mixed = f.call_one(&mix, (1, 2));
    /// });
    /// ```
    pub fn function<const N: usize>(
        &mut self,
        name: impl Into<String>,
        params: [(&str, ScalarType); N],
        results: impl IntoIterator<Item = ScalarType>,
        body: impl FnOnce(&mut FunctionBuilder, [Var; N]),
    ) -> FunctionHandle {
        self.add_function(build(name.into(), params, results, body))
    }

    /// Adds a function built apart.
    pub fn add_function(&mut self, function: Function) -> FunctionHandle {
        let id = FunctionId(self.program.functions.len() as u32);
        let handle = FunctionHandle::new(id, &function);
        self.program.functions.push(function);
        handle
    }

    /// The entry of a kernel, called `main`.
    pub fn entry(&mut self, body: impl FnOnce(&mut FunctionBuilder)) {
        self.item_entry([], [], |f, []| body(f));
    }

    /// The entry of an item program, called `main`: takes the item's words, returns its outcome.
    pub fn item_entry<const N: usize>(
        &mut self,
        params: [(&str, ScalarType); N],
        results: impl IntoIterator<Item = ScalarType>,
        body: impl FnOnce(&mut FunctionBuilder, [Var; N]),
    ) {
        self.program.entry = build("main".to_owned(), params, results, body);
    }

    /// An entry built apart.
    pub fn set_entry(&mut self, entry: Function) {
        self.program.entry = entry;
    }

    /// The program, unchecked.
    pub fn finish(self) -> Program {
        self.program
    }

    /// The program, validated.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn validate(self) -> Result<ValidatedProgram, ValidationErrors> {
        validate(self.program)
    }
}

fn build<const N: usize>(
    name: String,
    params: [(&str, ScalarType); N],
    results: impl IntoIterator<Item = ScalarType>,
    body: impl FnOnce(&mut FunctionBuilder, [Var; N]),
) -> Function {
    let mut function = FunctionBuilder::new(name);
    let params = params.map(|(name, ty)| function.param(name, ty));
    for ty in results {
        function.result(ty);
    }
    body(&mut function, params);
    function.finish()
}
