//! The way a person names a device: `host`, `fake:GBPS`, `cuda:N`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::cuda::CudaDevice;
use crate::error::DeviceError;
use crate::fake::FakeDevice;
use crate::host::HostDevice;
use crate::seam::Device;

/// The fastest a fake device may be asked to be, in units of 1e9 bytes a second.
const FAKE_GIGABYTES_PER_SECOND_MAX: f64 = 1e6;

/// Which device to copy to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// Use the bytes where they are lent.
    Host,
    /// A device that only takes the time a real one would.
    Fake {
        /// How fast, in units of 1e9 bytes a second.
        gigabytes_per_second: f64,
    },
    /// A CUDA device.
    Cuda {
        /// Which one, as the driver counts.
        ordinal: u32,
    },
}

impl DeviceSpec {
    /// Reads a device's name. A well-formed name may still be of a device that this build does not
    /// have: [`DeviceSpec::open`] says so.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let bad = |reason| DeviceError::BadSpec { text: text.to_owned(), reason };
        match text.split_once(':') {
            None if text == "host" => Ok(Self::Host),
            Some(("fake", rate)) => rate
                .parse()
                .ok()
                .filter(|&rate: &f64| rate > 0.0 && rate <= FAKE_GIGABYTES_PER_SECOND_MAX)
                .map(|gigabytes_per_second| Self::Fake { gigabytes_per_second })
                .ok_or_else(|| bad("the rate is no positive number of GB/s up to 1000000")),
            Some(("cuda", ordinal)) => ordinal
                .parse()
                .map(|ordinal| Self::Cuda { ordinal })
                .map_err(|_| bad("the number of the device is no small whole number")),
            None if text == "fake" => Err(bad("the rate is missing")),
            None if text == "cuda" => Err(bad("the number of the device is missing")),
            _ => Err(bad("the kind is unknown")),
        }
    }

    /// The device itself.
    pub fn open(&self) -> Result<Arc<dyn Device>, DeviceError> {
        match self {
            Self::Host => Ok(Arc::new(HostDevice::new())),
            Self::Fake { gigabytes_per_second } => {
                Ok(Arc::new(FakeDevice::new(*gigabytes_per_second)))
            }
            Self::Cuda { ordinal } => Ok(Arc::new(CudaDevice::open(*ordinal)?)),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text)
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Fake { gigabytes_per_second } => write!(f, "fake:{gigabytes_per_second}"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for (text, spec) in [
            ("host", DeviceSpec::Host),
            ("fake:12.5", DeviceSpec::Fake { gigabytes_per_second: 12.5 }),
            ("fake:0.001", DeviceSpec::Fake { gigabytes_per_second: 0.001 }),
            ("cuda:0", DeviceSpec::Cuda { ordinal: 0 }),
            ("cuda:4294967295", DeviceSpec::Cuda { ordinal: u32::MAX }),
        ] {
            assert_eq!(DeviceSpec::parse(text), Ok(spec));
            assert_eq!(spec.to_string(), text);
            assert_eq!(text.parse(), Ok(spec));
        }
    }

    #[test]
    fn other_names_are_errors_that_say_what_to_give() {
        for text in [
            "",
            "Host",
            " host",
            "host:",
            "host:0",
            "gpu",
            "gpu:0",
            "fake",
            "fake:",
            "fake:0",
            "fake:-1",
            "fake:nan",
            "fake:inf",
            "fake:1e300",
            "fake:1GB",
            "cuda",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:4294967296",
            "cuda:0:1",
        ] {
            let error = DeviceSpec::parse(text).expect_err(text);
            assert!(matches!(&error, DeviceError::BadSpec { text: told, .. } if told == text));
            assert!(error.to_string().ends_with("give host, fake:GBPS or cuda:N"), "{error}");
        }
    }
}
