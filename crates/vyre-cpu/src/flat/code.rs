//! The instructions of the flat form, and what their fields refer to.

use vyre_foundation::{DataType, ReduceOp, RmwOp, ScalarType};

/// One operation. The fields mean what [`Code`] says; fields it does not name are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inst {
    pub(crate) code: Code,
    pub(crate) d: u16,
    pub(crate) a: u16,
    pub(crate) b: u16,
    pub(crate) c: u16,
    pub(crate) t: u32,
}

impl Inst {
    pub(crate) const fn new(code: Code, d: u16, a: u16, b: u16, c: u16) -> Inst {
        Inst { code, d, a, b, c, t: 0 }
    }

    pub(crate) const fn with(self, t: u32) -> Inst {
        Inst { t, ..self }
    }
}

/// The operations. `W`, `L` and `M` say which files an operation works on; `U`, `I`, `X` and `F` stand for
/// u32, i32, u64 and f32 where the type matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    // Moves. The masked ones change active lanes only.
    MovW,
    MovL,
    MovM,
    MovMaskedW,
    MovMaskedL,
    MovMaskedM,
    // d = the value of a per-wave or per-run quantity; c is the axis, or the buffer.
    LocalId,
    GlobalId,
    WorkgroupId,
    NumWorkgroups,
    SubgroupLane,
    SubgroupId,
    BufferLen,
    // d = a op b on words.
    AddW,
    SubW,
    MulW,
    DivU,
    DivI,
    RemU,
    RemI,
    MinU,
    MinI,
    MaxU,
    MaxI,
    AndW,
    OrW,
    XorW,
    ShlW,
    ShrU,
    ShrI,
    AddF,
    SubF,
    MulF,
    DivF,
    RemF,
    MinF,
    MaxF,
    // d = a op b on longs; the shift amount is a word.
    AddX,
    SubX,
    MulX,
    DivX,
    RemX,
    MinX,
    MaxX,
    AndX,
    OrX,
    XorX,
    ShlX,
    ShrX,
    // Mask d = a op b.
    EqW,
    NeW,
    LtU,
    LeU,
    LtI,
    LeI,
    EqF,
    NeF,
    LtF,
    LeF,
    EqX,
    NeX,
    LtX,
    LeX,
    AndM,
    OrM,
    XorM,
    XnorM,
    NotM,
    // d = op a.
    NegW,
    NotW,
    AbsI,
    CountOnesW,
    LeadingZerosW,
    TrailingZerosW,
    NegF,
    AbsF,
    Floor,
    Ceil,
    Trunc,
    RoundEven,
    Sqrt,
    NegX,
    NotX,
    CountOnesX,
    LeadingZerosX,
    TrailingZerosX,
    // d = a * b + c on f32, rounded once.
    Fma,
    // d = c ? a : b, c a mask.
    SelectW,
    SelectL,
    SelectM,
    // Conversions, from and to.
    MaskToW,
    MaskToX,
    MaskToF,
    WToMask,
    XToMask,
    FToMask,
    UToX,
    IToX,
    XToW,
    FToU,
    FToI,
    FToX,
    UToF,
    IToF,
    XToF,
    // d = buffer c [a + b].
    LoadU8,
    LoadU16,
    LoadW,
    LoadL,
    LoadF16,
    LoadBF16,
    // buffer c [a] = b.
    StoreU8,
    StoreU16,
    StoreW,
    StoreL,
    StoreF16,
    StoreBF16,
    // Atomics on element a of the buffer that t, an `AtomicWord`, names; b is the operand.
    AtomicLoadW,
    AtomicLoadL,
    AtomicStoreW,
    AtomicStoreL,
    RmwW,
    RmwL,
    // The same; b is the value expected, c its replacement.
    CompareExchangeW,
    CompareExchangeL,
    // d = a of lane b, among the active lanes; zero if there is none.
    ShuffleW,
    ShuffleL,
    ShuffleM,
    // d = a of several active lanes combined; t, a `CombineWord`, says how.
    CombineW,
    CombineL,
    // d = the bits of a, whether one is set, and whether all are, among the active lanes.
    Ballot,
    Any,
    All,
    /// Goes to t.
    Jump,
    /// Goes to t if no lane is active.
    JumpIfNone,
    /// Saves the active lanes in d, keeps those in a; without any, undoes that and goes to t.
    If,
    /// Saves the active lanes in d and those not in a in b, keeps those in a; without any, keeps all and
    /// goes to t, the other block.
    IfElse,
    /// Activates b; without any, goes to t.
    Else,
    /// Activates those in a that have not ended. None may be left if the wave was told to stop.
    EndIf,
    /// Activates those in a that are still in b and have not ended; without any, goes to t.
    Restore,
    /// Saves the active lanes in d and b.
    Enter,
    /// Saves the active lanes in d.
    SaveExec,
    /// Takes the active lanes out of d.
    ClearM,
    /// Ends the active lanes.
    EndLanes,
    /// Keeps the active lanes that are in a, and saves them in b; without any, goes to t.
    WhileTest,
    /// Activates those in b that have not ended; with any, goes to t.
    LoopBack,
    /// Keeps the active lanes where a < b, and saves them in c; without any, goes to t.
    ForTest,
    /// Adds a to d in the lanes in c; activates those that have not passed 2^32 and are below b; with any,
    /// goes to t.
    ForNext,
    /// Splits the active lanes by selector a into d, the target of each lane; b holds the lanes still to
    /// do, t is the table. Goes to the first target.
    Switch,
    /// Goes to the next target of the switch, or to its end.
    SwitchNext,
    /// Puts the return address into mask register d and goes to t.
    Call,
    /// Activates those in a that have not ended, and goes to the address in mask register b.
    Ret,
    /// Ends the active lanes with code a.
    Trap,
    /// Suspends the wave.
    WorkgroupBarrier,
    /// Suspends the wave.
    GridBarrier,
    /// Suspends the wave for call t of an external function.
    External,
    /// Ends the wave.
    End,
}

/// What a field of an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Nothing.
    None,
    /// A word register.
    Word,
    /// A long register.
    Long,
    /// A mask register.
    Mask,
    /// A buffer.
    Buffer,
    /// An axis: 0, 1 or 2.
    Axis,
}

/// What the field `t` of an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extra {
    /// Nothing.
    None,
    /// An instruction.
    Target,
    /// A switch table.
    Table,
    /// An [`AtomicWord`].
    Atomic,
    /// A [`CombineWord`].
    Combine,
    /// A call of an external function.
    Call,
}

impl Code {
    /// What `d`, `a`, `b`, `c` and `t` refer to. `d` of [`Code::ForNext`] is read and written.
    pub(crate) const fn shape(self) -> ([Field; 4], Extra) {
        use Code::*;
        use Field::{Axis, Buffer, Long as L, Mask as M, None as N, Word as W};
        let fields = match self {
            MovW | MovMaskedW => [W, W, N, N],
            MovL | MovMaskedL => [L, L, N, N],
            MovM | MovMaskedM | NotM => [M, M, N, N],
            LocalId | GlobalId | WorkgroupId | NumWorkgroups | SubgroupLane | SubgroupId => [W, N, N, Axis],
            BufferLen => [W, N, N, Buffer],
            AddW | SubW | MulW | DivU | DivI | RemU | RemI | MinU | MinI | MaxU | MaxI | AndW | OrW
            | XorW | ShlW | ShrU | ShrI | AddF | SubF | MulF | DivF | RemF | MinF | MaxF => [W, W, W, N],
            AddX | SubX | MulX | DivX | RemX | MinX | MaxX | AndX | OrX | XorX => [L, L, L, N],
            ShlX | ShrX => [L, L, W, N],
            EqW | NeW | LtU | LeU | LtI | LeI | EqF | NeF | LtF | LeF => [M, W, W, N],
            EqX | NeX | LtX | LeX => [M, L, L, N],
            AndM | OrM | XorM | XnorM => [M, M, M, N],
            NegW | NotW | AbsI | CountOnesW | LeadingZerosW | TrailingZerosW | NegF | AbsF | Floor | Ceil
            | Trunc | RoundEven | Sqrt => [W, W, N, N],
            NegX | NotX | CountOnesX | LeadingZerosX | TrailingZerosX => [L, L, N, N],
            Fma => [W, W, W, W],
            SelectW => [W, W, W, M],
            SelectL => [L, L, L, M],
            SelectM => [M, M, M, M],
            MaskToW | MaskToF => [W, M, N, N],
            MaskToX => [L, M, N, N],
            WToMask | FToMask => [M, W, N, N],
            XToMask => [M, L, N, N],
            UToX | IToX | FToX => [L, W, N, N],
            XToW | XToF => [W, L, N, N],
            FToU | FToI | UToF | IToF => [W, W, N, N],
            LoadU8 | LoadU16 | LoadW | LoadF16 | LoadBF16 => [W, W, W, Buffer],
            LoadL => [L, W, W, Buffer],
            AtomicLoadW => [W, W, N, N],
            AtomicLoadL => [L, W, N, N],
            StoreU8 | StoreU16 | StoreW | StoreF16 | StoreBF16 => [N, W, W, Buffer],
            StoreL => [N, W, L, Buffer],
            AtomicStoreW => [N, W, W, N],
            AtomicStoreL => [N, W, L, N],
            RmwW => [W, W, W, N],
            RmwL => [L, W, L, N],
            CompareExchangeW => [W, W, W, W],
            CompareExchangeL => [L, W, L, L],
            ShuffleW => [W, W, W, N],
            ShuffleL => [L, L, W, N],
            ShuffleM => [M, M, W, N],
            CombineW => [W, W, N, N],
            CombineL => [L, L, N, N],
            Ballot => [L, M, N, N],
            Any | All => [M, M, N, N],
            Jump | JumpIfNone | External | EndLanes | WorkgroupBarrier | GridBarrier | End => [N, N, N, N],
            If => [M, M, N, N],
            IfElse => [M, M, M, N],
            Else | LoopBack => [N, N, M, N],
            EndIf => [N, M, N, N],
            Restore | WhileTest | Ret => [N, M, M, N],
            Enter => [M, N, M, N],
            SaveExec | ClearM | Call => [M, N, N, N],
            ForTest => [N, W, W, M],
            ForNext => [W, W, W, M],
            Switch => [W, W, M, N],
            SwitchNext => [N, W, M, N],
            Trap => [N, W, N, N],
        };
        let extra = match self {
            Jump | JumpIfNone | If | IfElse | Else | Restore | WhileTest | LoopBack | ForTest | ForNext
            | Call => Extra::Target,
            Switch | SwitchNext => Extra::Table,
            AtomicLoadW | AtomicLoadL | AtomicStoreW | AtomicStoreL | RmwW | RmwL | CompareExchangeW
            | CompareExchangeL => Extra::Atomic,
            CombineW | CombineL => Extra::Combine,
            External => Extra::Call,
            _ => Extra::None,
        };
        (fields, extra)
    }
}

/// The details of an atomic, packed into `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtomicWord {
    /// For a read-modify-write.
    pub(crate) op: RmwOp,
    /// Whether the element is an `i32`.
    pub(crate) signed: bool,
    /// 0 relaxed, 1 acquire, 2 release, 3 both.
    pub(crate) ordering: u8,
    /// The buffer.
    pub(crate) buffer: usize,
}

impl AtomicWord {
    pub(crate) const fn pack(self) -> u32 {
        (self.buffer as u32) << 8 | (self.op as u32) << 4 | (self.signed as u32) << 2 | self.ordering as u32
    }

    pub(crate) const fn unpack(word: u32) -> AtomicWord {
        AtomicWord {
            op: match word >> 4 & 7 {
                x if x == RmwOp::Add as u32 => RmwOp::Add,
                x if x == RmwOp::Sub as u32 => RmwOp::Sub,
                x if x == RmwOp::And as u32 => RmwOp::And,
                x if x == RmwOp::Or as u32 => RmwOp::Or,
                x if x == RmwOp::Xor as u32 => RmwOp::Xor,
                x if x == RmwOp::Min as u32 => RmwOp::Min,
                x if x == RmwOp::Max as u32 => RmwOp::Max,
                _ => RmwOp::Exchange,
            },
            signed: word >> 2 & 1 != 0,
            ordering: (word & 3) as u8,
            buffer: (word >> 8) as usize,
        }
    }
}

/// Which lanes' values a lane gets combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Those of all.
    All,
    /// Its own and those below.
    Inclusive,
    /// Those below.
    Exclusive,
}

/// How values of several lanes are combined, packed into `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CombineWord {
    pub(crate) op: ReduceOp,
    pub(crate) ty: ScalarType,
    pub(crate) extent: Extent,
}

impl CombineWord {
    pub(crate) const fn pack(self) -> u32 {
        (self.op as u32) << 8 | (self.ty as u32) << 4 | self.extent as u32
    }

    pub(crate) const fn unpack(word: u32) -> CombineWord {
        CombineWord {
            op: match word >> 8 {
                x if x == ReduceOp::Add as u32 => ReduceOp::Add,
                x if x == ReduceOp::Min as u32 => ReduceOp::Min,
                x if x == ReduceOp::Max as u32 => ReduceOp::Max,
                x if x == ReduceOp::And as u32 => ReduceOp::And,
                x if x == ReduceOp::Or as u32 => ReduceOp::Or,
                _ => ReduceOp::Xor,
            },
            ty: match word >> 4 & 15 {
                x if x == ScalarType::Bool as u32 => ScalarType::Bool,
                x if x == ScalarType::U32 as u32 => ScalarType::U32,
                x if x == ScalarType::I32 as u32 => ScalarType::I32,
                x if x == ScalarType::U64 as u32 => ScalarType::U64,
                _ => ScalarType::F32,
            },
            extent: match word & 15 {
                0 => Extent::All,
                1 => Extent::Inclusive,
                _ => Extent::Exclusive,
            },
        }
    }
}

/// The instruction that loads an element.
pub(crate) const fn load_code(element: DataType) -> Code {
    match element {
        DataType::U8 => Code::LoadU8,
        DataType::U16 => Code::LoadU16,
        DataType::U32 | DataType::I32 | DataType::F32 => Code::LoadW,
        DataType::U64 => Code::LoadL,
        DataType::F16 => Code::LoadF16,
        DataType::BF16 => Code::LoadBF16,
    }
}

/// The instruction that stores an element.
pub(crate) const fn store_code(element: DataType) -> Code {
    match element {
        DataType::U8 => Code::StoreU8,
        DataType::U16 => Code::StoreU16,
        DataType::U32 | DataType::I32 | DataType::F32 => Code::StoreW,
        DataType::U64 => Code::StoreL,
        DataType::F16 => Code::StoreF16,
        DataType::BF16 => Code::StoreBF16,
    }
}
