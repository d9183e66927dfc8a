//! This program's only `unsafe`: system calls `nix` does not wrap.
#![allow(unsafe_code, reason = "raw system calls")]

use std::io;

/// How a child ended, and what it and the children it waited for used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Exit code, or 128 + the signal that ended it.
    pub(crate) code: i32,
    /// User and system CPU seconds.
    pub(crate) cpu_s: f64,
}

/// Waits for a child and collects it: wait4(2).
///
/// # Errors
/// The system call's (ECHILD when it is no child, or has been waited for).
pub(crate) fn wait4(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: rusage is plain old data, which the call fills in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals that outlive the call.
        let ret = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if ret == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    Ok(Ended {
        code,
        // ru_maxrss is of no use here: it has the image before exec in it, this one's.
        cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_child_is_collected_once() {
        #[expect(clippy::zombie_processes, reason = "wait4 is what this tests")]
        let child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id().cast_signed();
        let ended = wait4(pid).unwrap();
        assert_eq!(ended.code, 7);
        assert!(ended.cpu_s >= 0.0);
        assert_eq!(wait4(pid).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
