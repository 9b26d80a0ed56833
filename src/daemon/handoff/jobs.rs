//! Processes that carry tasks out, each the leader of a group of its own.

use super::spec::Work;
use crate::child;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A process under way.
pub struct Job {
    /// None once it has been waited for: its number may be another's by then.
    child: Arc<Mutex<Option<Child>>>,
}

impl Job {
    /// Starts it; `done` is called once, from another thread, with what should be known of it, too. It is killed when the thread that calls
    /// this ends, but for the check of a file system (H5).
    ///
    /// # Errors
    /// Where no process can be started.
    pub fn start(
        work: &Work,
        done: impl FnOnce(Result<(), String>, Option<String>) + Send + 'static,
    ) -> io::Result<Job> {
        let log = OpenOptions::new().create(true).append(true).open(work.spec.dir.join("handoff.log"))?;
        // By its inode: the file may have been replaced by a newer program since this one was started.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("understudy").arg("handoff-task").arg(serde_json::to_string(work)?);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = child::spawn(&mut command, work.fate())?;
        let out = child.stdout.take();
        let child = Arc::new(Mutex::new(Some(child)));
        let job = Job { child: child.clone() };
        let wait = move || {
            let mut line = String::new();
            // Its end, too, ends this: nobody else has the other end of the pipe.
            let _ = out.map(|out| BufReader::new(out).read_line(&mut line));
            let status = child.lock().ok().and_then(|mut held| held.take()).map(|mut child| child.wait());
            let said: Value = serde_json::from_str(&line).unwrap_or_default();
            let result = match (said["ok"].as_bool(), said["failed"].as_str(), status) {
                (Some(true), ..) => Ok(()),
                (_, Some(why), _) => Err(why.to_string()),
                (_, _, Some(Ok(status))) => Err(format!("its process ended without a word ({status})")),
                _ => Err("its process ended without a word".into()),
            };
            done(result, said["remark"].as_str().map(str::to_string));
        };
        let thread = std::thread::Builder::new().name("handoff-job".into()).stack_size(256 << 10).spawn(wait);
        if let Err(e) = thread {
            job.kill();
            return Err(e);
        }
        Ok(job)
    }

    /// Kills it and what it has started in its group.
    pub fn kill(&self) {
        if let Ok(held) = self.child.lock()
            && let Some(child) = held.as_ref()
        {
            // Not waited for yet, so the group is its own.
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        }
    }
}
