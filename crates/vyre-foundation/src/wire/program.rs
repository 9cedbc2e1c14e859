//! The encoding of programs, functions, nodes and expressions, both directions side by side.

use super::WireError;
use super::codec::{Reader, Wire, Writer, put_count};
use crate::ir::{
    Atomic, AtomicOp, BufferDecl, BufferId, Expr, External, ExternalBuffer, ExternalCall, ExternalId,
    Function, FunctionId, Local, Node, Program, Subgroup, SubgroupOp, SwitchCase, VarId,
};
use crate::types::Literal;

/// A struct is its fields in the order of the table.
macro_rules! structs {
    ($($struct:ident, $what:literal, $min:literal { $($field:ident),* })*) => {$(
        impl Wire for $struct {
            const WHAT: &'static str = $what;
            const MIN_SIZE: u32 = $min;

            fn put(&self, w: &mut Writer) -> Result<(), WireError> {
                let $struct { $($field),* } = self;
                $($field.put(w)?;)*
                Ok(())
            }

            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                $(let $field = Wire::take(r)?;)*
                Ok($struct { $($field),* })
            }
        }
    )*};
}

structs! {
    BufferDecl, "buffer", 11 { name, space, element, access, len }
    Local, "local", 6 { name, ty, mutable }
    ExternalBuffer, "external buffer", 2 { element, access }
    ExternalCall, "external call", 16 { external, args, buffers, results }
    SwitchCase, "switch case", 8 { values, body }
    Atomic, "atomic", 9 { op, buffer, index, ordering, scope, result }
    Subgroup, "subgroup operation", 6 { op, value, result }
}

macro_rules! ids {
    ($($id:ident, $what:literal)*) => {$(
        impl Wire for $id {
            const WHAT: &'static str = $what;
            const MIN_SIZE: u32 = 4;

            fn put(&self, w: &mut Writer) -> Result<(), WireError> {
                self.0.put(w)
            }

            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                u32::take(r).map($id)
            }
        }
    )*};
}

ids! { BufferId, "buffer id" ExternalId, "external id" FunctionId, "function id" VarId, "local id" }

/// Function form: the body follows.
const FORM_BODY: u8 = 0;

/// Function form: an external function, which has none.
const FORM_EXTERNAL: u8 = 1;

/// Its external functions stand in the list of functions, after those with a body.
impl Wire for Program {
    const WHAT: &'static str = "program";
    const MIN_SIZE: u32 = 46;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        let Program { name, kind, workgroup_size, buffers, externals, functions, entry } = self;
        name.put(w)?;
        kind.put(w)?;
        workgroup_size.put(w)?;
        buffers.put(w)?;
        put_count(w, "list", functions.len().saturating_add(externals.len()))?;
        functions.iter().try_for_each(|function| function.put(w))?;
        for External { name, params, buffers, results } in externals {
            w.tag(FORM_EXTERNAL);
            name.put(w)?;
            params.put(w)?;
            buffers.put(w)?;
            results.put(w)?;
        }
        entry.put(w)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (name, kind, workgroup_size) = (Wire::take(r)?, Wire::take(r)?, Wire::take(r)?);
        let buffers = Wire::take(r)?;
        let (mut functions, mut externals) = (Vec::new(), Vec::new());
        for _ in 0..r.count(Function::WHAT, LEAST_FUNCTION)? {
            r.tag(Function::WHAT, |r, form| {
                match form {
                    FORM_BODY if externals.is_empty() => functions.push(function_body(r)?),
                    FORM_EXTERNAL => externals.push(External {
                        name: Wire::take(r)?,
                        params: Wire::take(r)?,
                        buffers: Wire::take(r)?,
                        results: Wire::take(r)?,
                    }),
                    _ => return Ok(None),
                }
                Ok(Some(()))
            })?;
        }
        Ok(Program { name, kind, workgroup_size, buffers, externals, functions, entry: Wire::take(r)? })
    }
}

/// Bytes of an external function at least; one with a body has more.
const LEAST_FUNCTION: u32 = 17;

fn function_body(r: &mut Reader<'_>) -> Result<Function, WireError> {
    let (name, params, results) = (Wire::take(r)?, Wire::take(r)?, Wire::take(r)?);
    Ok(Function { name, params, results, locals: Wire::take(r)?, body: Wire::take(r)? })
}

impl Wire for Function {
    const WHAT: &'static str = "function";
    const MIN_SIZE: u32 = 21;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        let Function { name, params, results, locals, body } = self;
        w.tag(FORM_BODY);
        name.put(w)?;
        params.put(w)?;
        results.put(w)?;
        locals.put(w)?;
        body.put(w)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        r.tag(Self::WHAT, |r, form| if form == FORM_BODY { function_body(r).map(Some) } else { Ok(None) })
    }
}

/// An enum is a tag and the fields of its variant in the order of the table. `depth` is what one value adds to
/// the nesting.
macro_rules! variants {
    ($enum:ident, $what:literal, depth $depth:literal {
        $($tag:literal = $variant:ident $(($($item:ident),*))? $({$($field:ident),*})?),* $(,)?
    }) => {
        impl Wire for $enum {
            const WHAT: &'static str = $what;
            const MIN_SIZE: u32 = 1;

            fn put(&self, w: &mut Writer) -> Result<(), WireError> {
                w.nested($depth, |w| {
                    match self {
                        $($enum::$variant $(($($item),*))? $({$($field),*})? => {
                            w.tag($tag);
                            $($($item.put(w)?;)*)?
                            $($($field.put(w)?;)*)?
                        })*
                    }
                    Ok(())
                })
            }

            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                r.nested($depth, |r| r.tag(Self::WHAT, |r, tag| {
                    Ok(Some(match tag {
                        $($tag => {
                            $($(let $item = Wire::take(r)?;)*)?
                            $($(let $field = Wire::take(r)?;)*)?
                            $enum::$variant $(($($item),*))? $({$($field),*})?
                        })*
                        _ => return Ok(None),
                    }))
                }))
            }
        }
    };
}

variants!(Literal, "literal", depth 0 {
    0 = Bool(value),
    1 = U32(value),
    2 = I32(value),
    3 = U64(value),
    4 = F32(bits),
});

variants!(Expr, "expression", depth 1 {
    0x00 = Literal(value),
    0x01 = Var(var),
    0x02 = Load { buffer, index },
    0x03 = BufferLen(buffer),
    0x04 = Builtin(builtin),
    0x05 = Unary { op, value },
    0x06 = Binary { op, left, right },
    0x07 = Select { condition, if_true, if_false },
    0x08 = Cast { to, value },
    0x09 = Bitcast { to, value },
    0x0a = Fma { a, b, c },
});

variants!(Node, "node", depth 1 {
    0x00 = Let { var, value },
    0x01 = Assign { var, value },
    0x02 = Store { buffer, index, value },
    0x03 = Atomic(atomic),
    0x04 = If { condition, then, otherwise },
    0x05 = Switch { selector, cases, default },
    0x06 = For { var, start, end, step, body },
    0x07 = While { condition, body },
    0x08 = Break,
    0x09 = Continue,
    0x0a = Return(values),
    0x0b = Block(body),
    0x0c = WorkgroupBarrier,
    0x0d = GridBarrier,
    0x0e = Trap(code),
    0x0f = Call { results, function, args },
    0x40 = Subgroup(subgroup),
    0x41 = CallExternal(call),
});

variants!(AtomicOp, "atomic operation", depth 0 {
    0 = Load,
    1 = Store(value),
    2 = Rmw(op, value),
    3 = CompareExchange { expected, replacement },
});

variants!(SubgroupOp, "subgroup operation", depth 0 {
    0 = BroadcastFirst,
    1 = Broadcast(lane),
    2 = Shuffle(lane),
    3 = ShuffleXor(mask),
    4 = Reduce(op),
    5 = InclusiveScan(op),
    6 = ExclusiveScan(op),
    7 = Ballot,
    8 = Any,
    9 = All,
});
