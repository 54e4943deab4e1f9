//! Carrying live records out of a segment that holds few of them.

use std::marker::PhantomData;
use std::time::Instant;

use crate::log::Log;
use crate::op::{Host, Op, OpResult};

pub(crate) struct Compaction<B> {
    buffer: PhantomData<B>,
}

impl<B> Compaction<B> {
    pub(crate) fn new(_now: Instant) -> Self {
        Compaction { buffer: PhantomData }
    }

    pub(crate) fn is_about(&self, _slot: u32) -> bool {
        false
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        None
    }
}

impl<H: Host> Log<H> {
    pub(crate) fn compaction_op(&mut self, _now: Instant) -> Option<Op<H::Buffer>> {
        None
    }

    pub(crate) fn compaction_completed(&mut self, _result: OpResult<H::Buffer>) {}
}
