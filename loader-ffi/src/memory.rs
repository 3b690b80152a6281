//! What lies in the caller's memory: texts, lists, structs that begin with their size.
//!
//! The size says how much of a struct the caller's header knows. What an older caller leaves out
//! counts as zero. What a newer one adds has to be zero in what it asks, and is set to zero in what
//! it is told. So both ends can grow, and no old field changes its place.

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;

use crate::status::Fault;

/// Far above any struct of any version: a larger size is one that was not set.
const STRUCT_BYTES_MAX: usize = 4096;

/// A struct that begins with its own size.
///
/// # Safety
///
/// The type is `repr(C)`, its first field is the size, a `usize`, and all bytes zero are a value.
pub(crate) unsafe trait Versioned: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// The size that the struct at `place` says it has.
///
/// # Safety
///
/// `place` is NULL or a struct that begins with its size.
unsafe fn size_of_caller<T: Versioned>(place: *const T) -> Result<usize, Fault> {
    if place.is_null() {
        return Err(Fault::invalid(format!("{} is NULL", T::NAME)));
    }
    // SAFETY: not NULL, so the caller's struct, which begins with its size.
    let size = unsafe { place.cast::<usize>().read_unaligned() };
    match (size_of::<usize>()..=STRUCT_BYTES_MAX).contains(&size) {
        true => Ok(size),
        false => Err(Fault::invalid(format!(
            "{name}.size is {size}: set it to sizeof({name})",
            name = T::NAME
        ))),
    }
}

/// What the caller asks for.
///
/// # Safety
///
/// `place` is NULL or a struct of as many readable bytes as its size says.
pub(crate) unsafe fn take<T: Versioned>(place: *const T) -> Result<T, Fault> {
    // SAFETY: as this function's own contract.
    let size = unsafe { size_of_caller(place) }?;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes can be read by the caller's promise and fit into `value`, which is new.
    unsafe { value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(place.cast(), known) };
    for at in known..size {
        // SAFETY: below the struct's size, all of which can be read.
        let byte = unsafe { place.cast::<u8>().add(at) };
        // SAFETY: as above.
        if unsafe { byte.read() } != 0 {
            let message = format!(
                "{} has options that this version of Forebay does not know (byte {at} is not zero)",
                T::NAME
            );
            return Err(Fault::invalid(message));
        }
    }
    // SAFETY: zero is a value of the type, and so is zero with its first fields from the caller.
    Ok(unsafe { value.assume_init() })
}

/// Checks that there is a struct to write to, before something is done that it would tell of.
///
/// # Safety
///
/// `place` is NULL or a struct that begins with its size.
pub(crate) unsafe fn check<T: Versioned>(place: *const T) -> Result<(), Fault> {
    // SAFETY: as this function's own contract.
    unsafe { size_of_caller(place) }.map(drop)
}

/// Tells the caller. Its size stays as it is.
///
/// # Safety
///
/// `place` is NULL or a struct of as many writable bytes as its size says.
pub(crate) unsafe fn tell<T: Versioned>(place: *mut T, value: &T) -> Result<(), Fault> {
    // SAFETY: as this function's own contract.
    let size = unsafe { size_of_caller(place) }?;
    let known = size.min(size_of::<T>());
    let first = size_of::<usize>();
    let from = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: a struct is at least as long as its first field.
    let from = unsafe { from.add(first) };
    // SAFETY: the caller's is too: `size_of_caller` refuses shorter ones.
    let to = unsafe { place.cast::<u8>().add(first) };
    // SAFETY: both have `known` bytes, and the caller's memory is none of ours.
    unsafe { to.copy_from_nonoverlapping(from, known - first) };
    // SAFETY: `known` is at most the caller's size.
    let rest = unsafe { place.cast::<u8>().add(known) };
    // SAFETY: from there to the caller's size.
    unsafe { rest.write_bytes(0, size - known) };
    Ok(())
}

/// A text that has to be there.
///
/// # Safety
///
/// `text` is NULL or ends with a NUL, and lives for `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Fault> {
    // SAFETY: as this function's own contract.
    unsafe { optional_text(text, what) }?
        .ok_or_else(|| Fault::invalid(format!("{what} is NULL or empty")))
}

/// A text that may be NULL or empty: none then.
///
/// # Safety
///
/// `text` is NULL or ends with a NUL, and lives for `'a`.
pub(crate) unsafe fn optional_text<'a>(
    text: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, Fault> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, so a text that ends with a NUL.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_str().map_err(|_| Fault::invalid(format!("{what} is not UTF-8")))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A list that may be NULL if it is empty.
///
/// # Safety
///
/// `items` is NULL or has `count` items, and lives for `'a`.
pub(crate) unsafe fn list<'a, T>(
    items: *const T,
    count: usize,
    what: &str,
) -> Result<&'a [T], Fault> {
    let bytes = count.checked_mul(size_of::<T>());
    match bytes.and_then(|bytes| isize::try_from(bytes).ok()) {
        Some(0) => Ok(&[]),
        _ if items.is_null() => Err(Fault::invalid(format!("{what} is NULL and not empty"))),
        None => Err(Fault::invalid(format!("{what} cannot have {count} items"))),
        // SAFETY: not NULL, so `count` items, whose size an address space can have.
        Some(_) => Ok(unsafe { std::slice::from_raw_parts(items, count) }),
    }
}

/// A list of texts.
///
/// # Safety
///
/// As [`list`], and each text as [`text`].
pub(crate) unsafe fn texts<'a>(
    items: *const *const c_char,
    count: usize,
    what: &str,
) -> Result<Vec<&'a str>, Fault> {
    // SAFETY: as this function's own contract.
    let items = unsafe { list(items, count, what) }?;
    // SAFETY: as this function's own contract.
    items.iter().map(|item| unsafe { text(*item, what) }).collect()
}

/// Where a handle goes to.
///
/// # Safety
///
/// `place` is NULL or can be written.
pub(crate) unsafe fn put<T>(place: *mut T, value: T, what: &str) -> Result<(), Fault> {
    if place.is_null() {
        return Err(Fault::invalid(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, so memory for one value; what it held before has no destructor.
    unsafe { place.write(value) };
    Ok(())
}

/// Copies a text with its NUL, cut to what fits. Gives the bytes that all of it needs.
///
/// # Safety
///
/// `buffer` is NULL or has `bytes` writable bytes.
pub(crate) unsafe fn give_text(text: &str, buffer: *mut c_char, bytes: usize) -> usize {
    if !buffer.is_null() && bytes > 0 {
        let mut fits = text.len().min(bytes - 1);
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        // SAFETY: `fits` is below the buffer's size, and the text is none of the caller's memory.
        unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), fits) };
        // SAFETY: below the buffer's size.
        let end = unsafe { buffer.add(fits) };
        // SAFETY: as above.
        unsafe { end.write(0) };
    }
    text.len() + 1
}

/// A text for C. A NUL inside of it, which no sane name has, is shown as U+FFFD.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}
