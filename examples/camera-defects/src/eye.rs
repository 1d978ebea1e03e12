//! The thread that has the camera: looks when it is asked to, and opens the camera anew when it has gone, as one that is plugged
//! again has. Nobody who asks waits longer than the camera may take.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use crate::camera::{Camera, Frames};
use crate::defects::{Picture, Verdict, inspect};

/// Longest time for one frame and those that are asked for before it.
const FRAME_MAX: Duration = Duration::from_secs(5);

/// Questions that may wait. More are turned away at once.
const WAITING_MAX: usize = 16;

/// What was seen on one frame.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    pub(crate) verdict: Verdict,
    /// Frames since the start, this one included.
    pub(crate) frame: u64,
    /// That looking took, microseconds; the camera's time is not in it.
    pub(crate) micros: u128,
}

/// Why nothing was seen.
#[derive(Debug)]
pub(crate) enum Blind {
    Camera(io::Error),
    Slow,
    Busy,
}

impl std::fmt::Display for Blind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Camera(error) => write!(f, "no frame: {error}"),
            Self::Slow => write!(f, "no frame within {} s", FRAME_MAX.as_secs()),
            Self::Busy => f.write_str("too many want to see at once"),
        }
    }
}

type Question = Sender<Result<Sight, Blind>>;

/// Asks for a look. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Eye(SyncSender<Question>);

impl Eye {
    pub(crate) fn open(camera: Camera) -> io::Result<Self> {
        let (asking, asked) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("camera".into()).spawn(move || look(&camera, &asked))?;
        Ok(Self(asking))
    }

    /// Looks at the next frame.
    pub(crate) fn see(&self) -> Result<Sight, Blind> {
        let (answer, answered) = channel();
        self.0.try_send(answer).map_err(|_| Blind::Busy)?;
        match answered.recv_timeout(FRAME_MAX) {
            Ok(seen) => seen,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Blind::Slow),
        }
    }
}

fn look(camera: &Camera, asked: &Receiver<Question>) {
    let (mut frames, mut frame): (Option<Frames>, u64) = (None, 0);
    for question in asked {
        let mut see = || {
            let open = match &mut frames {
                Some(open) => open,
                None => frames.insert(camera.open()?),
            };
            let pixels = open.next()?;
            let began = Instant::now();
            let verdict = inspect(Picture { width: camera.width, height: camera.height, pixels });
            frame += 1;
            Ok(Sight { verdict, frame, micros: began.elapsed().as_micros() })
        };
        let seen = see();
        if seen.is_err() {
            // The next to ask has it opened anew.
            frames = None;
        }
        // Who asked may have gone.
        let _ = question.send(seen.map_err(Blind::Camera));
    }
}
