//! Where the bytes of a load should lie: near a GPU, or on a NUMA node. One type for both ends.

use std::fmt;
use std::str::FromStr;

use crate::failure::{Failure, Reason};
use crate::pb;

/// Where bytes should lie in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// On the node that this GPU, or any other PCI device, hangs on.
    Gpu(PciAddress),
    /// On this NUMA node.
    Node(u32),
}

/// Where a device sits on PCI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The domain: more than 16 bits behind some bridges.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on it, 0 to 31.
    pub device: u8,
    /// Its function, 0 to 7.
    pub function: u8,
}

/// The text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no PCI address: give [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal, as `nvidia-smi \
     --query-gpu=pci.bus_id --format=csv` prints it, such as 00000000:3B:00.0"
)]
pub struct BadPciAddress(String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    /// The forms of nvidia-smi (`00000000:3B:00.0`), CUDA and sysfs (`0000:3b:00.0`) and lspci
    /// (`3b:00.0`).
    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        parse(text).ok_or_else(|| BadPciAddress(text.escape_debug().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>, most: u32| {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok().filter(|number| *number <= most);
        number.filter(|_| is_hex && digits.contains(&text.len()))
    };
    let (before, function) = text.split_once('.')?;
    let (before, device) = before.rsplit_once(':')?;
    let (domain, bus) = before.rsplit_once(':').unwrap_or(("0", before));
    Some(PciAddress {
        domain: hex(domain, 1..=8, u32::MAX)?,
        bus: u8::try_from(hex(bus, 1..=2, 255)?).ok()?,
        device: u8::try_from(hex(device, 1..=2, 31)?).ok()?,
        function: u8::try_from(hex(function, 1..=1, 7)?).ok()?,
    })
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu(address) => write!(f, "gpu {address}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

impl Placement {
    /// Checks what a request asks for, if it asks for anything.
    pub fn receive(placement: Option<pb::Placement>) -> Result<Option<Self>, Failure> {
        use pb::placement::Near;
        Ok(match placement.and_then(|placement| placement.near) {
            None => None,
            Some(Near::NumaNode(node)) => Some(Self::Node(node)),
            Some(Near::Gpu(text)) => {
                let bad =
                    |error: BadPciAddress| Failure::new(Reason::BadRequest, error.to_string());
                Some(Self::Gpu(text.parse().map_err(bad)?))
            }
        })
    }

    /// As a request says it.
    #[must_use]
    pub fn to_wire(self) -> pb::Placement {
        use pb::placement::Near;
        let near = match self {
            Self::Gpu(address) => Near::Gpu(address.to_string()),
            Self::Node(node) => Near::NumaNode(node),
        };
        pb::Placement { near: Some(near) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_s_form_is_the_same_address() {
        let address = PciAddress { domain: 0, bus: 0x3b, device: 0, function: 0 };
        for text in ["00000000:3B:00.0", "0000:3b:00.0", "3b:00.0", "0:3b:0.0"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        assert_eq!(address.to_string(), "0000:3b:00.0");
        let far: PciAddress = "00010000:FF:1F.7".parse().unwrap();
        assert_eq!(
            (far.domain, far.device, far.to_string()),
            (1 << 16, 31, "10000:ff:1f.7".into())
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "0",
            "3b:00",
            "3b.0",
            ":3b:00.0",
            "3b:20.0",
            "3b:00.8",
            "3b:00.00",
            "100:00.0",
            "000000000:3b:00.0",
            "0:0:3b:00.0",
            "+1:00.0",
            "3b:00.0 ",
            "../../x:00.0",
            "GPU-1f",
            "\u{663}b:00.0",
        ] {
            bad.parse::<PciAddress>().unwrap_err();
        }
    }

    #[test]
    fn requests_are_checked_on_receipt() {
        let gpu = Placement::Gpu("3b:00.0".parse().unwrap());
        for placement in [gpu, Placement::Node(1)] {
            assert_eq!(Placement::receive(Some(placement.to_wire())).unwrap(), Some(placement));
        }
        assert_eq!(Placement::receive(None).unwrap(), None);
        assert_eq!(Placement::receive(Some(pb::Placement::default())).unwrap(), None);
        let near = Some(pb::placement::Near::Gpu("cuda:0".into()));
        let refused = Placement::receive(Some(pb::Placement { near })).unwrap_err();
        assert_eq!(refused.reason, Reason::BadRequest);
        assert!(refused.message.contains("cuda:0"), "{}", refused.message);
    }
}
