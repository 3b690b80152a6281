//! One operation, what it owns, and what comes back.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::error::IoError;
use crate::file::{DataFile, FileMode};
use crate::target::{StableBytes, StableBytesMut, bytes_of, bytes_of_mut};

/// A position in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

/// What to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Bytes from the file into memory.
    Read,
    /// Bytes from memory into the file. They survive a crash only after a sync.
    Write,
    /// Make what was written before survive a crash: data, and the metadata needed to read it.
    Sync,
}

impl OpKind {
    /// The lane it waits in.
    #[must_use]
    pub fn lane(self) -> Lane {
        match self {
            Self::Read => Lane::Read,
            Self::Write | Self::Sync => Lane::Write,
        }
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
        })
    }
}

/// The two queues before a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Reads: somebody waits for them.
    Read,
    /// Writes and syncs: nobody does.
    Write,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What an operation owns, without its type.
pub enum Payload {
    /// A sync has none.
    None,
    /// What a write takes its bytes from.
    Source(Box<dyn StableBytes>),
    /// What a read puts its bytes into.
    Target(Box<dyn StableBytesMut>),
}

impl Payload {
    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Source(source) => bytes_of(&**source),
            Self::Target(target) => bytes_of(&**target),
        }
    }

    /// All its bytes, to write; none unless it is a target.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::None | Self::Source(_) => &mut [],
            Self::Target(target) => bytes_of_mut(&mut **target),
        }
    }

    /// The value that was given to the operation, if it is one of this type.
    pub(crate) fn into_typed<T: Any>(self) -> Option<T> {
        let any: Box<dyn Any> = match self {
            Self::None => Box::new(()),
            Self::Source(source) => source,
            Self::Target(target) => target,
        };
        any.downcast().ok().map(|typed| *typed)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Source(source) => write!(f, "Source({} bytes)", source.size()),
            Self::Target(target) => write!(f, "Target({} bytes)", target.size()),
        }
    }
}

/// One operation, with everything it needs: it keeps its file open and its memory alive.
#[derive(Debug)]
pub struct Op {
    kind: OpKind,
    file: Arc<DataFile>,
    offset: FileOffset,
    range: Range<usize>,
    payload: Payload,
}

impl Op {
    /// Reads as many bytes as `range` has, from `offset` of the file into that range of `target`.
    pub fn read(
        file: &Arc<DataFile>,
        offset: FileOffset,
        target: impl StableBytesMut,
        range: Range<usize>,
    ) -> Self {
        let payload = Payload::Target(Box::new(target));
        Self { kind: OpKind::Read, file: Arc::clone(file), offset, range, payload }
    }

    /// Writes that range of `source` to `offset` of the file.
    pub fn write(
        file: &Arc<DataFile>,
        offset: FileOffset,
        source: impl StableBytes,
        range: Range<usize>,
    ) -> Self {
        let payload = Payload::Source(Box::new(source));
        Self { kind: OpKind::Write, file: Arc::clone(file), offset, range, payload }
    }

    /// Makes what was written to the file before survive a crash.
    #[must_use]
    pub fn sync(file: &Arc<DataFile>) -> Self {
        Self {
            kind: OpKind::Sync,
            file: Arc::clone(file),
            offset: FileOffset(0),
            range: 0..0,
            payload: Payload::None,
        }
    }

    /// The same operation at another place of the file.
    #[must_use]
    pub fn at(self, offset: FileOffset) -> Self {
        Self { offset, ..self }
    }

    /// What to do.
    #[must_use]
    pub fn kind(&self) -> OpKind {
        self.kind
    }

    /// With which file.
    #[must_use]
    pub fn file(&self) -> &Arc<DataFile> {
        &self.file
    }

    /// Where in the file.
    #[must_use]
    pub fn offset(&self) -> FileOffset {
        self.offset
    }

    /// Which part of the memory.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The memory.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Gives the memory back without doing anything.
    #[must_use]
    pub fn into_payload(self) -> Payload {
        self.payload
    }

    pub(crate) fn payload_mut(&mut self) -> &mut Payload {
        &mut self.payload
    }

    /// What the offset, and a short completion, are multiples of.
    pub(crate) fn align_bytes(&self) -> usize {
        match self.file.mode() {
            FileMode::Direct { offset_align_bytes, .. } => {
                usize::try_from(offset_align_bytes).unwrap_or(1).max(1)
            }
            FileMode::Buffered(_) => 1,
        }
    }

    /// Refuses what no kernel would do, before it waits for its turn.
    pub(crate) fn check(&self) -> Result<(), IoError> {
        let bytes = self.payload.bytes();
        let Range { start, end } = self.range;
        let last = u64::try_from(self.range.len()).ok().and_then(|n| self.offset.0.checked_add(n));
        let beyond = last.is_none_or(|last| i64::try_from(last).is_err());
        if start > end || end > bytes.len() || beyond {
            return Err(IoError::OutOfRange { start, end, bytes: bytes.len() });
        }
        let FileMode::Direct { memory_align_bytes, offset_align_bytes } = self.file.mode() else {
            return Ok(());
        };
        let address = bytes.as_ptr().addr() + start;
        let checks = [
            ("offset", self.offset.0, offset_align_bytes),
            ("length", self.range.len() as u64, offset_align_bytes),
            ("address", address as u64, memory_align_bytes),
        ];
        for (what, value, align_bytes) in checks {
            if self.kind != OpKind::Sync && value % u64::from(align_bytes.max(1)) != 0 {
                return Err(IoError::Misaligned { what, value, align_bytes });
            }
        }
        Ok(())
    }
}

/// Where the time of an operation went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpTimes {
    /// Waiting for its turn.
    pub queue: Duration,
    /// With the kernel and the device.
    pub device: Duration,
}

/// How an operation ended, without the type of its memory.
#[derive(Debug)]
pub struct Outcome {
    /// How many bytes were moved. A read that ends before its range does has met the end of the
    /// file.
    pub result: Result<usize, IoError>,
    /// The memory; none while the engine has to keep it.
    pub payload: Option<Payload>,
    /// Where the time went.
    pub times: OpTimes,
}

impl Outcome {
    /// The end of an operation that never began.
    #[must_use]
    pub fn refused(error: IoError, payload: Payload, queue: Duration) -> Self {
        let times = OpTimes { queue, device: Duration::ZERO };
        Self { result: Err(error), payload: Some(payload), times }
    }

    /// The end of an operation whose memory does not come back.
    #[must_use]
    pub fn without_memory(error: IoError, times: OpTimes) -> Self {
        Self { result: Err(error), payload: None, times }
    }

    /// The outcome for a caller who knows what it gave.
    pub(crate) fn typed<T: Any>(self) -> Result<Done<T>, Failed<T>> {
        let times = self.times;
        let target = self.payload.and_then(Payload::into_typed);
        match (self.result, target) {
            (Ok(bytes), Some(target)) => Ok(Done { bytes, target, times }),
            (Ok(_), None) => Err(Failed { error: IoError::Lost, target: None, times }),
            (Err(error), target) => Err(Failed { error, target, times }),
        }
    }
}

/// An operation that was done.
#[derive(Debug)]
pub struct Done<T> {
    /// How many bytes were moved. A read that ends before its range does has met the end of the
    /// file.
    pub bytes: usize,
    /// The memory that was given.
    pub target: T,
    /// Where the time went.
    pub times: OpTimes,
}

/// An operation that was not done, or not wholly.
pub struct Failed<T> {
    /// Why.
    pub error: IoError,
    /// The memory that was given, holding nobody knows what. None while the device may still use
    /// it: then it is the engine's.
    pub target: Option<T>,
    /// Where the time went.
    pub times: OpTimes,
}

impl<T> fmt::Debug for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = if self.target.is_some() { "returned" } else { "kept" };
        f.debug_struct("Failed")
            .field("error", &self.error)
            .field("target", &target)
            .field("times", &self.times)
            .finish()
    }
}

impl<T> fmt::Display for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for Failed<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::AlignedBuf;

    fn op(file: &Arc<DataFile>, offset: u64, bytes: usize, range: Range<usize>) -> Op {
        Op::read(file, FileOffset(offset), AlignedBuf::zeroed(bytes, 4096).unwrap(), range)
    }

    #[test]
    fn what_no_kernel_would_do_is_refused() {
        let file = Arc::new(DataFile::in_memory());
        for (offset, range) in [(0, 0..8193), (0, 8193..8193), (u64::MAX, 0..1), (1 << 63, 0..0)] {
            let refused = op(&file, offset, 8192, range.clone()).check();
            assert!(matches!(refused, Err(IoError::OutOfRange { .. })), "{offset} {range:?}");
        }
        let backwards = Range { start: 2, end: 1 };
        assert!(op(&file, 0, 8192, backwards).check().is_err());
        assert!(op(&file, 3, 8192, 5..77).check().is_ok(), "a buffered file takes any range");
    }

    #[test]
    fn direct_files_take_only_whole_blocks() {
        let mode = FileMode::Direct { memory_align_bytes: 512, offset_align_bytes: 4096 };
        let file = Arc::new(DataFile::in_memory().with_mode(mode));
        op(&file, 4096, 8192, 512..4608).check().unwrap();
        for (what, offset, range) in
            [("offset", 512, 0..4096), ("length", 0, 0..512), ("address", 0, 8..4104)]
        {
            let refused = op(&file, offset, 8192, range).check();
            assert!(
                matches!(refused, Err(IoError::Misaligned { what: found, .. }) if found == what),
                "{what}: {refused:?}"
            );
        }
    }

    #[test]
    fn memory_comes_back_with_its_type_or_not_at_all() {
        let outcome = |payload| Outcome { result: Ok(1), payload, times: OpTimes::default() };
        let buffer = || AlignedBuf::zeroed(1, 512).unwrap();
        let target = Payload::Target(Box::new(buffer()));
        assert_eq!(outcome(Some(target)).typed::<AlignedBuf>().unwrap().target.len(), 512);
        let source = Payload::Source(Box::new(buffer()));
        let wrong = outcome(Some(source)).typed::<u8>().unwrap_err();
        assert!(matches!(wrong.error, IoError::Lost) && wrong.target.is_none());
        outcome(None).typed::<()>().unwrap_err();
        outcome(Some(Payload::None)).typed::<()>().unwrap();
    }
}
