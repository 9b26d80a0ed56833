//! The thread that passes the kernel's requests to the daemon, and the answers back.
//!
//! It never waits for anything but the next event: a connection that is gone is noticed, said ([`Heard::Lost`]), and a new one is
//! taken ([`Order::Connection`]) whenever somebody has made it. Meanwhile requests are kept. On a new connection everything that was not
//! answered is asked once more, in the order in which it came. A write that had been carried out is carried out again: that changes
//! nothing, since whoever waits for it has not been told. What overlaps it and was completed meanwhile was under way at the same
//! time, for which nobody promises an order.

use super::wire::{Flight, Wire};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use understudy_kernel::front::{Front, Request};

/// Requests taken before answers are looked at again.
const ROUND: usize = 64;

/// What the engine is told.
pub enum Order {
    /// Go on with this connection, which has chosen its export.
    Connection(UnixStream),
    /// Fail everything that is under way, and all that will come.
    Fail,
}

/// What it tells.
#[derive(Debug)]
pub enum Heard {
    /// The connection is gone: another is wanted. Not before the daemon has closed its end, though: what it received of this one
    /// must not be carried out behind what comes over the next.
    Lost { why: io::Error, stream: UnixStream },
    /// The device is gone, nothing will be asked any more. It is the last word.
    Gone,
    /// The kernel does not take what it is given; the engine has ended.
    Broken { why: io::Error },
}

/// The other threads' end.
#[derive(Clone)]
pub struct EngineHandle {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    under_way: Arc<AtomicUsize>,
}

impl EngineHandle {
    pub fn tell(&self, order: Order) {
        // An engine that has ended needs no orders.
        let _ = self.orders.send(order);
        let _ = self.wake.write(1);
    }

    /// Requests of the kernel that are not answered.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }
}

/// See the module's page.
pub struct Engine<F> {
    front: F,
    wire: Option<Wire>,
    /// By slot.
    flights: Vec<Option<Flight>>,
    last_number: u64,
    under_way: Arc<AtomicUsize>,
    failed: bool,
    orders: Receiver<Order>,
    wake: Arc<EventFd>,
    heard: Box<dyn Fn(Heard) + Send>,
    answers: Vec<super::wire::Answer>,
}

impl<F: Front> Engine<F> {
    /// An engine without a connection.
    ///
    /// # Errors
    /// Where the system has no event descriptor to give.
    pub fn new(front: F, heard: impl Fn(Heard) + Send + 'static) -> io::Result<(Engine<F>, EngineHandle)> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, orders) = mpsc::channel();
        let under_way = Arc::new(AtomicUsize::new(0));
        let handle = EngineHandle { orders: sender, wake: wake.clone(), under_way: under_way.clone() };
        let depth = front.depth();
        let engine = Engine {
            front,
            wire: None,
            flights: vec![None; depth],
            last_number: 0,
            under_way,
            failed: false,
            orders,
            wake,
            heard: Box::new(heard),
            answers: Vec::with_capacity(depth),
        };
        Ok((engine, handle))
    }

    /// Serves the device until it is gone.
    pub fn run(mut self) {
        let end = loop {
            if let Err(e) = self.round() {
                break e;
            }
        };
        (self.heard)(match end.kind() {
            ErrorKind::NotConnected => Heard::Gone,
            _ => Heard::Broken { why: end },
        });
    }

    fn round(&mut self) -> io::Result<()> {
        let (woken, heard) = self.wait()?;
        if woken {
            self.obey()?;
        }
        if heard {
            let result = match &mut self.wire {
                Some(wire) => wire.receive(&mut self.front, &self.flights, &mut self.answers),
                None => Ok(()),
            };
            // What came whole counts, also where the connection ended behind it.
            self.answer()?;
            self.unless_lost(result);
        }
        self.take()?;
        self.front.flush()
    }

    /// Waits for an event: whether there are orders, and whether the connection has something.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let none = PollFlags::empty();
        let front = if self.front.has_room() { PollFlags::POLLIN } else { none };
        let front = front | if self.front.wants_to_send() { PollFlags::POLLOUT } else { none };
        let sending = self.wire.as_ref().is_some_and(Wire::is_sending);
        let wire = PollFlags::POLLIN | if sending { PollFlags::POLLOUT } else { none };
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN), PollFd::new(self.front.fd(), front)];
        fds.extend(self.wire.as_ref().map(|w| PollFd::new(w.fd(), wire)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            // A front may be told something by way of a signal.
            Err(nix::errno::Errno::EINTR) => return Ok((true, false)),
            Err(e) => return Err(e.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        Ok((ready(&fds[0]), fds.get(2).is_some_and(ready)))
    }

    fn obey(&mut self) -> io::Result<()> {
        // Nothing to read is fine. The counter is cleared first: what is sent after that wakes again.
        let _ = self.wake.read();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Connection(stream) if !self.failed => self.connected(stream)?,
                Order::Connection(_) => {}
                Order::Fail => {
                    self.failed = true;
                    self.wire = None;
                    for slot in 0..self.flights.len() {
                        if self.flights[slot].is_some() {
                            self.answers.push((slot as u16, Err(libc::EIO)));
                        }
                    }
                    self.answer()?;
                }
            }
        }
        Ok(())
    }

    /// Asks everything that was not answered once more, in its order.
    fn connected(&mut self, stream: UnixStream) -> io::Result<()> {
        let mut wire = Wire::new(stream)?;
        let mut again: Vec<(u16, Flight)> =
            self.flights.iter().enumerate().filter_map(|(slot, f)| Some((slot as u16, (*f)?))).collect();
        again.sort_by_key(|(_, flight)| flight.number);
        again.into_iter().for_each(|(slot, flight)| wire.ask(slot, flight));
        self.wire = Some(wire);
        Ok(())
    }

    /// Takes what the kernel asks, and sends what the socket takes.
    fn take(&mut self) -> io::Result<()> {
        for _ in 0..ROUND {
            let Some(Request { slot, op }) = self.front.next()? else { break };
            if self.failed {
                self.front.complete(slot, Err(libc::EIO))?;
                continue;
            }
            self.last_number += 1;
            let flight = Flight { number: self.last_number, op };
            self.flights[usize::from(slot)] = Some(flight);
            self.under_way.fetch_add(1, Ordering::Relaxed);
            if let Some(wire) = &mut self.wire {
                wire.ask(slot, flight);
            }
        }
        if let Some(wire) = &mut self.wire {
            let sent = wire.send(&self.front, &self.flights);
            self.unless_lost(sent);
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        for (slot, result) in self.answers.drain(..) {
            self.flights[usize::from(slot)] = None;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            self.front.complete(slot, result)?;
        }
        Ok(())
    }

    fn unless_lost(&mut self, result: io::Result<()>) {
        if let Err(why) = result
            && let Some(wire) = self.wire.take()
        {
            (self.heard)(Heard::Lost { why, stream: wire.into_stream() });
        }
    }
}
