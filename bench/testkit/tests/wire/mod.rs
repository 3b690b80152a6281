//! One test binary; each module is about one thing a fake does.

mod client;
mod contracts;
mod faults;
mod limits;
mod protocols;
mod recovery;
