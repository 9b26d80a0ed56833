//! A small blocking NBD client: what `demo`, and the tests, speak to a served volume with.
//!
//! Fixed newstyle with GO, simple replies. Requests are pipelined: [`Client::submit`] queues, [`Client::next_reply`] sends what
//! is queued and waits for one answer, whichever comes first. The calls named after commands ([`Client::read`],
//! [`Client::write`], ...) submit one request and wait for it; they are for clients that have nothing else outstanding.
//!
//! Requests of one connection are sent in the order in which they were submitted. How many are outstanding is the caller's to
//! limit: nothing is received while requests are being sent.

mod error;
pub(crate) mod negotiate;
mod stream;

#[cfg(test)]
mod tests;

pub use error::{NbdError, errno_name};
pub use negotiate::Export;
pub use stream::Address;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;
use stream::Stream;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Most bytes in one read or write; the protocol's recommendation, and the limit of our server.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Queued bytes that are sent without waiting for more.
const SEND_AT: usize = 256 << 10;

/// One request. Offsets and lengths in bytes, multiples of [`Export::block`].
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
        fua: bool,
    },
    /// With `no_hole` the range stays allocated.
    WriteZeroes {
        offset: u64,
        length: u32,
        fua: bool,
        no_hole: bool,
    },
}

impl Request<'_> {
    fn name(&self) -> &'static str {
        match self {
            Request::Read { .. } => "read",
            Request::Write { .. } => "write",
            Request::Flush => "flush",
            Request::Trim { .. } => "trim",
            Request::WriteZeroes { .. } => "write-zeroes",
        }
    }

    /// Command, flags, offset, length.
    fn fields(&self) -> (u16, u16, u64, u32) {
        const FUA: u16 = 1;
        const NO_HOLE: u16 = 2;
        let fua = |set: bool| if set { FUA } else { 0 };
        match *self {
            Request::Read { offset, length } => (0, 0, offset, length),
            // Checked by `submit`: at most MAX_PAYLOAD.
            Request::Write { offset, data, fua: f } => (1, fua(f), offset, data.len() as u32),
            Request::Flush => (3, 0, 0, 0),
            Request::Trim { offset, length, fua: f } => (4, fua(f), offset, length),
            Request::WriteZeroes { offset, length, fua: f, no_hole } => {
                (6, fua(f) | if no_hole { NO_HOLE } else { 0 }, offset, length)
            }
        }
    }
}

/// Names a request of this connection; never reused on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// The answer to one request.
#[derive(Debug)]
pub struct Completion {
    pub cookie: Cookie,
    /// What was read, empty for other requests; or what the server said.
    pub result: Result<Vec<u8>, NbdError>,
}

/// What is remembered of an outstanding request.
#[derive(Clone, Copy, Debug)]
struct Pending {
    name: &'static str,
    offset: u64,
    length: u32,
    reads: bool,
}

/// A connection in its transmission phase.
pub struct Client {
    reader: BufReader<Stream>,
    writer: Stream,
    export: Export,
    queued: Vec<u8>,
    next_cookie: u64,
    outstanding: BTreeMap<Cookie, Pending>,
    /// The stream stopped in the middle of a message: nothing can be made of what follows.
    broken: bool,
}

impl Client {
    /// Connects and asks for `export` (empty: the server's first). Nothing that this client waits for may take longer than
    /// `patience`, neither now nor later.
    pub fn connect(address: &Address, export: &str, patience: Duration) -> Result<Client, NbdError> {
        let writer = Stream::connect(address, patience)?;
        let failed = |what| move |source| NbdError::from_io(what, source);
        let mut reader =
            BufReader::with_capacity(64 << 10, writer.try_clone().map_err(failed("set up the connection"))?);
        let export = negotiate::go(&mut reader, &writer, export)?;
        let (queued, outstanding) = (Vec::new(), BTreeMap::new());
        Ok(Client { reader, writer, export, queued, next_cookie: 1, outstanding, broken: false })
    }

    /// What the server said about the export.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Requests that were not answered yet.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Queues a request; sent at the latest by the next [`Client::next_reply`].
    pub fn submit(&mut self, request: Request<'_>) -> Result<Cookie, NbdError> {
        if self.broken {
            return Err(NbdError::Closed);
        }
        if let Request::Write { data, .. } = request
            && data.len() > MAX_PAYLOAD as usize
        {
            return Err(NbdError::TooLong { length: data.len() });
        }
        let (command, flags, offset, length) = request.fields();
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        self.queued.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.queued.extend_from_slice(&flags.to_be_bytes());
        self.queued.extend_from_slice(&command.to_be_bytes());
        self.queued.extend_from_slice(&cookie.0.to_be_bytes());
        self.queued.extend_from_slice(&offset.to_be_bytes());
        self.queued.extend_from_slice(&length.to_be_bytes());
        if let Request::Write { data, .. } = request {
            self.queued.extend_from_slice(data);
        }
        let reads = matches!(request, Request::Read { .. });
        self.outstanding.insert(cookie, Pending { name: request.name(), offset, length, reads });
        if self.queued.len() >= SEND_AT {
            self.send_queued()?;
        }
        Ok(cookie)
    }

    /// Sends what is queued.
    pub fn send_queued(&mut self) -> Result<(), NbdError> {
        let sent = self.writer.write_all(&self.queued);
        self.queued.clear();
        sent.map_err(|e| {
            self.broken = true;
            NbdError::from_io("send a request", e)
        })
    }

    /// Sends what is queued and waits for an answer. [`NbdError::TimedOut`] leaves the connection usable where nothing of an
    /// answer had arrived; after any other error it is over. A request that the server refused is no error here, but a
    /// [`Completion`] with one.
    ///
    /// # Panics
    /// If nothing is outstanding: it would wait for ever.
    pub fn next_reply(&mut self) -> Result<Completion, NbdError> {
        assert!(!self.outstanding.is_empty(), "a reply is awaited although nothing was asked");
        if self.broken {
            return Err(NbdError::Closed);
        }
        self.send_queued()?;
        match self.reader.fill_buf() {
            Ok([]) => {
                self.broken = true;
                return Err(NbdError::Closed);
            }
            Ok(_) => {}
            Err(e) => {
                let error = NbdError::from_io("receive a reply", e);
                self.broken = !matches!(error, NbdError::TimedOut);
                return Err(error);
            }
        }
        let reply = self.receive_reply();
        self.broken |= reply.is_err();
        reply
    }

    fn receive_reply(&mut self) -> Result<Completion, NbdError> {
        let mut head = [0; 16];
        self.receive(&mut head)?;
        let (magic, rest) = head.split_at(4);
        let (errno, cookie) = rest.split_at(4);
        if magic != SIMPLE_REPLY_MAGIC.to_be_bytes() {
            return Err(NbdError::Protocol { what: "a reply does not begin with the magic number of one" });
        }
        let errno = u32::from_be_bytes([errno[0], errno[1], errno[2], errno[3]]);
        let cookie = Cookie(cookie.iter().fold(0, |n, b| n << 8 | u64::from(*b)));
        let Some(pending) = self.outstanding.remove(&cookie) else {
            return Err(NbdError::Protocol { what: "a reply to a request that is not outstanding" });
        };
        let Pending { name, offset, length, reads } = pending;
        if errno != 0 {
            return Ok(Completion { cookie, result: Err(NbdError::Failed { name, offset, length, errno }) });
        }
        let mut data = vec![0; if reads { length as usize } else { 0 }];
        self.receive(&mut data)?;
        Ok(Completion { cookie, result: Ok(data) })
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(), NbdError> {
        self.reader.read_exact(into).map_err(|e| match NbdError::from_io("receive a reply", e) {
            // Part of a message is gone: this is no mere delay.
            NbdError::TimedOut => NbdError::Protocol { what: "a reply stopped in the middle" },
            other => other,
        })
    }

    /// One request and its answer.
    ///
    /// # Panics
    /// If other requests are outstanding: their answers would be lost.
    fn call(&mut self, request: Request<'_>) -> Result<Vec<u8>, NbdError> {
        assert!(self.outstanding.is_empty(), "a single request among pipelined ones");
        self.submit(request)?;
        self.next_reply()?.result
    }

    /// Reads `length` bytes, in pieces where one request cannot carry them.
    ///
    /// # Panics
    /// This and the calls below panic if other requests are outstanding.
    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, NbdError> {
        let mut data = Vec::new();
        while (data.len() as u64) < length {
            let left = length - data.len() as u64;
            // At most MAX_PAYLOAD, so it fits.
            let piece = left.min(u64::from(MAX_PAYLOAD)) as u32;
            data.extend(self.call(Request::Read { offset: offset + data.len() as u64, length: piece })?);
        }
        Ok(data)
    }

    /// Writes; with `fua` the data is durable when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        self.call(Request::Write { offset, data, fua }).map(|_| ())
    }

    /// Everything that had completed is durable when this returns.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.call(Request::Flush).map(|_| ())
    }

    /// The range is no longer needed; our server makes it read as zeros.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.call(Request::Trim { offset, length, fua: false }).map(|_| ())
    }

    /// The range reads as zeros; with `no_hole` it stays allocated.
    pub fn write_zeroes(&mut self, offset: u64, length: u32, no_hole: bool) -> Result<(), NbdError> {
        self.call(Request::WriteZeroes { offset, length, fua: false, no_hole }).map(|_| ())
    }

    /// Tells the server that this client is done, and closes. Requests that are outstanding may or may not be carried out.
    pub fn disconnect(mut self) -> Result<(), NbdError> {
        const DISC: u16 = 2;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[6..8].copy_from_slice(&DISC.to_be_bytes());
        self.queued.extend_from_slice(&head);
        self.send_queued()
    }
}
