//! A load whose revision is known before it is opened: one by the name of an alias.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use crate::resolve::Manifest;

/// What a name stood for when the load was opened. Whatever becomes of the name, the load is of
/// this.
#[derive(Debug)]
pub(crate) struct Given {
    /// The name.
    pub(crate) name: String,
    /// Which of its switches led here.
    pub(crate) generation: u64,
    /// The revision.
    pub(crate) manifest: Arc<Manifest>,
    handed_over: OnceLock<Instant>,
    /// Set if the load attached to one of before, of another revision.
    superseded: OnceLock<()>,
}

impl Given {
    /// A name and what it stands for now.
    pub(crate) fn new(name: String, generation: u64, manifest: Arc<Manifest>) -> Self {
        let (handed_over, superseded) = (OnceLock::new(), OnceLock::new());
        Self { name, generation, manifest, handed_over, superseded }
    }

    /// The load attached to one that was opened before, and so is of its revision.
    pub(super) fn attached(&self, to: &Manifest) {
        if to.revision() != self.manifest.revision() {
            self.superseded.get_or_init(|| ());
        }
    }

    /// Whether the load is of the revision that the name stood for.
    pub(crate) fn is_current(&self) -> bool {
        self.superseded.get().is_none()
    }

    /// Every chunk was granted.
    pub(super) fn handed_over(&self) {
        self.handed_over.get_or_init(Instant::now);
    }

    /// How long that took, if it came to that.
    pub(crate) fn took(&self, opened: Instant) -> Option<Duration> {
        self.handed_over.get().map(|at| at.saturating_duration_since(opened))
    }

    /// Says of a failure what it means for the name: loading it again gives the same revision.
    pub(crate) fn told(&self, mut failure: Failure) -> Failure {
        if failure.reason == Reason::RevisionChanged {
            failure.message += &format!(
                "; the alias {} stands for the revision of before, of which bytes are missing here: \
                 set it again",
                self.name
            );
        }
        failure.with_fact("alias", &self.name)
    }
}
