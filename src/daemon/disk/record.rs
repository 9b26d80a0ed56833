//! For tests: what a daemon does to its disks, in order, so that crashes can be made of it. No daemon that users run has this.

use crate::core::{IoId, IoOp, Part};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A change of a part.
#[derive(Clone, Debug)]
pub enum Change {
    Write { offset: u64, bytes: Vec<u8>, sync: bool },
    Zero { offset: u64, length: u64, discard: bool },
    Truncate { length: u64 },
    Flush,
}

#[derive(Clone, Debug)]
pub enum Entry {
    /// A process begins; what an earlier one had in flight is over.
    Opened,
    Issued {
        id: IoId,
        part: Part,
        change: Change,
    },
    Done(IoId),
    /// A change that was waited for: by recovery.
    Blocking {
        part: Part,
        change: Change,
    },
    /// A client was told, so many of its changes: done, and durable.
    Told {
        done: u64,
        durable: u64,
    },
}

/// A list that both the daemon and the test add to.
pub type Tape = Arc<Mutex<Vec<Entry>>>;

static TAPES: Mutex<BTreeMap<PathBuf, Tape>> = Mutex::new(BTreeMap::new());

/// Records from now on what daemons do whose folder is `dir`.
pub fn record(dir: &Path) -> Tape {
    TAPES.lock().unwrap().entry(dir.to_owned()).or_default().clone()
}

/// The recorder of a disk that is opened; silent unless its folder is recorded.
pub struct Recorder(Option<Tape>);

impl Recorder {
    pub fn of(dir: &Path) -> Recorder {
        let recorder = Recorder(TAPES.lock().unwrap().get(dir).cloned());
        recorder.add(|| Some(Entry::Opened));
        recorder
    }

    fn add(&self, entry: impl FnOnce() -> Option<Entry>) {
        if let (Some(tape), Some(entry)) = (&self.0, self.0.as_ref().and_then(|_| entry())) {
            tape.lock().unwrap().push(entry);
        }
    }

    pub fn issued(&self, id: IoId, part: Part, op: &IoOp) {
        self.add(|| change(op).map(|change| Entry::Issued { id, part, change }));
    }

    pub fn done(&self, id: IoId) {
        self.add(|| Some(Entry::Done(id)));
    }

    pub fn blocking(&self, part: Part, change: Change) {
        self.add(|| Some(Entry::Blocking { part, change }));
    }
}

fn change(op: &IoOp) -> Option<Change> {
    Some(match op {
        IoOp::Write { offset, bufs, sync } => {
            let bytes = bufs.iter().flat_map(|b| b.iter().copied()).collect();
            Change::Write { offset: *offset, bytes, sync: *sync }
        }
        IoOp::Zero { offset, length, discard } => Change::Zero { offset: *offset, length: *length, discard: *discard },
        IoOp::Truncate { length } => Change::Truncate { length: *length },
        IoOp::Flush => Change::Flush,
        IoOp::Read { .. } | IoOp::NextData { .. } | IoOp::Reserve { .. } => return None,
    })
}
