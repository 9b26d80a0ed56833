//! Tenures: what a device belongs to (C6).
//!
//! A daemon that is started again opens a new term, and so does every node that is promoted. A *tenure* is a run of terms that one
//! node has opened one after the other, with nobody else's in between; its id is that of the first. A device goes on through a
//! tenure, and fails for ever behind its end.

use crate::core::TermId;
use std::io;
use std::path::{Path, PathBuf};

/// The tenure that this node is in, or was in last.
pub struct Tenure {
    path: PathBuf,
    known: Option<Known>,
}

#[derive(Clone, Copy)]
struct Known {
    tenure: TermId,
    /// The newest term of it.
    term: TermId,
}

impl Tenure {
    /// As the daemon before left it in its folder.
    pub fn open(dir: &Path) -> Tenure {
        let path = dir.join("tenure");
        let known = std::fs::read_to_string(&path).ok().and_then(|text| {
            let mut ids = text.split_whitespace().map(|id| u128::from_str_radix(id, 16).map(TermId));
            Some(Known { tenure: ids.next()?.ok()?, term: ids.next()?.ok()? })
        });
        Tenure { path, known }
    }

    pub fn id(&self) -> Option<TermId> {
        self.known.map(|k| k.tenure)
    }

    /// A term is opened: the tenure that it belongs to. It goes on only if the term before is the very one that is noted.
    pub fn begin(&mut self, term: TermId, continues: Option<TermId>) -> TermId {
        let goes_on = self.known.filter(|k| Some(k.term) == continues);
        let tenure = goes_on.map_or(term, |k| k.tenure);
        self.known = Some(Known { tenure, term });
        // Where that fails the next daemon finds an older term, and begins a new tenure: a device fails that could have gone on. It is
        // not flushed, since no device outlives the machine.
        let _ = self.write(Known { tenure, term });
        tenure
    }

    fn write(&self, known: Known) -> io::Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, format!("{:032x} {:032x}\n", known.tenure.0, known.term.0))?;
        std::fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenure_goes_on_through_restarts_and_ends_with_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Tenure::open(dir.path());
        assert_eq!(open().id(), None);
        assert_eq!(open().begin(TermId(1), None), TermId(1));
        assert_eq!(open().begin(TermId(2), Some(TermId(1))), TermId(1));
        assert_eq!(open().id(), Some(TermId(1)));
        assert_eq!(open().begin(TermId(3), Some(TermId(2))), TermId(1), "over several restarts");
        assert_eq!(open().begin(TermId(3), Some(TermId(3))), TermId(1), "a term that is served again");
        // Term 4 was opened, and the daemon died before it was noted; nobody knows whether it went on.
        assert_eq!(open().begin(TermId(5), Some(TermId(4))), TermId(5));
        assert_eq!(open().begin(TermId(6), None), TermId(6), "by force, or after somebody else");
        std::fs::write(dir.path().join("tenure"), "garbage").unwrap();
        assert_eq!(open().begin(TermId(7), Some(TermId(6))), TermId(7));
    }
}
