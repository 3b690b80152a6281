//! Contract suites: what every implementation of a seam must do, whatever else it does.
//!
//! A suite is called from a test of the implementation, with a subject that says how to seed or
//! inspect it. It panics at the first rule that is broken, naming it.

mod device;
mod io;
mod origin;
mod sink;
mod topology;

pub use device::{DeviceSubject, ReadMemory, device};
pub use io::{IoSubject, io_engine};
pub use origin::{OriginSubject, origin_store};
pub use sink::{SinkSubject, origin_sink};
pub use topology::topology;
