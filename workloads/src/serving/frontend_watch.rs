//! What a frontend's messages show beside what its device does: that it speaks vhost-user at all,
//! and that it refuses to map.
//!
//! It owns what the lines of the present connection have shown so far. Invariant: a refusal of a
//! piece that the frontend still has, as after `stop` and `cont`, is none. Counterpart: the lines
//! of [`emulator::vhost_user::MessageTrace`], of which it reads name, offset and answer.

use std::collections::BTreeSet;

use emulator::sync::{Arc, Mutex};
use emulator::vhost_user::MessageTrace;

use super::message_trace::FileTrace;

/// What a frontend's messages have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrontendSign {
    /// It sent its first message.
    Speaks,
    /// It refused to map a piece.
    Refuses {
        /// What it answered: QEMU says 1, others an errno.
        answer: i64,
    },
}

#[derive(Debug, Default)]
struct Seen {
    /// The connection's number, as the lines have it.
    connection: String,
    speaks: bool,
    /// The offset that it was asked for last.
    asked: String,
    /// The offsets that it has accepted.
    mapped: BTreeSet<String>,
}

impl Seen {
    /// Reads a line.
    fn read(&mut self, line: &str) -> Option<FrontendSign> {
        let mut words = line.split(' ').skip(1);
        let connection = words.next()?;
        if self.connection != connection {
            *self = Seen { connection: connection.to_owned(), ..Seen::default() };
        }
        match (words.next()?, words.next()?) {
            ("<-", "SHMEM_MAP" | "SHMEM_UNMAP") => {
                words.nth(1)?.clone_into(&mut self.asked);
                None
            }
            ("->", "SHMEM_MAP:") => match words.next()?.parse() {
                Ok(0) => {
                    self.mapped.insert(self.asked.clone());
                    None
                }
                Ok(answer) if !self.mapped.contains(&self.asked) => Some(FrontendSign::Refuses { answer }),
                // It has it, or gave no answer.
                Ok(_) | Err(_) => None,
            },
            ("->", "SHMEM_UNMAP:") => {
                self.mapped.remove(&self.asked);
                None
            }
            ("->", _) if !self.speaks => {
                self.speaks = true;
                Some(FrontendSign::Speaks)
            }
            _ => None,
        }
    }
}

/// Tells what frontends show, and hands the lines on to the trace's file if there is one.
pub(super) struct FrontendWatch {
    seen: Mutex<Seen>,
    file: Option<Arc<FileTrace>>,
    tell: Box<dyn Fn(FrontendSign) + Send + Sync>,
}

impl FrontendWatch {
    pub(super) fn new(file: Option<Arc<FileTrace>>, tell: Box<dyn Fn(FrontendSign) + Send + Sync>) -> FrontendWatch {
        FrontendWatch { seen: Mutex::default(), file, tell }
    }
}

impl MessageTrace for FrontendWatch {
    fn line(&self, line: &str) {
        if let Some(file) = &self.file {
            file.line(line);
        }
        let shown = self.seen.lock().read(line);
        shown.into_iter().for_each(&self.tell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seen: &mut Seen, lines: &[&str]) -> Vec<FrontendSign> {
        lines.iter().filter_map(|line| seen.read(line)).collect()
    }

    const MAP: &str = "0.1 1 <- SHMEM_MAP shm_offset 0x0 fd_offset 0x200000 len 0x400000 files 1";

    #[test]
    fn a_frontend_that_only_connects_does_not_speak() {
        let mut seen = Seen::default();
        assert_eq!(shown(&mut seen, &["0.1 1 -- process 7 connected", "0.2 1 -- ended: a message of 3 bytes"]), []);
        let lines = ["0.3 2 -- process 8 connected", "0.4 2 -> GET_FEATURES flags 0x1 size 0 files 0: done"];
        assert_eq!(shown(&mut seen, &lines), [FrontendSign::Speaks]);
        assert_eq!(shown(&mut seen, &lines[1..]), [], "once");
        assert_eq!(shown(&mut seen, &["0.5 3 -> SET_OWNER flags 0x1 size 0 files 0: done"]), [FrontendSign::Speaks]);
    }

    #[test]
    fn a_piece_that_it_still_has_is_not_refused() {
        let mut seen = Seen::default();
        let refused = |answer| vec![FrontendSign::Refuses { answer }];
        assert_eq!(shown(&mut seen, &[MAP, "0.1 1 -> SHMEM_MAP: -13"]), refused(-13));
        assert_eq!(shown(&mut seen, &[MAP, "0.1 1 -> SHMEM_MAP: -13"]), refused(-13), "once for each attach");
        assert_eq!(shown(&mut seen, &[MAP, "0.1 1 -> SHMEM_MAP: 0", MAP, "0.1 1 -> SHMEM_MAP: -17"]), []);
        let unmap = "0.1 1 <- SHMEM_UNMAP shm_offset 0x0 fd_offset 0x200000 len 0x400000 files 0";
        let lines = [unmap, "0.1 1 -> SHMEM_UNMAP: 0", MAP, "0.1 1 -> SHMEM_MAP: -12"];
        assert_eq!(shown(&mut seen, &lines), refused(-12));
        assert_eq!(shown(&mut seen, &[MAP, "0.1 1 -> SHMEM_MAP: none: it hung up"]), []);
    }
}
