//! The fakes themselves, over real sockets: protocols, faults, limits, and the contract suites run
//! over Forebay's own stores and devices.

#[cfg(test)]
mod wire;
