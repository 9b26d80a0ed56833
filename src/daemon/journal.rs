//! What happened, one line each: to standard error for people, and as JSON to whoever has subscribed.
//!
//! Lines are written by a thread of their own: a terminal or pipe that does not take them must not hold up the I/O.

use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lines that wait for a slow reader before it misses some.
const BACKLOG: usize = 1024;

/// Complaints about strangers, at most so many a second: whoever sends garbage must not fill the log.
const COMPLAINTS: u32 = 10;

/// What the daemon itself has to say, beside the core's notices.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Happening {
    /// A part that cannot be read and written directly.
    BufferedIo {
        path: String,
    },
    /// Clients can connect.
    Listening {
        address: String,
    },
    /// They cannot, for now.
    NotListening {
        address: String,
        why: String,
    },
    /// A connection was refused or ended for what came over it.
    Refused {
        from: String,
        why: String,
    },
    /// A peer could not be dialed.
    DialFailed {
        peer: String,
        why: String,
    },
    /// A message of the core that cannot be sent, or an I/O error of the loop: a defect to report.
    Defect {
        what: String,
    },
    /// Complaints that were left out because there were too many.
    Suppressed {
        complaints: u32,
    },
    Stopping,
    /// A block device exists.
    DeviceUp {
        device: String,
        kernel: String,
        kind: String,
    },
    /// One that exists goes on with this daemon.
    DeviceGoesOn {
        device: String,
        kernel: String,
    },
    /// One was taken down in order.
    DeviceDown {
        device: String,
    },
    /// One is gone that should be there.
    DeviceLost {
        device: String,
        why: String,
    },
    /// One cannot be made; it is tried again.
    DeviceFailed {
        device: String,
        why: String,
    },
    /// The daemon ends although what stands above its devices could not be undone.
    LeftStanding {
        why: String,
    },
    /// Who keeps the charter, and what that means.
    Keeper {
        keeper: &'static str,
        what: String,
    },
    /// What people should know of the service that was started.
    ServiceRemark {
        what: String,
    },
    /// What people should know of one.
    DeviceRemark {
        device: String,
        what: String,
    },
}

/// The event stream.
pub struct Journal {
    subscribers: Vec<SyncSender<String>>,
    /// None only while this is dropped.
    lines: Option<SyncSender<String>>,
    /// Ends when the last line was written.
    written: Receiver<()>,
    /// The second in which complaints are counted, and how many there were.
    complaints: (u64, u32),
}

impl Journal {
    /// A journal that writes to standard error.
    pub fn new() -> Journal {
        Journal::to(std::io::stderr())
    }

    pub(super) fn to(mut sink: impl Write + Send + 'static) -> Journal {
        let (lines, waiting) = sync_channel::<String>(BACKLOG);
        let (done, written) = sync_channel(0);
        let body = move || {
            let _until_all_is_written: SyncSender<()> = done;
            for line in waiting {
                // Nobody is there to be told that standard error is gone.
                let _ = writeln!(sink, "{line}");
            }
        };
        // Without the thread lines go nowhere; the subscribers' still arrive.
        let _ = std::thread::Builder::new().name("journal".into()).stack_size(128 << 10).spawn(body);
        Journal { subscribers: Vec::new(), lines: Some(lines), written, complaints: (0, 0) }
    }

    /// Events from now on.
    pub fn subscribe(&mut self) -> Receiver<String> {
        let (sender, receiver) = sync_channel(BACKLOG);
        self.subscribers.push(sender);
        receiver
    }

    /// Writes one event.
    pub fn note(&mut self, event: &impl Serialize) {
        let line = stamped(event, SystemTime::now());
        // A full queue loses lines, never time.
        if let Some(lines) = &self.lines {
            let _ = lines.try_send(crate::cli::events::render(&line));
        }
        // One that is gone, or so slow that it would miss lines, is let go: its stream ends, which it can see.
        self.subscribers.retain(|s| s.try_send(line.clone()).is_ok());
    }

    /// Writes one event that strangers can cause, unless there were too many in this second.
    pub fn complain(&mut self, event: &impl Serialize) {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.complaints.0 != second {
            let left_out = self.complaints.1.saturating_sub(COMPLAINTS);
            self.complaints = (second, 0);
            if left_out > 0 {
                self.note(&Happening::Suppressed { complaints: left_out });
            }
        }
        self.complaints.1 += 1;
        if self.complaints.1 <= COMPLAINTS {
            self.note(event);
        }
    }
}

impl Default for Journal {
    fn default() -> Journal {
        Journal::new()
    }
}

impl Drop for Journal {
    /// Waits for the last lines, but not for a standard error that takes none.
    fn drop(&mut self) {
        self.lines = None;
        let _ = self.written.recv_timeout(Duration::from_secs(1));
    }
}

/// The event as a JSON object with its time.
fn stamped(event: &impl Serialize, at: SystemTime) -> String {
    let mut value = serde_json::to_value(event).unwrap_or_else(|e| Value::String(e.to_string()));
    if let Value::Object(fields) = &mut value {
        fields.insert("time".into(), Value::String(rfc3339(at)));
    }
    value.to_string()
}

/// UTC, to the millisecond, as in 2026-11-21T11:34:44.250Z.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of the n-th day since 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::notice::Notice;

    #[test]
    fn events_carry_their_time() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_260_884_250);
        let line = stamped(&Notice::Resumed, at);
        assert_eq!(line, r#"{"event":"resumed","time":"2026-11-21T11:34:44.250Z"}"#);
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        let date = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59.000Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_subscriber_that_does_not_read_is_let_go_and_nothing_waits() {
        let mut journal = Journal::to(std::io::sink());
        let slow = journal.subscribe();
        for _ in 0..BACKLOG + 10 {
            journal.note(&Happening::Stopping);
        }
        assert!(journal.subscribers.is_empty());
        assert_eq!(slow.iter().count(), BACKLOG, "and its stream ends");
    }

    #[test]
    fn complaints_are_limited_and_the_rest_is_counted() {
        let mut journal = Journal::to(std::io::sink());
        let events = journal.subscribe();
        for _ in 0..100 {
            journal.complain(&Happening::Refused { from: "x".into(), why: "garbage".into() });
        }
        // A second may have begun anew in between.
        assert!((10..=21).contains(&events.try_iter().count()));
        journal.complaints.0 -= 1;
        journal.complain(&Happening::Refused { from: "x".into(), why: "garbage".into() });
        assert!(events.try_iter().any(|line| line.contains("suppressed")));
    }
}
