//! The contract of devices over those that every machine has.

use std::ops::Range;

use forebay_device::{DeviceMemory, DeviceSpec, FakeDevice, HostDevice};
use forebay_testkit::contract::{DeviceSubject, device};

#[test]
fn the_host_keeps_the_contract() {
    let (host, other) = (HostDevice::new(), FakeDevice::new(1.0));
    let read = |memory: &DeviceMemory, range: Range<u64>| {
        assert!(range.start <= range.end && range.end <= memory.bytes());
        let address = usize::try_from(memory.address() + range.start).unwrap();
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        let from = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: the range lies in the memory, as asserted, and no copy to it is under way when
        // the suite reads.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, bytes.len()) };
        bytes
    };
    device(DeviceSubject { device: &host, other: &other, memory: Some(&read) });
}

#[test]
fn a_fake_device_with_memory_keeps_the_contract() {
    let (fake, other) = (FakeDevice::with_memory(5.0), HostDevice::new());
    let read = |memory: &DeviceMemory, range| fake.read(memory, range).expect("it has memory");
    device(DeviceSubject { device: &fake, other: &other, memory: Some(&read) });
    assert_eq!((fake.registrations(), fake.allocated()), (0, 0), "everything is given back");
}

#[test]
fn a_fake_device_that_stores_nothing_keeps_the_contract() {
    let (fake, other) = (FakeDevice::new(5.0), FakeDevice::with_memory(4.0));
    device(DeviceSubject { device: &fake, other: &other, memory: None });
    assert_eq!((fake.registrations(), fake.allocated()), (0, 0), "everything is given back");
}

#[test]
fn a_fake_device_that_refuses_to_register_keeps_the_contract() {
    let (fake, other) = (FakeDevice::with_memory(5.0), HostDevice::new());
    fake.refuse_registration();
    let read = |memory: &DeviceMemory, range| fake.read(memory, range).expect("it has memory");
    device(DeviceSubject { device: &fake, other: &other, memory: Some(&read) });
}

#[test]
fn names_open_devices() {
    for name in ["host", "fake:12.5"] {
        let device = DeviceSpec::parse(name).unwrap().open().unwrap();
        assert_eq!(device.info().spec.to_string(), name);
    }
}
