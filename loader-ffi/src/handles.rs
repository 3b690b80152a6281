//! Handles: numbers in the dress of pointers.
//!
//! A handle is looked up in a table and never dereferenced, and no number is given twice. So NULL, a
//! handle that was closed, or one of another kind is a status and not a crash, and closing in any
//! order is safe: what a handle stands for lives until the last call that uses it has returned.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::status::{FB_BAD_HANDLE, Fault};

/// Between two handles, so that they look like addresses of something.
const STRIDE: usize = 16;

/// The first; the page at zero stays free.
const FIRST: usize = 1 << 16;

#[derive(Debug)]
struct Record {
    object: Arc<dyn Any + Send + Sync>,
    /// What the last failed call with this handle said.
    error: String,
}

struct Table {
    next: usize,
    records: BTreeMap<usize, Record>,
}

static TABLE: Mutex<Table> = Mutex::new(Table { next: FIRST, records: BTreeMap::new() });

fn table() -> MutexGuard<'static, Table> {
    // Nothing under the lock leaves the table half changed.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives an object a handle.
pub(crate) fn insert<T: Any + Send + Sync, H>(object: T) -> *mut H {
    let mut table = table();
    let id = table.next;
    table.next += STRIDE;
    table.records.insert(id, Record { object: Arc::new(object), error: String::new() });
    std::ptr::without_provenance_mut(id)
}

/// What a handle stands for.
pub(crate) fn find<T: Any + Send + Sync, H>(handle: *const H) -> Result<Arc<T>, Fault> {
    let object = table().records.get(&handle.addr()).map(|record| Arc::clone(&record.object));
    object.and_then(|object| object.downcast().ok()).ok_or_else(bad_handle)
}

/// Takes a handle back. The object goes with the last call that uses it.
pub(crate) fn remove<T: Any + Send + Sync, H>(handle: *const H) -> Result<Arc<T>, Fault> {
    let object = find(handle)?;
    // Dropped after the lock, as the object is: its end may take long.
    let record = table().records.remove(&handle.addr());
    record.map(|_| object).ok_or_else(bad_handle)
}

/// Notes what a call with this handle failed of.
pub(crate) fn note(handle: usize, text: &str) {
    if let Some(record) = table().records.get_mut(&handle) {
        text.clone_into(&mut record.error);
    }
}

/// What the last failed call with this handle said; none if there is no such handle.
pub(crate) fn noted(handle: usize) -> Option<String> {
    table().records.get(&handle).map(|record| record.error.clone())
}

fn bad_handle() -> Fault {
    Fault::new(FB_BAD_HANDLE, "the handle is NULL, closed, or of another kind")
}
