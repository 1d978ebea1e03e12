//! Whether a picture of an even surface shows a defect, and where: spots, scratches and holes are what differs from its
//! surroundings by more than the surface differs from itself. Knows no camera.
//!
//! For each pixel the mean of a small square about it is set against that of a large one, so that uneven light, which is wide,
//! drops out. What is left is measured in the surface's own roughness: the median of its absolute values, over the whole picture,
//! which a defect, being small, does not move. Pixels far above that, in groups that touch, are a defect.
//!
//! Sums are whole numbers throughout, so that the fast way (a table of sums) and the plain one agree to the bit.

/// Half the sides of the squares: 5 and 31 pixels.
pub(crate) const SMALL: usize = 2;
pub(crate) const LARGE: usize = 15;

/// How many times the median a pixel has to differ. Of noise that is Gaussian, six of its standard deviations.
pub(crate) const TIMES: i64 = 9;

/// Least difference of a defect, brightness: what no eye would see is none, however smooth the surface.
pub(crate) const LEAST: i64 = 6;

/// Least size of a defect, pixels.
pub(crate) const PIXELS_MIN: usize = 6;

/// Defects that are told of one picture, the largest first.
pub(crate) const TOLD_MAX: usize = 16;

/// A response's unit is a 256th of a step of brightness.
pub(crate) const UNIT: i64 = 256;

/// A picture: one byte of brightness for each pixel, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picture<'a> {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: &'a [u8],
}

/// A defect: where it is, how many pixels it has, and how much the worst of them differs, brightness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defect {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: usize,
    pub(crate) difference: i64,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The largest first.
    pub(crate) defects: Vec<Defect>,
    /// All there are, told or not.
    pub(crate) count: usize,
    /// Mean brightness.
    pub(crate) brightness: u8,
}

/// Looks for defects.
pub(crate) fn inspect(picture: Picture<'_>) -> Verdict {
    let responses = responses(picture);
    let threshold = (TIMES * roughness(&responses)).max(LEAST * UNIT);
    let mut defects = groups(&responses, picture.width, threshold);
    defects.sort_by_key(|defect| (std::cmp::Reverse(defect.pixels), defect.y, defect.x));
    let count = defects.len();
    defects.truncate(TOLD_MAX);
    let sum: u64 = picture.pixels.iter().map(|pixel| u64::from(*pixel)).sum();
    let brightness = u8::try_from(sum / picture.pixels.len().max(1) as u64).unwrap_or(u8::MAX);
    Verdict { defects, count, brightness }
}

/// How much each pixel's surroundings differ from theirs.
pub(crate) fn responses(picture: Picture<'_>) -> Vec<i64> {
    let sums = Sums::of(picture);
    let rows = 0..picture.height;
    rows.flat_map(|y| (0..picture.width).map(move |x| (x, y)))
        .map(|(x, y)| sums.mean(x, y, SMALL) - sums.mean(x, y, LARGE))
        .collect()
}

/// Sums of all pixels above and to the left.
struct Sums {
    width: usize,
    height: usize,
    table: Vec<i64>,
}

impl Sums {
    fn of(picture: Picture<'_>) -> Self {
        let Picture { width, height, pixels } = picture;
        let mut table = vec![0; (width + 1) * (height + 1)];
        for y in 0..height {
            let mut row = 0;
            for x in 0..width {
                row += i64::from(pixels[y * width + x]);
                table[(y + 1) * (width + 1) + x + 1] = table[y * (width + 1) + x + 1] + row;
            }
        }
        Self { width, height, table }
    }

    /// Of the square about a pixel, as far as it is in the picture, in units.
    fn mean(&self, x: usize, y: usize, half: usize) -> i64 {
        let (left, right) = (x.saturating_sub(half), (x + half + 1).min(self.width));
        let (top, bottom) = (y.saturating_sub(half), (y + half + 1).min(self.height));
        let at = |x: usize, y: usize| self.table[y * (self.width + 1) + x];
        let sum = at(right, bottom) + at(left, top) - at(left, bottom) - at(right, top);
        let pixels = ((right - left) * (bottom - top)) as i64;
        sum * UNIT / pixels
    }
}

/// The median of what they differ.
fn roughness(responses: &[i64]) -> i64 {
    if responses.is_empty() {
        return 0;
    }
    let mut all: Vec<i64> = responses.iter().map(|response| response.abs()).collect();
    let middle = all.len() / 2;
    *all.select_nth_unstable(middle).1
}

/// Pixels above the threshold, by groups that touch by a side or a corner.
fn groups(responses: &[i64], width: usize, threshold: i64) -> Vec<Defect> {
    let mut is_left: Vec<bool> = responses.iter().map(|response| response.abs() > threshold).collect();
    let mut defects = Vec::new();
    let mut pending = Vec::new();
    for first in 0..responses.len() {
        if !std::mem::take(&mut is_left[first]) {
            continue;
        }
        pending.push(first);
        let (mut pixels, mut worst) = (0, 0);
        let (mut left, mut right, mut top, mut bottom) = (usize::MAX, 0, usize::MAX, 0);
        while let Some(at) = pending.pop() {
            let (x, y) = (at % width, at / width);
            (left, right) = (left.min(x), right.max(x));
            (top, bottom) = (top.min(y), bottom.max(y));
            pixels += 1;
            worst = worst.max(responses[at].abs());
            for y in y.saturating_sub(1)..=y + 1 {
                for x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let next = y * width + x;
                    if next < is_left.len() && std::mem::take(&mut is_left[next]) {
                        pending.push(next);
                    }
                }
            }
        }
        if pixels >= PIXELS_MIN {
            let (width, height) = (right - left + 1, bottom - top + 1);
            defects.push(Defect { x: left, y: top, width, height, pixels, difference: worst / UNIT });
        }
    }
    defects
}

#[cfg(test)]
mod tests;
