//! SMTP as pure rules: bytes in, actions out.
