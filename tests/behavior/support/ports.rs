//! Port numbers for servers whose port must be known before they start.

use std::net::{Ipv4Addr, TcpListener};

/// A port on loopback that nobody listens on. Chosen at random below the range that the system gives to outgoing
/// connections (32768 and up), so that none of those takes it before the server binds it.
pub fn free_port() -> u16 {
    for _ in 0..1000 {
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes).expect("the system's generator works");
        let port = 10_000 + u16::from_ne_bytes(bytes) % 22_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback")
}
