//! How far a value is the same, and the graph along which differences spread.

use std::collections::VecDeque;

use crate::ir::{BufferId, Builtin, ExternalId, FunctionId};
use crate::limits::MAX_ARITY;

/// Among whom a value is surely the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    /// All invocations of the dispatch.
    #[default]
    Grid,
    /// The invocations of each workgroup.
    Workgroup,
    /// Nobody.
    Invocation,
}

/// The extent of a value: one that is known, and where it is less than that, that of parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) extent: Extent,
    /// A bit for each parameter that the value depends on.
    pub(super) params: u64,
}

// A parameter is a bit.
const _: () = assert!(MAX_ARITY <= u64::BITS as usize);

impl Spread {
    /// The spread of a parameter inside its function.
    pub(super) fn of_param(index: usize) -> Spread {
        let bit = u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index));
        Spread { extent: Extent::Grid, params: bit.unwrap_or(0) }
    }

    fn join(self, other: Spread) -> Spread {
        Spread { extent: self.extent.max(other.extent), params: self.params | other.params }
    }
}

impl From<Extent> for Spread {
    fn from(extent: Extent) -> Spread {
        Spread { extent, params: 0 }
    }
}

/// Index of a node of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) usize);

/// What makes a value differ, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    Builtin(Builtin),
    Load(BufferId),
    Atomic,
    Subgroup,
    External(ExternalId),
    Result(FunctionId, usize),
    Trap(FunctionId),
    Parameter,
}

#[derive(Debug, Default)]
struct Vertex {
    own: Spread,
    cause: Option<Cause>,
    feeds: Vec<Place>,
    fed_by: Vec<Place>,
}

/// Places and the edges along which a difference at one becomes a difference at another.
#[derive(Debug, Default)]
pub(super) struct Graph {
    vertices: Vec<Vertex>,
}

impl Graph {
    /// A new place.
    pub(super) fn place(&mut self) -> Place {
        self.vertices.push(Vertex::default());
        Place(self.vertices.len() - 1)
    }

    /// Says that `to` may differ wherever `from` does.
    pub(super) fn edge(&mut self, from: Place, to: Place) {
        if let Some(vertex) = self.vertices.get_mut(from.0) {
            vertex.feeds.push(to);
        }
        if let Some(vertex) = self.vertices.get_mut(to.0) {
            vertex.fed_by.push(from);
        }
    }

    /// Says that a place differs by itself.
    pub(super) fn source(&mut self, place: Place, spread: Spread, cause: Cause) {
        let Some(vertex) = self.vertices.get_mut(place.0) else { return };
        if vertex.cause.is_none() || spread.extent > vertex.own.extent {
            vertex.cause = Some(cause);
        }
        vertex.own = vertex.own.join(spread);
    }

    /// The spread of every place. A place changes at most 66 times, and only then are its edges followed.
    pub(super) fn spread(&self) -> Vec<Spread> {
        let mut spreads: Vec<Spread> = self.vertices.iter().map(|vertex| vertex.own).collect();
        let mut changed: VecDeque<usize> = (0..spreads.len()).collect();
        let mut waiting = vec![true; spreads.len()];
        while let Some(from) = changed.pop_front() {
            if let Some(waiting) = waiting.get_mut(from) {
                *waiting = false;
            }
            let Some(&spread) = spreads.get(from) else { continue };
            for to in self.vertices.get(from).map_or(&[][..], |vertex| &vertex.feeds) {
                let (Some(target), Some(waiting)) = (spreads.get_mut(to.0), waiting.get_mut(to.0)) else {
                    continue;
                };
                let joined = target.join(spread);
                if joined != *target {
                    *target = joined;
                    if !*waiting {
                        *waiting = true;
                        changed.push_back(to.0);
                    }
                }
            }
        }
        spreads
    }

    /// A nearest reason why `place` is not the same within `extent`, and the places from there to here.
    pub(super) fn cause(
        &self,
        place: Place,
        extent: Extent,
        spreads: &[Spread],
    ) -> (Option<Cause>, Vec<Place>) {
        let mut towards: Vec<Option<Place>> = vec![None; self.vertices.len()];
        let mut pending = VecDeque::from([place]);
        while let Some(current) = pending.pop_front() {
            let Some(vertex) = self.vertices.get(current.0) else { continue };
            if vertex.own.extent > extent {
                let next =
                    |place: &Place| towards.get(place.0).copied().flatten().filter(|&next| next != *place);
                return (vertex.cause, std::iter::successors(Some(current), next).collect());
            }
            for &from in &vertex.fed_by {
                let differs = spreads.get(from.0).is_some_and(|spread| spread.extent > extent);
                if let Some(slot @ None) = towards.get_mut(from.0)
                    && differs
                    && from != place
                {
                    *slot = Some(current);
                    pending.push_back(from);
                }
            }
        }
        (None, Vec::new())
    }
}
