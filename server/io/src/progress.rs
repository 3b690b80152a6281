//! How far one operation is, and what each answer of the kernel means for it. Pure; both engines
//! ask it.
//!
//! The kernel may move fewer bytes than asked, or be interrupted. What is left is asked for again
//! until all is there, a read meets the end of its file, or nothing moves any more. On a direct
//! file what is left has to begin at a whole block: a read that stops inside one has met the end,
//! and a write that does is taken up again where that block begins.

use crate::error::IoError;
use crate::op::{Op, OpKind};

/// Interruptions in a row that are worth another try at once.
const RETRIES_MAX: u32 = 16;

/// The state of an operation that the kernel has, or is about to get.
#[derive(Debug)]
pub(crate) struct Progress {
    kind: OpKind,
    asked: usize,
    align_bytes: usize,
    done: usize,
    retries: u32,
}

/// What to do after an answer.
#[derive(Debug)]
pub(crate) enum Step {
    /// Ask for what is left.
    Continue {
        /// Whether the kernel moved something.
        moved: bool,
    },
    /// This is the end.
    End(Result<usize, IoError>),
}

impl Progress {
    pub(crate) fn new(op: &Op) -> Self {
        Self {
            kind: op.kind(),
            asked: op.range().len(),
            align_bytes: op.align_bytes(),
            done: 0,
            retries: 0,
        }
    }

    /// How many bytes need not be asked for any more.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// Takes an answer: a count of bytes, or a negative errno.
    pub(crate) fn advance(&mut self, answer: i32) -> Step {
        match usize::try_from(answer) {
            Ok(moved) => self.moved(moved),
            Err(_) => self.failed(answer.saturating_neg()),
        }
    }

    fn failed(&mut self, errno: i32) -> Step {
        self.retries += 1;
        let again = matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries <= RETRIES_MAX;
        if again {
            Step::Continue { moved: false }
        } else {
            Step::End(Err(IoError::from_errno(self.kind, errno)))
        }
    }

    fn moved(&mut self, moved: usize) -> Step {
        let left = self.asked - self.done;
        if self.kind == OpKind::Sync || moved == left {
            return Step::End(Ok(self.asked));
        }
        if moved > left {
            return Step::End(Err(IoError::TooLong { told: moved, asked: left }));
        }
        let reached = self.done + moved;
        let whole = reached - reached % self.align_bytes;
        let stuck = whole == self.done;
        self.retries = 0;
        match self.kind {
            OpKind::Read if stuck || whole != reached => Step::End(Ok(reached)),
            OpKind::Write if stuck => {
                Step::End(Err(IoError::ShortWrite { written: reached, asked: self.asked }))
            }
            _ => {
                self.done = whole;
                Step::Continue { moved: true }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress(kind: OpKind, asked: usize, align_bytes: usize) -> Progress {
        Progress { kind, asked, align_bytes, done: 0, retries: 0 }
    }

    #[test]
    fn a_short_read_is_continued_to_the_end_of_its_range_or_file() {
        let mut read = progress(OpKind::Read, 8192, 512);
        assert!(matches!(read.advance(4096), Step::Continue { moved: true }));
        assert_eq!(read.done(), 4096);
        assert!(matches!(read.advance(4096), Step::End(Ok(8192))));
        let mut read = progress(OpKind::Read, 8192, 512);
        assert!(matches!(read.advance(4096), Step::Continue { .. }));
        assert!(matches!(read.advance(0), Step::End(Ok(4096))));
        let mut read = progress(OpKind::Read, 8192, 512);
        assert!(matches!(read.advance(700), Step::End(Ok(700))), "the end lies inside a block");
    }

    #[test]
    fn a_short_write_is_continued_from_a_whole_block() {
        let mut write = progress(OpKind::Write, 8192, 512);
        assert!(matches!(write.advance(700), Step::Continue { .. }));
        assert_eq!(write.done(), 512);
        let stuck = write.advance(100);
        let Step::End(Err(IoError::ShortWrite { written: 612, asked: 8192 })) = stuck else {
            panic!("{stuck:?}");
        };
    }

    #[test]
    fn interruptions_are_retried_within_a_bound_and_errors_are_not() {
        let mut read = progress(OpKind::Read, 8192, 1);
        for _ in 0..RETRIES_MAX {
            assert!(matches!(read.advance(-libc::EINTR), Step::Continue { moved: false }));
        }
        assert!(matches!(read.advance(-libc::EAGAIN), Step::End(Err(IoError::Device { .. }))));
        let mut read = progress(OpKind::Read, 8192, 1);
        assert!(matches!(read.advance(-libc::EIO), Step::End(Err(IoError::Device { .. }))));
        let mut write = progress(OpKind::Write, 8192, 1);
        assert!(matches!(write.advance(-libc::ENOSPC), Step::End(Err(IoError::NoSpace { .. }))));
        assert!(matches!(write.advance(i32::MIN), Step::End(Err(IoError::Device { .. }))));
    }

    #[test]
    fn more_than_was_asked_for_is_an_error() {
        let mut read = progress(OpKind::Read, 512, 512);
        assert!(matches!(read.advance(513), Step::End(Err(IoError::TooLong { .. }))));
        let mut sync = progress(OpKind::Sync, 0, 512);
        assert!(matches!(sync.advance(0), Step::End(Ok(0))));
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_answers_an_operation_ends(
            write: bool,
            asked in 0_usize..100_000,
            align_bytes in prop::sample::select(vec![1_usize, 512, 4096]),
            answers in prop::collection::vec(-20_i32..5000, 400),
        ) {
            let kind = if write { OpKind::Write } else { OpKind::Read };
            let mut state = progress(kind, asked, align_bytes);
            let mut before = 0;
            let mut ended = false;
            for answer in answers {
                match state.advance(answer) {
                    Step::Continue { moved } => {
                        prop_assert!(state.done() > before || !moved);
                        prop_assert_eq!(state.done() % align_bytes, 0);
                        prop_assert!(state.done() < asked);
                        before = state.done();
                    }
                    Step::End(Ok(bytes)) => {
                        prop_assert!(bytes <= asked && (bytes == asked || !write));
                        ended = true;
                        break;
                    }
                    Step::End(Err(_)) => { ended = true; break; }
                }
            }
            prop_assert!(ended, "400 answers did not end {} bytes", asked);
        }
    }
}
