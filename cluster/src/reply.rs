//! Reading the answers of scripts: every value from outside is checked.

use redis::Value;

use crate::{
    identity::{EPOCH_MAX, Epoch},
    valkey_error::ValkeyError,
};

/// The elements of an answer, taken one after another.
pub(crate) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub fn new(value: Value) -> Result<Reply, ValkeyError> {
        match value {
            Value::Array(elements) => Ok(Reply(elements.into_iter())),
            _ => Err(ValkeyError::Malformed("a list was expected")),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub fn value(&mut self) -> Result<Value, ValkeyError> {
        self.0.next().ok_or(ValkeyError::Malformed("the list is too short"))
    }

    pub fn list(&mut self) -> Result<Reply, ValkeyError> {
        Reply::new(self.value()?)
    }

    pub fn number(&mut self) -> Result<i64, ValkeyError> {
        number(self.value()?)
    }

    /// A number that is never below zero.
    pub fn count(&mut self) -> Result<u64, ValkeyError> {
        u64::try_from(self.number()?).map_err(|_| ValkeyError::Malformed("a number is below zero"))
    }

    /// One that a node can keep: it would not start with a greater one in its spool.
    pub fn epoch(&mut self) -> Result<Epoch, ValkeyError> {
        Some(Epoch(self.count()?)).filter(|epoch| epoch.0 <= EPOCH_MAX).ok_or(ValkeyError::Malformed("an epoch is out of bounds"))
    }

    pub fn bytes(&mut self) -> Result<Vec<u8>, ValkeyError> {
        match self.value()? {
            Value::BulkString(bytes) => Ok(bytes),
            Value::SimpleString(text) => Ok(text.into_bytes()),
            _ => Err(ValkeyError::Malformed("bytes were expected")),
        }
    }

    pub fn text(&mut self) -> Result<String, ValkeyError> {
        String::from_utf8(self.bytes()?).map_err(|_| ValkeyError::Malformed("a text is not UTF-8"))
    }
}

pub(crate) fn number(value: Value) -> Result<i64, ValkeyError> {
    match value {
        Value::Int(number) => Ok(number),
        _ => Err(ValkeyError::Malformed("a number was expected")),
    }
}
