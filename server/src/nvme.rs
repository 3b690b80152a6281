//! The NVMe tier: chunks in files of the cache directory.
//!
//! `extent` is the format of one such file.

mod extent;
