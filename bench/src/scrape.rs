//! What a daemon exposes as metrics, as a scraper gets it.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::Outcome;

/// Where a daemon that logs in JSON says that its metrics are.
pub(crate) fn metrics_address(log: &str) -> Outcome<String> {
    let mut ready = log.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["fields"]["metrics"].as_str().map(str::to_owned)
    });
    Ok(ready.next_back().ok_or("the daemon did not say where its metrics are")?)
}

/// The exposition at an address, with the head of its response.
pub(crate) fn exposition(address: &str) -> Outcome<String> {
    let mut socket = TcpStream::connect(address)?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut exposed = String::new();
    socket.read_to_string(&mut exposed)?;
    Ok(exposed)
}
