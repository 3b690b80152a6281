//! The built binaries, end to end: a real `forebayd` per test, real sockets, real shared memory,
//! fake origins on the loopback that speak the real protocols.
//!
//! Each test starts what it needs in a directory of its own, with ephemeral ports, and ends with
//! [`Node::settled`](harness::Node::settled): whatever happened, the daemon's gauges go back to
//! zero. Nothing waits for a time to pass: tests wait for events, or look again until a condition
//! holds, a bounded number of times.

#[cfg(test)]
mod abuse;
#[cfg(test)]
mod aliases;
#[cfg(test)]
mod binaries;
#[cfg(test)]
mod bits;
#[cfg(test)]
mod canary;
mod capacity;
#[cfg(test)]
mod capi;
mod capi_device;
#[cfg(test)]
mod chrome;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod command;
#[cfg(test)]
mod control;
#[cfg(test)]
mod deadlines;
#[cfg(test)]
mod device;
#[cfg(test)]
mod digests;
#[cfg(test)]
mod doctor;
mod explain;
#[cfg(test)]
mod flips;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hoard;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod numa;
#[cfg(test)]
mod nvme;
#[cfg(test)]
mod nvme_damage;
#[cfg(test)]
mod nvme_files;
#[cfg(test)]
mod nvme_kills;
#[cfg(test)]
mod nvme_places;
#[cfg(test)]
mod origin;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod pack;
mod packed;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod real;
mod regimes;
#[cfg(test)]
mod remote;
#[cfg(test)]
mod resize;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod shipping;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod zst;
