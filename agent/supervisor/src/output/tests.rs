//! Log files: lines, parts, rotation, and a disk that is full.

use std::os::fd::OwnedFd;

use super::*;

fn log(directory: &Path, max_bytes: u64, max_files: u32) -> Log {
    Log::open(LogSpec { path: directory.join("deep/log"), max_bytes, max_files }).unwrap()
}

/// A stream's source and its writing end.
fn pipe() -> (Source, File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    (Source::from(File::from(read)), File::from(write))
}

fn lines(path: &Path) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ').map(str::to_owned);
            let time = parts.next().unwrap();
            assert_eq!((time.len(), &time[10..11], &time[29..]), (30, "T", "Z"), "{time}");
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
        })
        .collect()
}

fn line(stream: &str, tag: &str, text: &str) -> (String, String, String) {
    (stream.into(), tag.into(), text.into())
}

#[test]
fn lines_come_whole_however_they_were_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = log(directory.path(), 1 << 20, 2);
    let (mut source, mut program) = pipe();
    program.write_all(b"one\ntwo, beg").unwrap();
    assert_eq!(source.pump(Stream::Out, &mut log), Progress::Empty);
    program.write_all(b"un\n\nlast").unwrap();
    source.pump(Stream::Out, &mut log);
    drop(program);
    assert_eq!(source.pump(Stream::Out, &mut log), Progress::Ended);
    source.finish(Stream::Out, &mut log);
    let want = [
        line("stdout", "F", "one"),
        line("stdout", "F", "two, begun"),
        line("stdout", "F", ""),
        line("stdout", "P", "last"),
    ];
    assert_eq!(lines(&directory.path().join("deep/log")), want);
}

#[test]
fn a_long_line_comes_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = log(directory.path(), 1 << 20, 2);
    let (mut source, mut program) = pipe();
    let text = "x".repeat(2 * PIECE_MAX + 5);
    program.write_all(format!("{text}\nend\n").as_bytes()).unwrap();
    while source.pump(Stream::Error, &mut log) != Progress::Empty {}
    let lines = lines(&directory.path().join("deep/log"));
    let tags: Vec<&str> = lines.iter().map(|(_, tag, _)| tag.as_str()).collect();
    assert_eq!(tags, ["P", "P", "F", "F"]);
    let whole: String = lines[..3].iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(whole, text);
}

#[test]
fn rotation_bounds_size_and_number_and_loses_nothing_recent() {
    for max_files in [1, 2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), LOG_BYTES_MIN, max_files);
        let (mut source, mut program) = pipe();
        for number in 0..3000 {
            program.write_all(format!("line {number}\n").as_bytes()).unwrap();
            source.pump(Stream::Out, &mut log);
        }
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory.path().join("deep")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), max_files as usize, "{files:?}");
        let mut texts = Vec::new();
        for file in files.iter().rev() {
            assert!(fs::metadata(file).unwrap().len() <= LOG_BYTES_MIN);
            texts.extend(lines(file).into_iter().map(|(_, _, text)| text));
        }
        let newest: Vec<String> = (3000 - texts.len()..3000).map(|number| format!("line {number}")).collect();
        assert_eq!(texts, newest);
    }
}

#[test]
fn a_log_goes_on_where_an_earlier_supervisor_stopped() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..2 {
        let mut log = log(directory.path(), 1 << 20, 2);
        let (mut source, mut program) = pipe();
        program.write_all(format!("from {number}\n").as_bytes()).unwrap();
        source.pump(Stream::Out, &mut log);
    }
    let path = directory.path().join("deep/log");
    assert_eq!(lines(&path), [line("stdout", "F", "from 0"), line("stdout", "F", "from 1")]);
}

#[test]
fn a_full_disk_costs_lines_and_says_so_later() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = log(directory.path(), 1 << 20, 2);
    let (mut source, mut program) = pipe();
    let good = log.file.take().unwrap();
    log.file = Some(File::options().write(true).open("/dev/full").unwrap());
    program.write_all(b"lost 1\nlost 2\n").unwrap();
    source.pump(Stream::Out, &mut log);
    program.write_all(b"lost 3\n").unwrap();
    source.pump(Stream::Out, &mut log);
    log.file = Some(good);
    program.write_all(b"kept\n").unwrap();
    source.pump(Stream::Out, &mut log);
    let lines = lines(&directory.path().join("deep/log"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].2.starts_with("tombolo: 3 lines of output were dropped here: No space left"),
        "{lines:?}"
    );
    assert_eq!(lines[1], line("stdout", "F", "kept"));
}

#[test]
fn a_fifo_is_opened_without_waiting_for_its_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stdout");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut log =
        Log::unopened(LogSpec { path: directory.path().join("log"), max_bytes: 1 << 20, max_files: 1 });
    let mut source = Source::open(&path).unwrap();
    assert_eq!(source.pump(Stream::Out, &mut log), Progress::Ended);
    let writer: OwnedFd = File::options().read(true).write(true).open(&path).unwrap().into();
    assert_eq!(source.pump(Stream::Out, &mut log), Progress::Empty);
    drop(writer);
}
