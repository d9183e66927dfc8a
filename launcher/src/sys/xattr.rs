//! Extended attributes: xattr(7).
#![allow(unsafe_code, reason = "these calls have no safe wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The value of an attribute of a file, or of a symbolic link itself. `None`
/// when there is none, or more than 256 bytes.
///
/// # Errors
/// As of lgetxattr(2).
pub fn get(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = vec![0u8; 256];
    // SAFETY: both strings end in NUL, and `value` has as many bytes as are said.
    let length = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ERANGE | libc::EPERM) => Ok(None),
            _ => Err(error),
        };
    };
    value.truncate(length);
    Ok(Some(value))
}

/// Sets an attribute of a file; symbolic links are followed.
///
/// # Errors
/// As of setxattr(2).
pub fn set(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: both strings end in NUL, and `value` has as many bytes as are said.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    super::check(result.into()).map(drop)
}

/// Longest value, and longest list of names, in bytes (linux/limits.h).
const LONGEST: usize = 65536;

/// Names of all attributes of an open file that this process may see.
///
/// # Errors
/// As of flistxattr(2); a file system without attributes has none.
pub fn list_of(file: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = vec![0u8; LONGEST];
    // SAFETY: `names` has as many bytes as are said.
    let length =
        unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            _ => Err(error),
        };
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| CString::new(name).map_err(io::Error::from)).collect()
}

/// The value of an attribute of an open file; `None` when there is none that
/// this process may see.
///
/// # Errors
/// As of fgetxattr(2).
pub fn value_of(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; LONGEST];
    // SAFETY: the name ends in NUL, and `value` has as many bytes as are said.
    let length = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM) => Ok(None),
            _ => Err(error),
        };
    };
    value.truncate(length);
    Ok(Some(value))
}

/// Sets an attribute of an open file.
///
/// # Errors
/// As of fsetxattr(2).
pub fn set_on(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name ends in NUL, and `value` has as many bytes as are said.
    let result = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    super::check(result.into()).map(drop)
}
