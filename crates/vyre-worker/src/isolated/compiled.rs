//! A kernel compiled in a worker.

use vyre_driver::{
    BackendError, BufferBinding, CompiledPipeline, DispatchConfig, DispatchOutcome, Generation,
};

use super::Made;
use crate::host::message::{Range, Reply, Request};

pub(super) struct Compiled(pub(super) Made);

impl Compiled {
    /// One request for all rows: the host waits once where its backend does.
    fn run(
        &self,
        rows: &[&[BufferBinding]],
        config: &DispatchConfig,
    ) -> Result<Vec<DispatchOutcome>, BackendError> {
        let worker = self.0.check()?;
        self.0.incarnation.check()?;
        let ranges = |row: &&[BufferBinding]| -> Result<Vec<Range>, BackendError> {
            row.iter().map(|binding| self.0.incarnation.range(binding)).collect()
        };
        let count = rows.len();
        let rows = rows.iter().map(ranges).collect::<Result<_, _>>()?;
        match worker.call(&Request::dispatch(self.0.remote.number, rows, config), &[]) {
            Ok(Reply::Dispatched(outcomes)) if outcomes.len() == count => {
                Ok(outcomes.into_iter().map(DispatchOutcome::from).collect())
            }
            other => Err(worker.unexpected(other)),
        }
    }
}

impl CompiledPipeline for Compiled {
    fn generation(&self) -> Generation {
        self.0.incarnation.generation
    }

    fn dispatch(
        &self,
        bindings: &[BufferBinding],
        config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        let outcomes = self.run(&[bindings], config)?;
        outcomes.into_iter().next().ok_or_else(|| BackendError::invalid("rows", 0, "one outcome"))
    }

    fn dispatch_rows(
        &self,
        rows: &[&[BufferBinding]],
        config: &DispatchConfig,
    ) -> Result<Vec<DispatchOutcome>, BackendError> {
        self.run(rows, config)
    }
}
