//! Randomness of the kernel (getrandom(2)), which needs no file to be visible.

use nix::errno::Errno;

/// Eight unpredictable bytes.
pub(crate) fn seed() -> Result<u64, Errno> {
    let mut seed = [0u8; 8];
    // SAFETY: getrandom writes at most the given number of bytes to the buffer,
    // which is as long, and keeps no pointer to it.
    let len = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    // Requests of up to 256 bytes are never cut short once the pool is ready.
    if Errno::result(len)? as usize != seed.len() {
        return Err(Errno::EINTR);
    }
    Ok(u64::from_ne_bytes(seed))
}
