//! A histogram as text: what JSON carries and interval logs carry, the same bytes (HdrHistogram V2, deflate, base64).

use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2DeflateSerializer},
};
use serde::{Deserialize, Serialize};

/// The largest latency that is told apart; longer ones are recorded as this. One hour.
pub const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Significant decimal digits: a recorded value is at most 0.1 % off.
pub const SIGNIFICANT_DIGITS: u8 = 3;
/// Longest text that is decoded; a full histogram of this crate is below 100 KiB of it.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// An empty histogram for latencies in nanoseconds, 1 ns to [`LATENCY_MAX_NS`], [`SIGNIFICANT_DIGITS`] digits. Nanoseconds because
/// viewers of interval logs expect them; the counters of values that never occur are pages never touched.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, SIGNIFICANT_DIGITS).expect("the bounds are constants that fit")
}

/// A histogram as text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EncodedHistogram(String);

impl EncodedHistogram {
    /// Encodes.
    pub fn new(histogram: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("memory takes the bytes, and counts are below 2^63");
        EncodedHistogram(STANDARD.encode(bytes))
    }

    /// Decodes into a histogram of this crate's bounds. Fails on text that is no histogram or holds values beyond the bounds.
    pub fn decode(&self) -> Result<Histogram<u64>, String> {
        if self.0.len() > TEXT_BYTES_MAX {
            return Err(format!("a histogram of {} bytes of text is too long", self.0.len()));
        }
        let bytes = STANDARD.decode(&self.0).map_err(|reason| format!("a histogram is not base64: {reason}"))?;
        let read: Histogram<u64> =
            Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|reason| format!("not a histogram: {reason}"))?;
        let mut histogram = latency_histogram();
        histogram.add(&read).map_err(|reason| format!("a histogram has values beyond one hour: {reason}"))?;
        Ok(histogram)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back_is_the_same_histogram() {
        let mut histogram = latency_histogram();
        for value in [1, 999, 1_000_000, 81_000_000, LATENCY_MAX_NS] {
            histogram.record_n(value, 7).unwrap();
        }
        assert_eq!(EncodedHistogram::new(&histogram).decode().unwrap(), histogram);
    }

    #[test]
    fn text_that_is_no_histogram_is_refused() {
        for text in ["", "HISTFAAA", "%%%", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert!(EncodedHistogram(text.to_owned()).decode().is_err(), "{text:?}");
        }
    }
}
