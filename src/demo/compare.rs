//! Two files, byte by byte.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Where two stores part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    #[error("one has {0} bytes, the other {1}")]
    Length(u64, u64),
    #[error("the first differing 4 KiB are at {offset}, and {blocks} such blocks differ in all")]
    Content { offset: u64, blocks: u64 },
}

/// Compares two files: how many bytes they have, and how they differ.
pub fn compare(one: &Path, other: &Path) -> io::Result<(u64, Option<Difference>)> {
    const PIECE: usize = 1 << 20;
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (length, others) = (one.metadata()?.len(), other.metadata()?.len());
    if length != others {
        return Ok((length, Some(Difference::Length(length, others))));
    }
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut at, mut first, mut blocks) = (0, None, 0);
    while at < length {
        // At most PIECE.
        let piece = (length - at).min(PIECE as u64) as usize;
        one.read_exact(&mut a[..piece])?;
        other.read_exact(&mut b[..piece])?;
        for (i, (x, y)) in a[..piece].chunks(4096).zip(b[..piece].chunks(4096)).enumerate() {
            if x != y {
                first = first.or(Some(at + 4096 * i as u64));
                blocks += 1;
            }
        }
        at += piece as u64;
    }
    Ok((length, first.map(|offset| Difference::Content { offset, blocks })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_longer_and_differing_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut bytes = vec![1; (1 << 20) + 8192];
        let (one, same) = (write("one", &bytes), write("same", &bytes));
        assert_eq!(compare(&one, &same).unwrap(), (bytes.len() as u64, None));
        *bytes.last_mut().unwrap() = 2;
        bytes[5000] = 2;
        let other = write("other", &bytes);
        assert_eq!(compare(&one, &other).unwrap().1, Some(Difference::Content { offset: 4096, blocks: 2 }));
        let short = write("short", &[1]);
        assert_eq!(compare(&one, &short).unwrap().1, Some(Difference::Length(bytes.len() as u64, 1)));
    }
}
