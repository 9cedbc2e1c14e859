//! Loads, stores and atomics: what a buffer's declaration allows.

use super::error::ValidationErrorKind;
use super::report::shown;
use super::statements::Checker;
use crate::ir::{
    Atomic, AtomicOp, BufferAccess, BufferDecl, BufferId, Expr, External, MemoryOrdering, MemoryScope,
    MemorySpace,
};
use crate::types::ScalarType;

impl<'p> Checker<'p, '_> {
    /// The buffer with an id; one that does not exist is reported.
    pub(super) fn buffer(&mut self, id: BufferId) -> Option<&'p BufferDecl> {
        let program = self.program;
        let buffer = program.buffers.get(id.0 as usize);
        if buffer.is_none() {
            let count = program.buffers.len();
            self.fail(ValidationErrorKind::NoSuch { what: "buffer", id: id.0, count });
        }
        buffer
    }

    pub(super) fn load(&mut self, buffer: BufferId, index: &'p Expr) -> Option<ScalarType> {
        self.expect("the index", index, ScalarType::U32);
        let buffer = self.buffer(buffer)?;
        if buffer.access == BufferAccess::Write {
            self.refuse(buffer, "write", "loaded from", "declare it read_write");
        }
        Some(buffer.element.scalar())
    }

    pub(super) fn store(&mut self, buffer: BufferId, index: &'p Expr, value: &'p Expr) {
        self.expect("the index", index, ScalarType::U32);
        let found = self.expr(value);
        let Some(buffer) = self.buffer(buffer) else { return };
        if buffer.access == BufferAccess::Read {
            self.refuse(buffer, "read", "stored to", "declare it read_write");
        }
        self.same_type("the value stored", Some(buffer.element.scalar()), found);
    }

    /// Checks the buffers that an external function is given.
    pub(super) fn external_buffers(&mut self, external: &External, ids: &[BufferId]) {
        let expected = external.buffers.len();
        if ids.len() != expected {
            let what = format!("buffers for `{}`", shown(&external.name));
            self.fail(ValidationErrorKind::Count { what, expected, found: ids.len() });
        }
        for (&id, wanted) in ids.iter().zip(&external.buffers) {
            let Some(buffer) = self.buffer(id) else { continue };
            let several = ids.iter().filter(|&&other| other == id).count() > 1;
            let (problem, remedy) = if buffer.space == MemorySpace::Workgroup {
                ("in workgroup memory".to_owned(), "copy it to a global buffer")
            } else if buffer.element != wanted.element {
                (format!("of {}", buffer.element), "give a buffer of these elements")
            } else if !buffer.access.includes(wanted.access) {
                (format!("declared {}", buffer.access.name()), "declare it read_write")
            } else if several && wanted.access != BufferAccess::Read {
                ("given more than once".to_owned(), "give a buffer that is written only once")
            } else {
                continue;
            };
            self.fail(ValidationErrorKind::ExternalBuffer {
                buffer: shown(&buffer.name),
                external: shown(&external.name),
                wanted: format!("{} {}", wanted.element, wanted.access.name()),
                problem,
                remedy,
            });
        }
    }

    /// Checks an atomic but for its result; yields the type of the element.
    pub(super) fn atomic(&mut self, atomic: &'p Atomic) -> Option<ScalarType> {
        self.expect("the index", &atomic.index, ScalarType::U32);
        let (name, values) = match &atomic.op {
            AtomicOp::Load => ("load", [None, None]),
            AtomicOp::Store(value) => ("store", [Some(value), None]),
            AtomicOp::Rmw(_, value) => ("read-modify-write", [Some(value), None]),
            AtomicOp::CompareExchange { expected, replacement } => {
                ("compare-exchange", [Some(expected), Some(replacement)])
            }
        };
        let found = values.map(|value| value.and_then(|value| self.expr(value)));
        self.atomic_form(atomic, name);
        let buffer = self.buffer(atomic.buffer)?;
        let ty = buffer.element.scalar();
        for found in found {
            self.same_type("the operand of the atomic", Some(ty), found);
        }
        if !buffer.element.is_atomic() {
            let (name, element) = (shown(&buffer.name), buffer.element);
            self.fail(ValidationErrorKind::AtomicElement { buffer: name, element });
        }
        self.atomic_access(atomic, buffer);
        Some(ty)
    }

    /// What an atomic may look like on any buffer.
    fn atomic_form(&mut self, atomic: &Atomic, operation: &'static str) {
        let read_modify_write = match atomic.op {
            AtomicOp::Load | AtomicOp::Store(_) => false,
            AtomicOp::Rmw(..) | AtomicOp::CompareExchange { .. } => true,
        };
        let ordering = match (&atomic.op, atomic.ordering) {
            (AtomicOp::Load, MemoryOrdering::Release | MemoryOrdering::AcqRel) => {
                Some(("a release ordering", "use acquire or relaxed"))
            }
            (AtomicOp::Store(_), MemoryOrdering::Acquire | MemoryOrdering::AcqRel) => {
                Some(("an acquire ordering", "use release or relaxed"))
            }
            _ => None,
        };
        let scope = (read_modify_write && atomic.scope == MemoryScope::System)
            .then_some(("system scope", "use device scope: a read-modify-write never crosses the bus"));
        let result = (matches!(atomic.op, AtomicOp::Store(_)) && atomic.result.is_some())
            .then_some(("a result", "remove it, or use an exchange"));
        for (what, remedy) in [ordering, scope, result].into_iter().flatten() {
            self.fail(ValidationErrorKind::AtomicForm { operation, what, remedy });
        }
    }

    /// What an atomic may do to a given buffer.
    fn atomic_access(&mut self, atomic: &Atomic, buffer: &BufferDecl) {
        if buffer.space == MemorySpace::Uniform {
            return self.refuse(
                buffer,
                "uniform",
                "accessed atomically",
                "load it plainly: it never changes",
            );
        }
        match (&atomic.op, buffer.access) {
            (AtomicOp::Load, BufferAccess::Write) => {
                self.refuse(buffer, "write", "loaded from", "declare it read_write");
            }
            (AtomicOp::Store(_), BufferAccess::Read) => {
                self.refuse(buffer, "read", "stored to", "declare it read_write");
            }
            (AtomicOp::Rmw(..) | AtomicOp::CompareExchange { .. }, access) => {
                let attempted = "changed by a read-modify-write";
                match access {
                    BufferAccess::Read => self.refuse(buffer, "read", attempted, "declare it read_write"),
                    BufferAccess::Write => self.refuse(buffer, "write", attempted, "declare it read_write"),
                    BufferAccess::ReadWrite if buffer.space == MemorySpace::HostVisible => {
                        let remedy = "use a global buffer: a read-modify-write never crosses the bus";
                        self.refuse(buffer, "host-visible", attempted, remedy);
                    }
                    BufferAccess::ReadWrite => {}
                }
            }
            _ => {}
        }
        if buffer.space == MemorySpace::Workgroup && atomic.scope != MemoryScope::Workgroup {
            let attempted = "ordered beyond its workgroup";
            self.refuse(buffer, "in workgroup memory", attempted, "use workgroup scope");
        }
    }

    fn refuse(
        &mut self,
        buffer: &BufferDecl,
        declared: &'static str,
        attempted: &'static str,
        remedy: &'static str,
    ) {
        let buffer = shown(&buffer.name);
        self.fail(ValidationErrorKind::Access { buffer, declared, attempted, remedy });
    }
}
