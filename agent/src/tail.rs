//! Following the logs of instances for whoever asks through the hub.
//!
//! Takes: requests, each with a lease that the same request renews. Gives: chunks of whole lines. Reads the log files as
//! they are; it must not know the link, and stops by itself when the lease ends, so that a hub that went away costs nothing.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::RevisionKey;
use tombolo_api::tail::{CHUNK_TEXT_MAX, LEASE_S, TailChunk, TailRequest};

use crate::log_files;

/// Requests served at a time: each reads files four times a second.
const SESSIONS_MAX: usize = 8;

/// Between looks at the files.
const POLL: Duration = Duration::from_millis(250);

/// Most that is read of one file at a time, bytes: twice the size at which it is rotated.
const READ_MAX: u64 = 2 << 20;

/// A chunk with the id of the request it answers.
pub(crate) type Tagged = (String, TailChunk);

/// The task: one session for each request id.
pub(crate) async fn run(
    state_dir: PathBuf,
    mut requests: mpsc::Receiver<TailRequest>,
    chunks: mpsc::Sender<Tagged>,
) {
    let mut leases: BTreeMap<String, watch::Sender<Instant>> = BTreeMap::new();
    while let Some(request) = requests.recv().await {
        let end = Instant::now() + Duration::from_secs(LEASE_S);
        leases.retain(|_, lease| !lease.is_closed());
        if let Some(lease) = leases.get(&request.id) {
            lease.send_replace(end);
            continue;
        }
        if leases.len() >= SESSIONS_MAX || !is_id(&request.id) {
            tracing::warn!(id = request.id, "too many requests for logs, or one without a proper id");
            continue;
        }
        let (sender, lease) = watch::channel(end);
        leases.insert(request.id.clone(), sender);
        let (state_dir, chunks) = (state_dir.clone(), chunks.clone());
        tokio::spawn(Session { state_dir, request, lease, chunks, files: BTreeMap::new() }.run());
    }
}

/// The id becomes part of a topic.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

struct Session {
    state_dir: PathBuf,
    request: TailRequest,
    /// When to stop.
    lease: watch::Receiver<Instant>,
    chunks: mpsc::Sender<Tagged>,
    files: BTreeMap<InstanceId, Position>,
}

/// How far a log has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    inode: u64,
    offset: u64,
}

impl Session {
    async fn run(mut self) {
        let mut first = true;
        loop {
            let (session, found) = match tokio::task::spawn_blocking(move || self.look(first)).await {
                Ok(found) => found,
                Err(_) => return,
            };
            self = session;
            for (revision, instance, text) in found {
                let chunk = TailChunk { instance: instance.0, revision, text, end: false };
                if !self.send(chunk).await {
                    return;
                }
            }
            if !self.request.follow {
                let end = TailChunk {
                    instance: String::new(),
                    revision: String::new(),
                    text: String::new(),
                    end: true,
                };
                self.send(end).await;
                return;
            }
            first = false;
            tokio::time::sleep(POLL).await;
            if Instant::now() >= *self.lease.borrow() {
                return;
            }
        }
    }

    /// Waits while the link is slow or away, no longer than the lease.
    async fn send(&self, chunk: TailChunk) -> bool {
        let until = *self.lease.borrow();
        matches!(
            tokio::time::timeout_at(until, self.chunks.send((self.request.id.clone(), chunk))).await,
            Ok(Ok(()))
        )
    }

    /// What is new in all logs, in chunks. Blocks.
    fn look(mut self, first: bool) -> (Self, Vec<(String, InstanceId, String)>) {
        let mut found = Vec::new();
        for revision in self.request.revisions.clone() {
            let key = RevisionKey::new(&self.request.namespace, &revision);
            if !tombolo_api::names::is_dns1123_label(&key.namespace)
                || revision.contains('/')
                || revision.starts_with('.')
            {
                continue;
            }
            for instance in log_files::instances(&self.state_dir, &key) {
                let path = log_files::directory(&self.state_dir, &key).join(format!("{instance}.log"));
                let read = match self.files.get(&instance) {
                    Some(position) => read_on(&path, *position),
                    None => read_past(&path, if first { self.request.lines } else { u32::MAX }),
                };
                let Ok((lines, position)) = read else { continue };
                self.files.insert(instance.clone(), position);
                found.extend(cut(lines).into_iter().map(|text| (revision.clone(), instance.clone(), text)));
            }
        }
        (self, found)
    }
}

/// The last `lines` lines of a log and of the part rotated away before it.
fn read_past(path: &std::path::Path, lines: u32) -> io::Result<(Vec<u8>, Position)> {
    let mut bytes =
        log_files::read_end(&PathBuf::from(format!("{}.1", path.display())), READ_MAX).unwrap_or_default();
    let inode = std::fs::metadata(path)?.ino();
    let (current, position) = read_from(path, Position { inode, offset: 0 })?;
    bytes.extend(current);
    let ends: Vec<_> =
        bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let skip = ends.len().saturating_sub(lines as usize);
    if skip > 0 {
        bytes.drain(..ends[skip - 1]);
    }
    Ok((bytes, position))
}

/// Whole lines after `position`. A log that was rotated meanwhile is read to its end under its next name first.
fn read_on(path: &std::path::Path, position: Position) -> io::Result<(Vec<u8>, Position)> {
    let metadata = std::fs::metadata(path)?;
    if metadata.ino() == position.inode && metadata.len() >= position.offset {
        return read_from(path, position);
    }
    let mut lines = Vec::new();
    let rotated = PathBuf::from(format!("{}.1", path.display()));
    if std::fs::metadata(&rotated).is_ok_and(|metadata| metadata.ino() == position.inode) {
        lines = read_from(&rotated, position)?.0;
    }
    let (rest, position) = read_from(path, Position { inode: metadata.ino(), offset: 0 })?;
    lines.extend(rest);
    Ok((lines, position))
}

fn read_from(path: &std::path::Path, position: Position) -> io::Result<(Vec<u8>, Position)> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(position.offset))?;
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    bytes.truncate(whole);
    Ok((bytes, Position { offset: position.offset + whole as u64, ..position }))
}

/// Whole lines in texts of bounded size; a line beyond the bound is cut, as the log's own format allows.
fn cut(lines: Vec<u8>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for line in String::from_utf8_lossy(&lines).split_inclusive('\n') {
        let end =
            (0..=CHUNK_TEXT_MAX.min(line.len())).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        let line = &line[..end];
        match texts.last_mut() {
            Some(text) if text.len() + line.len() <= CHUNK_TEXT_MAX => text.push_str(line),
            _ => texts.push(line.to_owned()),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn request(lines: u32, follow: bool) -> TailRequest {
        TailRequest {
            id: "t1".into(),
            namespace: "default".into(),
            revisions: vec!["a-00001".into()],
            lines,
            follow,
        }
    }

    fn log(state: &tempfile::TempDir) -> PathBuf {
        let key = RevisionKey::new("default", "a-00001");
        log_files::prepare(state.path(), &key, &InstanceId("a-1".into())).unwrap().path
    }

    fn append(path: &std::path::Path, text: &str) {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[tokio::test]
    async fn the_past_ends_with_a_mark() {
        let state = tempfile::tempdir().unwrap();
        append(&log(&state), "1\n2\n3\nunfinished");
        let (requests, inbox) = mpsc::channel(4);
        let (chunks, mut outbox) = mpsc::channel(4);
        tokio::spawn(run(state.path().to_owned(), inbox, chunks));
        requests.send(request(2, false)).await.unwrap();
        let (id, chunk) = outbox.recv().await.unwrap();
        assert_eq!(
            (id.as_str(), chunk.text.as_str(), chunk.instance.as_str(), chunk.end),
            ("t1", "2\n3\n", "a-1", false)
        );
        assert!(outbox.recv().await.unwrap().1.end);
    }

    #[tokio::test]
    async fn new_lines_follow_through_a_rotation() {
        let state = tempfile::tempdir().unwrap();
        let path = log(&state);
        append(&path, "old\n");
        let (requests, inbox) = mpsc::channel(4);
        let (chunks, mut outbox) = mpsc::channel(4);
        tokio::spawn(run(state.path().to_owned(), inbox, chunks));
        requests.send(request(0, true)).await.unwrap();
        tokio::time::sleep(POLL / 2).await;
        append(&path, "before\n");
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        append(&path, "after\n");
        let mut seen = String::new();
        while seen != "before\nafter\n" {
            seen.push_str(&outbox.recv().await.unwrap().1.text);
            assert!("before\nafter\n".starts_with(&seen), "{seen:?}");
        }
    }

    #[test]
    fn texts_are_bounded_and_lines_whole() {
        let line = format!("{}\n", "x".repeat(CHUNK_TEXT_MAX / 2));
        let texts = cut(line.repeat(5).into_bytes());
        assert_eq!(texts.len(), 5);
        assert_eq!(cut(b"a\nb\n".to_vec()), ["a\nb\n"]);
        assert_eq!(cut("ä".repeat(CHUNK_TEXT_MAX).into_bytes())[0].len(), CHUNK_TEXT_MAX);
        assert!(is_id("a-1") && !is_id("a/1") && !is_id(""));
    }
}
