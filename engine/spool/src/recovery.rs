//! The start of a log.

use std::marker::PhantomData;

use crate::event::{Event, RecoveryReport};
use crate::log::{FoundFile, Log, Phase};
use crate::op::{Host, Op, OpResult};

pub(crate) struct Recovery<B> {
    files: Vec<FoundFile>,
    buffer: PhantomData<B>,
}

pub(crate) enum FoundItem {}

impl<B> Recovery<B> {
    pub(crate) fn new(files: &[FoundFile]) -> Self {
        Recovery { files: files.to_vec(), buffer: PhantomData }
    }
}

impl<H: Host> Log<H> {
    pub(crate) fn is_reading_old_log(&self) -> bool {
        false
    }

    pub(crate) fn recovery_op(&mut self) -> Option<Op<H::Buffer>> {
        None
    }

    pub(crate) fn recovery_completed(&mut self, _result: OpResult<H::Buffer>) {}

    pub(crate) fn recovery_step(&mut self) -> Option<FoundItem> {
        let recovery = self.recovery.as_ref()?;
        if recovery.files.is_empty() && self.segments.free_count() > 0 {
            self.recovery = None;
            self.phase = Phase::Open;
            self.events.push_back(Event::Opened);
            self.events.push_back(Event::Loaded(RecoveryReport::default()));
        }
        None
    }

    pub(crate) fn found_event(&self, found: FoundItem) -> Event<'_> {
        match found {}
    }
}
