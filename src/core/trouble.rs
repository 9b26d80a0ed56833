//! Storage that fails and may recover: said when it begins, seldom while it lasts, and when it is over; and shown in `status`
//! for as long as it lasts, with what to do.

use super::node::Node;
use super::notice::Notice;
use super::types::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// The first pause before a lasting trouble is said again, and the longest one, in ms. Each is twice the one before.
const FIRST_PAUSE_MS: u64 = 10_000;
const LONGEST_PAUSE_MS: u64 = 600_000;

/// What has failed and may recover is tried again after this long, in ms.
pub(super) const RETRY_MS: u64 = 1000;

/// A write that waits for memory for so long is worth a word, in ms.
const WAIT_MS: u64 = 1000;

/// Parts whose newest write has failed.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<String, Trouble>);

#[derive(Debug)]
struct Trouble {
    errno: i32,
    since: Time,
    say_at: Time,
    pause_ms: u64,
}

/// What `status` shows of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// log, store, history, bitmap, superblock, resync, salvage, or memory.
    pub part: String,
    /// What is wrong, in words.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Seconds since it began; none where that is not known.
    pub since_s: Option<f64>,
}

/// An errno as people say it.
pub(super) fn errno_words(errno: i32) -> String {
    let words = match errno {
        5 => "input/output error",
        28 => "no space left on device",
        30 => "read-only file system",
        122 => "disk quota exceeded",
        _ => return format!("errno {errno}"),
    };
    format!("{words} (errno {errno})")
}

/// Whether it passes when somebody makes room: no space, or no more of a quota.
pub(super) fn is_no_room(errno: i32) -> bool {
    matches!(errno, 28 | 122)
}

fn remedy(errno: i32) -> &'static str {
    match errno {
        _ if is_no_room(errno) => "make room; it is tried again by itself, and nothing is lost meanwhile",
        _ => "mend or replace the disk; it is tried again by itself until then",
    }
}

impl Node {
    /// A write to a part has failed, and will be tried again.
    pub(super) fn part_failed(&mut self, part: &str, errno: i32) {
        let now = self.now;
        let trouble = self.troubles.0.get_mut(part).filter(|t| t.errno == errno);
        match trouble {
            Some(trouble) if now < trouble.say_at => return,
            Some(trouble) => {
                trouble.pause_ms = (trouble.pause_ms * 2).min(LONGEST_PAUSE_MS);
                trouble.say_at = now.plus_ms(trouble.pause_ms);
            }
            None => {
                let (say_at, pause_ms) = (now.plus_ms(FIRST_PAUSE_MS), FIRST_PAUSE_MS);
                self.troubles.0.insert(part.to_string(), Trouble { errno, since: now, say_at, pause_ms });
            }
        }
        self.notice(Notice::StorageFailed { part: part.into(), errno });
    }

    /// It has been written to: whatever was wrong is over.
    pub(super) fn part_works(&mut self, part: &str) {
        if self.troubles.0.remove(part).is_some() {
            self.notice(Notice::StorageWorks { part: part.into() });
        }
    }

    pub(super) fn problems(&self, now: Time) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        if let Some(what) = &self.fault {
            let part = what.split(':').next().unwrap_or_default().to_string();
            let remedy = "promote another node; then mend or replace the disk, and start this daemon again".to_string();
            problems.push(Problem { part, what: format!("failed for good: {what}"), remedy, since_s: None });
        }
        for (part, trouble) in &self.troubles.0 {
            problems.push(Problem {
                part: part.clone(),
                what: format!("cannot be written: {}", errno_words(trouble.errno)),
                remedy: remedy(trouble.errno).into(),
                since_s: Some(now.since_us(trouble.since) as f64 / 1e6),
            });
        }
        if let Some((lsn, found)) = self.lost_record() {
            problems.push(Problem {
                part: "log".into(),
                what: format!("record {} could not be read back: a peer that needed it gets a resync instead", lsn.0),
                remedy: "nothing is lost; look after the disk that holds the log, and replace it if this comes again"
                    .into(),
                since_s: Some(now.since_us(found) as f64 / 1e6),
            });
        }
        if let Some(lost) = self.lost {
            problems.push(Problem {
                part: "log".into(),
                what: format!("damaged: record {} and what came after it were durable and cannot be read", lost.0),
                remedy: "promote another node: this one follows it and gets from it what it lacks; look after the disk that holds the log".into(),
                since_s: None,
            });
        }
        let remedy = match self.troubles.0.contains_key("store") {
            true => "see the store: there is room again once it has taken what waits for it",
            false => {
                "it passes when the store has caught up; more memory, a larger log or a faster store helps if it comes again"
            }
        };
        if self.log.is_full() {
            let what = format!("full: writes wait until the store has taken the records from {} on", self.log.from().0);
            problems.push(Problem { part: "log".into(), what, remedy: remedy.into(), since_s: None });
        }
        let waits = self.clients.waiting_since().map(|since| now.since_us(since));
        if let Some(us) = waits.filter(|us| *us >= WAIT_MS * 1000) {
            let what = "full of records that are not in the store yet: writes wait".to_string();
            let since_s = Some(us as f64 / 1e6);
            problems.push(Problem { part: "memory".into(), what, remedy: remedy.into(), since_s });
        }
        problems
    }
}
