//! Lines from a stream that may be slow, endless or garbage.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What came instead of a line.
#[derive(Debug)]
pub enum LineError {
    /// The other side closed, between two lines or within one.
    Closed,
    /// More than the limit without a newline.
    TooLong,
    /// Nothing complete within the limit of time.
    TimedOut,
    Io(io::Error),
}

/// Splits a stream into lines of limited length.
pub struct Lines {
    stream: UnixStream,
    limit: usize,
    pending: Vec<u8>,
    /// Bytes of `pending` known to hold no newline.
    searched: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes, newline included.
    pub fn new(stream: UnixStream, limit: usize) -> Lines {
        Lines { stream, limit, pending: Vec::new(), searched: 0 }
    }

    /// The stream, to write to.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next line without its newline. With a `timeout` the whole line must come within it.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Vec<u8>, LineError> {
        let deadline = timeout.map(|t| Instant::now() + t);
        loop {
            if let Some(line) = self.take_line() {
                return if line.len() < self.limit { Ok(line) } else { Err(LineError::TooLong) };
            }
            if self.pending.len() >= self.limit {
                return Err(LineError::TooLong);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return Err(LineError::TimedOut);
            }
            self.stream.set_read_timeout(left).map_err(LineError::Io)?;
            self.fill()?;
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let found = self.pending[self.searched..].iter().position(|b| *b == b'\n');
        let Some(at) = found.map(|p| p + self.searched) else {
            self.searched = self.pending.len();
            return None;
        };
        let mut line: Vec<u8> = self.pending.drain(..=at).collect();
        line.pop();
        self.searched = 0;
        Some(line)
    }

    fn fill(&mut self) -> Result<(), LineError> {
        let mut chunk = [0; 4096];
        match (&self.stream).read(&mut chunk) {
            Ok(0) => Err(LineError::Closed),
            Ok(n) => {
                self.pending.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(LineError::TimedOut)
            }
            Err(e) => Err(LineError::Io(e)),
        }
    }
}
