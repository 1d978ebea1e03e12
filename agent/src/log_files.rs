//! Where instances' logs lie, and how to read their ends: `logs/{namespace}/{revision}/{instance}.log` below the state
//! directory, lines in the CRI format (`time stream tag text`), older parts in `….log.1` and so on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tombolo_agent_core::supervision::{InstanceId, LogSpec};
use tombolo_api::RevisionKey;

/// Size at which a log is rotated, bytes. With [`FILES`] this bounds an instance's log to 3 MiB.
const FILE_BYTES: u64 = 1 << 20;
const FILES: u32 = 3;

/// Ended instances of a revision whose logs are kept: enough to see why a program keeps ending.
const ENDED_MAX: usize = 5;

/// What is read of a log's end to find its last line.
const END_BYTES: u64 = 8 * 1024;

/// Longest last line that goes into a message.
const LAST_LINE_MAX: usize = 300;

/// The directory of a revision's logs.
pub(crate) fn directory(state_dir: &Path, revision: &RevisionKey) -> PathBuf {
    state_dir.join("logs").join(&*revision.namespace).join(&*revision.name)
}

/// The log of one instance, its directory made.
pub(crate) fn prepare(
    state_dir: &Path,
    revision: &RevisionKey,
    instance: &InstanceId,
) -> io::Result<LogSpec> {
    let directory = directory(state_dir, revision);
    fs::create_dir_all(&directory)?;
    Ok(LogSpec { path: directory.join(format!("{instance}.log")), max_bytes: FILE_BYTES, max_files: FILES })
}

/// The text of the last line an instance wrote.
pub(crate) fn last_line(state_dir: &Path, revision: &RevisionKey, instance: &InstanceId) -> Option<String> {
    let end = read_end(&directory(state_dir, revision).join(format!("{instance}.log")), END_BYTES).ok()?;
    let text = String::from_utf8_lossy(&end);
    let last = text.lines().rev().filter_map(text_of).find(|text| !text.trim().is_empty())?;
    Some(last.chars().take(LAST_LINE_MAX).collect())
}

/// The text part of a line.
fn text_of(line: &str) -> Option<&str> {
    line.splitn(4, ' ').nth(3)
}

/// At most `most` bytes of a file's end, from the beginning of a line.
pub(crate) fn read_end(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    if from > 0 {
        let first = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |position| position + 1);
        bytes.drain(..first);
    }
    Ok(bytes)
}

/// Instances of a revision that have a log, by name.
pub(crate) fn instances(state_dir: &Path, revision: &RevisionKey) -> Vec<InstanceId> {
    let Ok(entries) = fs::read_dir(directory(state_dir, revision)) else { return Vec::new() };
    let name =
        |entry: fs::DirEntry| Some(InstanceId(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned()));
    let mut found: Vec<_> = entries.flatten().filter_map(name).collect();
    found.sort();
    found
}

/// Removes the logs of revisions for which `keeps` is false, and of the others those of all but the last ended instances: of
/// all that ended, if `short` of room.
pub(crate) fn collect(
    state_dir: &Path,
    keeps: impl Fn(&RevisionKey) -> bool,
    lives: impl Fn(&InstanceId) -> bool,
    short: bool,
) -> io::Result<()> {
    for namespace in directories(&state_dir.join("logs"))? {
        for revision in directories(&namespace)? {
            let key = RevisionKey::new(name_of(&namespace), name_of(&revision));
            if keeps(&key) {
                thin_out(&revision, &lives, if short { 0 } else { ENDED_MAX })?;
            } else {
                fs::remove_dir_all(&revision)?;
            }
        }
        // Only when it is empty.
        let _ = fs::remove_dir(&namespace);
    }
    Ok(())
}

fn thin_out(directory: &Path, lives: &impl Fn(&InstanceId) -> bool, most: usize) -> io::Result<()> {
    let mut ended: BTreeMap<InstanceId, (SystemTime, Vec<PathBuf>)> = BTreeMap::new();
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let Some((instance, _)) = name.to_str().and_then(|name| name.split_once(".log")) else { continue };
        let instance = InstanceId(instance.to_owned());
        if !lives(&instance) {
            let changed = entry.metadata()?.modified()?;
            let (newest, files) = ended.entry(instance).or_insert((changed, Vec::new()));
            *newest = changed.max(*newest);
            files.push(entry.path());
        }
    }
    let mut ended: Vec<_> = ended.into_values().collect();
    ended.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
    for file in ended.into_iter().skip(most).flat_map(|(_, files)| files) {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_found() {
        let state = tempfile::tempdir().unwrap();
        let revision = RevisionKey::new("default", "a-00001");
        let instance = InstanceId("a-1".into());
        assert_eq!(last_line(state.path(), &revision, &instance), None);
        let log = prepare(state.path(), &revision, &instance).unwrap();
        let filler = "2026-01-01T00:00:00Z stdout F filler\n".repeat(1000);
        let end = "2026-01-01T00:00:00Z stderr F no such file: x y\n2026-01-01T00:00:00Z stdout F \n";
        fs::write(&log.path, filler + end).unwrap();
        assert_eq!(last_line(state.path(), &revision, &instance).unwrap(), "no such file: x y");
        assert_eq!(instances(state.path(), &revision), [instance]);
    }

    #[test]
    fn logs_of_gone_revisions_go_and_of_ended_instances_the_last_stay() {
        let state = tempfile::tempdir().unwrap();
        let (kept, gone) = (RevisionKey::new("n", "kept"), RevisionKey::new("m", "gone"));
        fs::write(prepare(state.path(), &gone, &InstanceId("x".into())).unwrap().path, "x").unwrap();
        for number in 0..9u32 {
            let path = prepare(state.path(), &kept, &InstanceId(format!("i{number}"))).unwrap().path;
            for path in [path.clone(), path.with_extension("log.1")] {
                let file = File::create(path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number.into()))
                    .unwrap();
            }
        }
        let lives = |instance: &InstanceId| instance.0 == "i0";
        collect(state.path(), |key| *key == kept, lives, false).unwrap();
        let left: Vec<_> = instances(state.path(), &kept).into_iter().map(|instance| instance.0).collect();
        assert_eq!(left, ["i0", "i4", "i5", "i6", "i7", "i8"]);
        assert_eq!(fs::read_dir(directory(state.path(), &kept)).unwrap().count(), 12);
        assert!(!state.path().join("logs/m").exists());
        collect(state.path(), |key| *key == kept, lives, true).unwrap();
        assert_eq!(instances(state.path(), &kept), [InstanceId("i0".into())]);
    }
}
