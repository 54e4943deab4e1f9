//! What a value of the file can become.

use std::time::Duration;

use toml::de::DeValue;

use crate::{ByteRate, ByteSize, Percent, format_duration, parse_duration};

/// A type a key can have. The error says what is wrong and what is allowed, and reads on after the value as written.
pub(crate) trait Setting: Sized {
    fn read(value: &DeValue<'_>) -> Result<Self, String>;
}

/// A setting with bounds, shown in the message in the form one writes in the file.
pub(crate) trait Bounded: Setting + PartialOrd {
    fn shown(&self) -> String;
}

/// The text of a string value; `allowed` says what to write instead of another type.
pub(crate) fn text<'v>(value: &'v DeValue<'_>, allowed: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| format!("is {}, not {allowed}", article(value)))
}

pub(crate) fn article(value: &DeValue<'_>) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}

impl Setting for bool {
    fn read(value: &DeValue<'_>) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| format!("is {}, not true or false", article(value)))
    }
}

impl Setting for String {
    fn read(value: &DeValue<'_>) -> Result<String, String> {
        text(value, "a string").map(str::to_owned)
    }
}

impl Setting for u32 {
    fn read(value: &DeValue<'_>) -> Result<u32, String> {
        let integer = value.as_integer().ok_or_else(|| format!("is {}, not a whole number", article(value)))?;
        u32::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| format!("is not a number from 0 to {}", u32::MAX))
    }
}

impl Bounded for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Setting for Duration {
    fn read(value: &DeValue<'_>) -> Result<Duration, String> {
        parse_duration(text(value, "a time in quotes with its unit, for instance \"300s\", \"5m\", \"4h\", \"5d\" or \"250ms\"")?)
    }
}

impl Bounded for Duration {
    fn shown(&self) -> String {
        format!("\"{}\"", format_duration(*self))
    }
}

impl Setting for ByteSize {
    fn read(value: &DeValue<'_>) -> Result<ByteSize, String> {
        text(value, "a size in quotes with its unit, for instance \"25 MiB\", \"64 KiB\" or \"512 B\"")?.parse()
    }
}

impl Bounded for ByteSize {
    fn shown(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for ByteRate {
    fn read(value: &DeValue<'_>) -> Result<ByteRate, String> {
        text(value, "a rate in quotes with its unit, for instance \"500 B/s\"")?.parse()
    }
}

impl Bounded for ByteRate {
    fn shown(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for Percent {
    fn read(value: &DeValue<'_>) -> Result<Percent, String> {
        text(value, "a share in quotes, for instance \"20 %\"")?.parse()
    }
}

impl Bounded for Percent {
    fn shown(&self) -> String {
        format!("\"{self}\"")
    }
}
