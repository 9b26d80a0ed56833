//! Frames on a TCP stream, each within a limit of time.

use super::frame::{self, Frame, FrameError, HEADER, Header};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Between two frames.
    #[error("the other side closed the connection")]
    Closed,
    #[error("nothing came within {} ms", .0.as_millis())]
    Late(Duration),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection, and bytes of it that were received before.
pub struct Stream {
    socket: TcpStream,
    already: Vec<u8>,
}

impl Stream {
    pub fn new(socket: TcpStream, already: Vec<u8>) -> io::Result<Stream> {
        socket.set_nonblocking(false)?;
        // Small frames leave at once; a matter of speed alone.
        let _ = socket.set_nodelay(true);
        Ok(Stream { socket, already })
    }

    /// Who is at the other end, for people.
    pub fn origin(&self) -> String {
        self.socket.peer_addr().map_or_else(|_| "somebody who has gone".into(), |a| a.to_string())
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &Frame, within: Duration) -> Result<(), StreamError> {
        let bytes = frame::encode(frame)?;
        // Frames are short: the socket's buffer takes one at once, unless the other side reads nothing.
        self.socket.set_write_timeout(Some(within))?;
        self.socket.write_all(&bytes).map_err(|e| late(e, within))
    }

    /// The next frame: its first byte within `idle`, all of it `within` from there.
    pub fn next(&mut self, idle: Duration, within: Duration) -> Result<Frame, StreamError> {
        let mut header = [0; HEADER];
        if !self.fill_some(&mut header[..1], idle)? {
            return Err(StreamError::Closed);
        }
        let until = Instant::now() + within;
        self.fill(&mut header[1..], until, within)?;
        let header = Header::parse(&header)?;
        let mut body = vec![0; header.body];
        self.fill(&mut body, until, within)?;
        Ok(frame::decode(&header, &body)?)
    }

    fn fill(&mut self, mut bytes: &mut [u8], until: Instant, within: Duration) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StreamError::Late(within));
            }
            let n = self.read(bytes, left, within)?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    /// The first byte; false where the other side closes instead.
    fn fill_some(&mut self, byte: &mut [u8], idle: Duration) -> Result<bool, StreamError> {
        Ok(self.read(byte, idle, idle)? > 0)
    }

    fn read(&mut self, bytes: &mut [u8], left: Duration, within: Duration) -> Result<usize, StreamError> {
        if !self.already.is_empty() {
            let n = bytes.len().min(self.already.len());
            bytes[..n].copy_from_slice(&self.already[..n]);
            self.already.drain(..n);
            return Ok(n);
        }
        self.socket.set_read_timeout(Some(left))?;
        loop {
            match self.socket.read(bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|e| late(e, within)),
            }
        }
    }
}

fn late(error: io::Error, within: Duration) -> StreamError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => StreamError::Late(within),
        _ => StreamError::Io(error),
    }
}
