//! Numbers and addresses as text on paths that every message takes, where the machinery of `fmt` costs more than all else about a line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Digits of `u64::MAX`.
const DIGITS_MAX: usize = 20;

/// Appends decimal digits.
pub fn write_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; DIGITS_MAX];
    let mut start = digits.len();
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends `192.0.2.7`.
pub fn write_ipv4(address: Ipv4Addr, out: &mut Vec<u8>) {
    let octets = address.octets();
    write_number(octets[0].into(), out);
    for octet in &octets[1..] {
        out.push(b'.');
        write_number((*octet).into(), out);
    }
}

/// Appends `192.0.2.7:25` or `[2001:db8::7]:25`, as its `Display` does.
pub fn write_socket_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            write_ipv4(ip, out);
            out.push(b':');
            write_number(address.port().into(), out);
        }
        IpAddr::V6(_) => {
            use std::io::Write;
            write!(out, "{address}").expect("writing into a Vec cannot fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"x".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_what_display_says() {
        for shift in 0..64 {
            for number in [(1_u64 << shift) - 1, 1 << shift, u64::MAX >> shift] {
                assert_eq!(written(|out| write_number(number, out)), format!("x{number}"));
            }
        }
        for text in ["0.0.0.0:0", "192.0.2.7:25", "255.255.255.255:65535", "[2001:db8::7]:25", "[::ffff:192.0.2.7]:1", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(written(|out| write_socket_address(address, out)), format!("x{address}"));
            assert_eq!(written(|out| write_socket_address(address, out)), format!("x{text}"));
        }
    }
}
