//! Frames of a camera: of one that the kernel knows as such (V4L2) the format is set first; anything else that can be read is taken
//! to give one frame after the other. Knows nothing of what is in them.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// What a pixel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A byte of brightness.
    Grey,
    /// Two bytes, the first of which is brightness. What nearly every camera can give.
    Yuyv,
}

impl Format {
    /// As the kernel calls it.
    fn code(self) -> u32 {
        u32::from_le_bytes(match self {
            Self::Grey => *b"GREY",
            Self::Yuyv => *b"YUYV",
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Yuyv => 2,
        }
    }
}

/// Where the frames are, and how they look.
#[derive(Clone, Debug)]
pub(crate) struct Camera {
    pub(crate) path: PathBuf,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: Format,
}

/// A camera that is open.
pub(crate) struct Frames {
    camera: Camera,
    file: File,
    bytes: Vec<u8>,
    /// Brightness of the last one.
    pixels: Vec<u8>,
}

impl Camera {
    pub(crate) fn open(&self) -> io::Result<Frames> {
        let file = File::open(&self.path)?;
        v4l2::set_format(&file, self)?;
        let pixels = self.width * self.height;
        Ok(Frames {
            camera: self.clone(),
            file,
            bytes: vec![0; pixels * self.format.bytes()],
            pixels: vec![0; pixels],
        })
    }
}

impl Frames {
    /// The brightness of the next frame's pixels.
    pub(crate) fn next(&mut self) -> io::Result<&[u8]> {
        self.file.read_exact(&mut self.bytes).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => {
                io::Error::new(error.kind(), "the camera gives frames only by mapped buffers, not by read(2)")
            }
            _ => error,
        })?;
        for (pixel, bytes) in self.pixels.iter_mut().zip(self.bytes.chunks(self.camera.format.bytes())) {
            *pixel = bytes[0];
        }
        Ok(&self.pixels)
    }
}

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut u64) -> c_int;
}

/// The little of `linux/videodev2.h` that is needed.
mod v4l2 {
    use super::*;

    /// `VIDIOC_S_FMT`: read and write, 208 bytes, `V`, 5.
    const SET_FORMAT: c_ulong = 0xc0d0_5605;
    /// Of a program that captures.
    const CAPTURE: u32 = 1;
    /// Any order of the lines.
    const FIELD_ANY: u32 = 0;

    /// `struct v4l2_format` in words of 32 bits: the kind, a gap, and of the picture width, height, code and field.
    const KIND: usize = 0;
    const WIDTH: usize = 2;
    const HEIGHT: usize = 3;
    const CODE: usize = 4;
    const FIELD: usize = 5;
    const WORDS: usize = 52;

    /// Asks the camera for frames of this form; what is no camera to the kernel is left as it is.
    pub(super) fn set_format(file: &File, camera: &Camera) -> io::Result<()> {
        let mut words = [0_u32; WORDS];
        let number = |number: usize| u32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
        words[KIND] = CAPTURE;
        words[WIDTH] = number(camera.width)?;
        words[HEIGHT] = number(camera.height)?;
        words[CODE] = camera.format.code();
        words[FIELD] = FIELD_ANY;
        let mut format = join(words);
        // SAFETY: the request reads and writes 208 bytes, which `format` has, aligned for 64 bits, and it outlives the call.
        if unsafe { ioctl(file.as_raw_fd(), SET_FORMAT, format.as_mut_ptr()) } != 0 {
            let error = io::Error::last_os_error();
            // Not a terminal, not valid, not implemented: whatever it is, it is read as it comes.
            let is_plain = matches!(error.raw_os_error(), Some(22 | 25 | 38));
            return if is_plain { Ok(()) } else { Err(error) };
        }
        let is = split(format);
        if is[WIDTH..=CODE] == words[WIDTH..=CODE] {
            return Ok(());
        }
        let said = format!(
            "the camera gives {}x{} at best: set WIDTH, HEIGHT and FORMAT to what it can",
            is[WIDTH], is[HEIGHT]
        );
        Err(io::Error::new(io::ErrorKind::Unsupported, said))
    }

    fn join(words: [u32; WORDS]) -> [u64; WORDS / 2] {
        std::array::from_fn(|index| {
            let [low, high] = [words[2 * index], words[2 * index + 1]].map(u32::to_ne_bytes);
            u64::from_ne_bytes(std::array::from_fn(|byte| if byte < 4 { low[byte] } else { high[byte - 4] }))
        })
    }

    fn split(words: [u64; WORDS / 2]) -> [u32; WORDS] {
        std::array::from_fn(|index| {
            let bytes = words[index / 2].to_ne_bytes();
            let from = index % 2 * 4;
            u32::from_ne_bytes(std::array::from_fn(|byte| bytes[from + byte]))
        })
    }
}
