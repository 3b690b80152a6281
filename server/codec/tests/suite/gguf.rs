//! GGUF headers: found step by step, and refused where they lie.

use forebay_codec::gguf::{GgufError, HEADER_BYTES_MAX, Parsed, parse};
use proptest::prelude::*;

/// Writes a header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header(pub(crate) Vec<u8>);

impl Header {
    pub(crate) fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        let mut header = Self(b"GGUF".to_vec());
        header.0.extend(version.to_le_bytes());
        header.u64(tensors).u64(pairs)
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn string(self, text: &str) -> Self {
        let mut header = self.u64(text.len() as u64);
        header.0.extend(text.as_bytes());
        header
    }

    fn pair(self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut header = self.string(key).u32(kind);
        header.0.extend(value);
        header
    }

    pub(crate) fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let header = self.string(name).u32(u32::try_from(shape.len()).unwrap());
        shape.iter().fold(header, |header, dimension| header.u64(*dimension)).u32(kind).u64(offset)
    }
}

/// A header with a pair of every type, and tensors of several.
pub(crate) fn full() -> Header {
    let mut header = Header::new(3, 4, 15).pair("general.alignment", 4, &64u32.to_le_bytes());
    for (kind, bytes) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1)] {
        header = header.pair(&format!("scalar.{kind}"), kind, &vec![1; bytes]);
    }
    for kind in 10..=12 {
        header = header.pair(&format!("scalar.{kind}"), kind, &[1; 8]);
    }
    let words = Header::default().u32(8).u64(2).string("Hello").string("");
    let numbers = Header::default().u32(6).u64(3).u32(1).u32(2).u32(3);
    let nested = Header::default().u32(9).u64(1).u32(0).u64(2);
    header
        .pair("words", 9, &words.0)
        .pair("numbers", 9, &numbers.0)
        .pair("nested", 9, &[nested.0, vec![7, 7]].concat())
        .tensor("output", &[256, 2], 12, 64)
        .tensor("norm", &[16], 0, 0)
        .tensor("later", &[5], 77, 384)
        .tensor("embed", &[32, 3], 8, 448)
}

const DATA_BYTES: u64 = 1024;

fn object_bytes(header: &Header) -> u64 {
    (header.0.len() as u64).next_multiple_of(64) + DATA_BYTES
}

fn problem(header: &Header) -> String {
    parse(&header.0, object_bytes(header)).unwrap_err().to_string()
}

#[test]
fn tensors_come_in_the_order_of_their_bytes() {
    let header = full();
    let data_at = (header.0.len() as u64).next_multiple_of(64);
    let parsed = parse(&header.0, object_bytes(&header)).unwrap();
    let Parsed::Tensors { tensors, header_bytes } = parsed else { panic!("{parsed:?}") };
    assert_eq!(header_bytes, header.0.len() as u64);
    let tensors: Vec<_> = tensors
        .iter()
        .map(|tensor| (&*tensor.name, &*tensor.dtype, tensor.offset - data_at, tensor.bytes))
        .collect();
    let expected = [
        ("norm", "F32", 0, 64),
        ("output", "Q4_K", 64, 288),
        ("later", "GGML_77", 384, 64),
        ("embed", "Q8_0", 448, 102),
    ];
    assert_eq!(tensors, expected);
}

#[test]
fn every_beginning_asks_for_more() {
    let header = full();
    let object = object_bytes(&header);
    for have in 0..header.0.len() {
        match parse(&header.0[..have], object) {
            Ok(Parsed::Need(needed)) => assert!(needed > have as u64 && needed <= object),
            other => panic!("after {have} bytes: {other:?}"),
        }
        // As an object that ends there it is too short.
        let error = parse(&header.0[..have], have as u64).unwrap_err();
        assert!(matches!(error, GgufError::TooLong { .. }), "after {have} bytes: {error}");
    }
}

#[test]
fn asking_ends() {
    let object = 1u64 << 40;
    let mut pairs = Header::new(3, 0, 1).pair("words", 9, &[]).u32(8).u64(u64::MAX);
    let mut asked = 0;
    loop {
        match parse(&pairs.0, object) {
            Ok(Parsed::Need(needed)) => pairs.0.resize(usize::try_from(needed).unwrap(), 0),
            Err(GgufError::TooLong { .. }) => break,
            other => panic!("{other:?}"),
        }
        asked += 1;
    }
    assert_eq!(pairs.0.len() as u64, HEADER_BYTES_MAX);
    assert!(asked <= 15, "asked {asked} times");
    // What cannot be there is not asked for.
    let huge = Header::new(3, 0, 1).pair("numbers", 9, &[]).u32(10).u64(u64::MAX / 2);
    assert!(matches!(parse(&huge.0, object), Err(GgufError::TooLong { .. })));
    let huge = Header::new(3, 0, 1).pair("text", 8, &(u64::MAX - 3).to_le_bytes());
    assert!(matches!(parse(&huge.0, object), Err(GgufError::TooLong { .. })));
}

#[test]
fn hostile_headers_are_refused() {
    let one = |shape: &[u64], kind, offset| Header::new(2, 1, 0).tensor("t", shape, kind, offset);
    let deep =
        (0..9).fold(Header::new(3, 0, 1).pair("deep", 9, &[]), |header, _| header.u32(9).u64(1));
    let align =
        |value: u32| Header::new(3, 0, 1).pair("general.alignment", 4, &value.to_le_bytes());
    let cases = [
        (Header(b"GGML____".to_vec()), "no GGUF"),
        (Header::new(1, 0, 0), "version 1"),
        (Header::new(3 << 24, 0, 0), "version 50331648"),
        (Header::new(3, u64::MAX, 0), "tensors are more than"),
        (Header::new(3, 0, u64::MAX), "pairs of metadata are more than"),
        (Header::new(3, 0, 1).u64(1 << 16), "bytes of a key"),
        (Header::new(3, 0, 1).pair("k", 13, &[]), "type 13"),
        (Header::new(3, 0, 1).pair("k", 9, &[]).u32(99).u64(0), "type 99"),
        (deep, "arrays in arrays"),
        (align(0), "alignment"),
        (align(48), "alignment"),
        (Header::new(3, 0, 1).pair("general.alignment", 10, &[0; 8]), "alignment"),
        (Header::new(3, 1, 0).u64(5000), "bytes of a tensor's name"),
        (Header::new(3, 1, 0).string("t").u32(33), "dimensions"),
        (one(&[1 << 40, 1 << 40], 0, 0), "overflows"),
        (one(&[1 << 62], 0, 0), "overflows"),
        (one(&[33], 8, 0), "no whole blocks"),
        (one(&[16], 0, 33), "not aligned"),
        (one(&[4096], 0, 0), "ends after the object"),
        (one(&[16], 0, u64::MAX - 31), "ends after the object"),
        (one(&[16], 200, 1 << 40), "begins after the object"),
        (
            Header::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("a", &[16], 0, 64),
            "\"a\" is there twice",
        ),
        (Header::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 32), "\"b\" overlaps"),
    ];
    for (header, expected) in cases {
        let problem = problem(&header);
        assert!(problem.contains(expected), "expected {expected}: {problem}");
    }
    let mut name = one(&[1], 0, 0);
    name.0[32] = 0xFF;
    assert_eq!(parse(&name.0, 1 << 20), Err(GgufError::Name));
    let none = Header::new(2, 0, 0);
    let nothing = Parsed::Tensors { tensors: vec![], header_bytes: 24 };
    assert_eq!(parse(&none.0, 24), Ok(nothing));
}

proptest! {
    /// Whatever is changed in a header: no panic, and what is accepted lies in the object.
    #[test]
    fn no_header_reaches_outside_its_object(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        object in 0u64..3000,
    ) {
        let mut bytes = full().0;
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Parsed::Tensors { tensors, .. }) = parse(&bytes, object) {
            for tensor in tensors {
                prop_assert!(tensor.offset + tensor.bytes <= object);
            }
        }
        forebay_codec::fuzz::gguf_header(&bytes);
    }
}
