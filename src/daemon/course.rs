//! How the last takeover of this node went, phase by phase: for `status`, and for the history, where the handoff's phases stand behind it.

use super::handle::{LoopHandle, Request};
use super::handoff::remember;
use super::journal::{Happening, rfc3339};
use crate::core::notice::Notice;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// See the module's page.
pub struct Course {
    dir: PathBuf,
    node: String,
    from: String,
    last: Option<Value>,
}

impl Course {
    pub fn new(dir: &Path, node: &str) -> Course {
        Course { dir: dir.to_owned(), node: node.to_owned(), from: String::new(), last: None }
    }

    /// Takes note of what the core says.
    pub fn note(&mut self, notice: &Notice, handle: impl FnOnce() -> LoopHandle) {
        match notice {
            Notice::TakeoverBegan { from, .. } => self.from.clone_from(from),
            Notice::TookOver { silent_ms, asked_ms, agreed_ms, opened_ms } => {
                let ends = [
                    ("lease over", silent_ms),
                    ("asked", asked_ms),
                    ("charter", agreed_ms),
                    ("log recovered", opened_ms),
                ];
                let entry = self.entry(&ends.map(|(phase, ms)| (phase, *ms)));
                self.last = Some(entry.clone());
                self.write(entry, handle());
            }
            _ => {}
        }
    }

    /// Of phases and when each was over, since the last word of the active before.
    fn entry(&self, ends: &[(&str, u64)]) -> Value {
        let mut before = 0;
        let phase = |(phase, at): &(&str, u64)| {
            let took = at.saturating_sub(std::mem::replace(&mut before, *at));
            json!({ "phase": phase, "at_ms": at, "took_ms": took, "failed": null })
        };
        let phases: Vec<Value> = ends.iter().map(phase).collect();
        json!({
            "direction": "takeover",
            "why": format!("nothing was heard of {}", self.from),
            "phases": phases,
            "took_ms": ends.last().map(|(_, at)| at),
            "failed": null,
            "time": rfc3339(SystemTime::now()),
            "node": self.node,
        })
    }

    /// Beside the loop: it waits for a disk.
    fn write(&self, entry: Value, handle: LoopHandle) {
        let dir = self.dir.clone();
        let body = move || {
            if let Err(e) = remember(&dir, &entry) {
                let what = format!("the takeover cannot be written to the history: {e}");
                handle.send(Request::Note { happening: Happening::Defect { what } });
            }
        };
        // Without a thread the history lacks it; the events have it.
        let _ = std::thread::Builder::new().name("course".into()).stack_size(128 << 10).spawn(body);
    }

    /// The last takeover since this daemon was started.
    pub fn view(&self) -> Value {
        self.last.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_takes_what_lies_between_two_ends() {
        let mut course = Course::new(Path::new("/none"), "beta");
        course.from = "alpha".into();
        let entry =
            course.entry(&[("lease over", 1510), ("log durable", 1512), ("charter", 1520), ("log recovered", 1519)]);
        let took: Vec<u64> =
            entry["phases"].as_array().unwrap().iter().map(|p| p["took_ms"].as_u64().unwrap()).collect();
        assert_eq!(took, [1510, 2, 8, 0]);
        assert_eq!(
            (entry["took_ms"].as_u64(), entry["why"].as_str()),
            (Some(1519), Some("nothing was heard of alpha"))
        );
    }
}
