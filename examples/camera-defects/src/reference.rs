//! What the program is held to: the same filter written out plainly, and pictures that are made up, of which it is known whether
//! there is a defect. Must not share code with what it checks.

use crate::defects::{LARGE, Picture, SMALL, UNIT, inspect, responses};

const WIDTH: usize = 96;
const HEIGHT: usize = 64;

/// Pictures of one check: each kind in several lights.
const LIGHTS: usize = 4;

/// What is on a made-up surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    Good,
    /// A dark spot.
    Spot,
    /// A bright scratch, slantwise.
    Scratch,
}

/// How a check went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) pictures: usize,
    /// Filtered as the plain filter does, to the bit.
    pub(crate) agree: usize,
    /// Rightly called good or bad, and the defect where it is.
    pub(crate) right: usize,
}

impl Checked {
    pub(crate) fn is_passed(self) -> bool {
        self.agree == self.pictures && self.right == self.pictures
    }
}

/// Where the middle of a defect is.
const MIDDLE: (usize, usize) = (61, 22);

/// A surface with noise, lit from one side.
pub(crate) fn surface(surface: Surface, width: usize, height: usize, light: usize) -> Vec<u8> {
    let mut random = 1 + light as u32;
    let mut pixels = Vec::with_capacity(width * height);
    for y in 0..height {
        for x in 0..width {
            // Four throws are nearly Gaussian, with a standard deviation of 4.6.
            let noise: i32 = (0..4).map(|_| throw(&mut random)).sum();
            let slope = (x * light * 12 / width + y * light * 8 / height) as i32;
            let (dx, dy) = (x as i32 - MIDDLE.0 as i32, y as i32 - MIDDLE.1 as i32);
            let defect = match surface {
                Surface::Spot if dx * dx + dy * dy <= 9 => -40,
                Surface::Scratch if dx.abs() <= 12 && (dy - dx / 2).abs() <= 1 => 40,
                _ => 0,
            };
            pixels.push((100 + noise + slope + defect).clamp(0, 255) as u8);
        }
    }
    pixels
}

/// -4 to 4.
fn throw(random: &mut u32) -> i32 {
    *random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*random >> 16) as i32 % 9 - 4
}

/// The filter as it is written down: no table, each mean from its pixels.
pub(crate) fn plain_responses(picture: Picture<'_>) -> Vec<i64> {
    let mean = |x: usize, y: usize, half: usize| {
        let (mut sum, mut count) = (0, 0);
        for y in y.saturating_sub(half)..=(y + half).min(picture.height - 1) {
            for x in x.saturating_sub(half)..=(x + half).min(picture.width - 1) {
                sum += i64::from(picture.pixels[y * picture.width + x]);
                count += 1;
            }
        }
        sum * UNIT / count
    };
    let mut all = Vec::with_capacity(picture.pixels.len());
    for y in 0..picture.height {
        for x in 0..picture.width {
            all.push(mean(x, y, SMALL) - mean(x, y, LARGE));
        }
    }
    all
}

/// Has the program look at pictures of which the answer is known.
pub(crate) fn check() -> Checked {
    let mut checked = Checked::default();
    for kind in [Surface::Good, Surface::Spot, Surface::Scratch] {
        for light in 0..LIGHTS {
            let pixels = surface(kind, WIDTH, HEIGHT, light);
            let picture = Picture { width: WIDTH, height: HEIGHT, pixels: &pixels };
            let verdict = inspect(picture);
            checked.pictures += 1;
            checked.agree += usize::from(responses(picture) == plain_responses(picture));
            let is_right = match (kind, verdict.defects.as_slice()) {
                (Surface::Good, []) => true,
                (Surface::Spot | Surface::Scratch, [defect]) => {
                    let (right, bottom) = (defect.x + defect.width, defect.y + defect.height);
                    (defect.x..right).contains(&MIDDLE.0) && (defect.y..bottom).contains(&MIDDLE.1)
                }
                _ => false,
            };
            checked.right += usize::from(is_right);
        }
    }
    checked
}
