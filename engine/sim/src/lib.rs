//! A seeded disk that tears, reorders and forgets.
