//! Subgroup operations. A subgroup is a wave, so each is an instruction or two.

use vyre_foundation::{Builtin, ReduceOp, ScalarType, Subgroup, SubgroupOp};

use super::{Frame, LowerError, Lowering, Pooled};
use crate::flat::{Code, CombineWord, Extent, Inst, Place};

impl Lowering<'_> {
    pub(super) fn subgroup(&mut self, frame: &mut Frame<'_>, subgroup: &Subgroup) -> Result<(), LowerError> {
        let place = frame.registers.place(frame.local_type(subgroup.result)?)?;
        let mark = frame.registers.mark();
        let ty = self.type_of(frame, &subgroup.value)?;
        let d = place.register();
        let a = self.expr(frame, &subgroup.value)?;
        let inst = match &subgroup.op {
            SubgroupOp::BroadcastFirst => shuffle(place, a, self.pooled(Pooled::Word(0))?.register()),
            SubgroupOp::Broadcast(lane) | SubgroupOp::Shuffle(lane) => {
                shuffle(place, a, self.expr(frame, lane)?)
            }
            SubgroupOp::ShuffleXor(mask) => {
                let mask = self.expr(frame, mask)?;
                let own = self.builtin(Builtin::SubgroupLane)?.register();
                let lane = frame.registers.word()?;
                self.push(Inst::new(Code::XorW, lane, own, mask, 0));
                shuffle(place, a, lane)
            }
            SubgroupOp::Reduce(op) => combine(place, a, ty, *op, Extent::All),
            SubgroupOp::InclusiveScan(op) => combine(place, a, ty, *op, Extent::Inclusive),
            SubgroupOp::ExclusiveScan(op) => combine(place, a, ty, *op, Extent::Exclusive),
            SubgroupOp::Ballot => Inst::new(Code::Ballot, d, a, 0, 0),
            SubgroupOp::Any => Inst::new(Code::Any, d, a, 0, 0),
            SubgroupOp::All => Inst::new(Code::All, d, a, 0, 0),
        };
        self.push(inst);
        frame.registers.release(mark);
        frame.define(subgroup.result, place)
    }
}

fn shuffle(place: Place, value: u16, lane: u16) -> Inst {
    let code = match place {
        Place::Word(_) => Code::ShuffleW,
        Place::Long(_) => Code::ShuffleL,
        Place::Mask(_) => Code::ShuffleM,
    };
    Inst::new(code, place.register(), value, lane, 0)
}

fn combine(place: Place, value: u16, ty: ScalarType, op: ReduceOp, extent: Extent) -> Inst {
    let code = if ty == ScalarType::U64 { Code::CombineL } else { Code::CombineW };
    Inst::new(code, place.register(), value, 0, 0).with(CombineWord { op, ty, extent }.pack())
}
