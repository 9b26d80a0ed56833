//! A process that serves a block device must not wait, for memory, until pages are written to that very device.

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::fs;
use std::io;

/// Of `linux/prctl.h`; libc does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Asks the kernel not to wait, when this thread needs memory, for pages to be written to a device that this very thread serves.
/// Threads that it starts inherit it.
///
/// # Errors
/// It takes CAP_SYS_RESOURCE, and a kernel of 5.6.
pub fn flush_io() -> io::Result<()> {
    // SAFETY: no pointer is passed. An error changes nothing.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps all memory of this process in memory, what it will have included.
///
/// # Errors
/// Where `RLIMIT_MEMLOCK` does not allow it; root may always.
pub fn lock_all() -> io::Result<()> {
    lock(0)
}

/// Keeps in memory what this process uses of its memory, from when it first does: what it has set aside and never uses costs nothing.
///
/// # Errors
/// As [`lock_all`]; and where there is a limit, nothing is locked at all, since past it the process would get no memory any more.
pub fn lock_what_is_used() -> io::Result<()> {
    match crate::probe::memlock() {
        None => lock(libc::MCL_ONFAULT),
        Some(_) => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn lock(how: libc::c_int) -> io::Result<()> {
    // SAFETY: flags only.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Asks the kernel to kill other processes before this one where memory is all used up, unless whoever started it has chosen for it: what is
/// served would end with it, and be of no use in memory. Processes that it starts inherit this.
///
/// # Errors
/// It takes CAP_SYS_RESOURCE.
pub fn spare_us() -> io::Result<()> {
    match fs::read_to_string(OOM_SCORE)?.trim() {
        "0" => fs::write(OOM_SCORE, "-900"),
        _ => Ok(()),
    }
}

/// Whether this process is spared, by its own wish or another's.
pub fn is_spared() -> bool {
    fs::read_to_string(OOM_SCORE).is_ok_and(|score| score.starts_with('-'))
}

/// Ends that: for a child that is about to become another program. Only one system call after the other, as between fork and exec.
///
/// # Errors
/// Where there is no `/proc`.
pub fn spare_us_no_more() -> io::Result<()> {
    let score = nix::fcntl::open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(score, b"0")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PR_GET_IO_FLUSHER: libc::c_int = 58;

    #[test]
    fn the_kernel_is_told_where_that_is_permitted() {
        // SAFETY: no pointer is passed.
        let get = || unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) };
        if get() < 0 {
            return println!("SKIPPED: no CAP_SYS_RESOURCE, or a kernel before 5.6");
        }
        std::thread::spawn(move || {
            assert_eq!(get(), 0);
            flush_io().unwrap();
            assert_eq!(get(), 1);
            assert_eq!(std::thread::spawn(get).join().unwrap(), 1, "its threads inherit it");
        })
        .join()
        .unwrap();
    }
}
