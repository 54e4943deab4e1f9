//! Typed settings with units, and their checks.
