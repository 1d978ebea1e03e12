//! The network: its shape, its weights, and how the CPU computes it, which is what the GPU's answers are held against.
//!
//! ```text
//! 8x8 image ─▶ convolution 3x3, 16 channels ─▶ greatest of 2x2 ─▶ dense 256 → 64 ─▶ dense 64 → 10 ─▶ shares of 1
//! ```
//! Must not know where images come from.

use crate::images::{Image, PIXELS, SIDE};

/// Planes that the convolution makes.
pub const CHANNELS: usize = 16;

/// Weights of one channel: those of a pixel and its eight neighbours, row by row.
pub const KERNEL: usize = 9;

/// Side of a plane after the greatest of each 2x2 square is taken.
pub const POOLED_SIDE: usize = SIDE / 2;

pub const CONVOLVED: usize = CHANNELS * PIXELS;
pub const POOLED: usize = CHANNELS * POOLED_SIDE * POOLED_SIDE;
pub const HIDDEN: usize = 64;
pub const CLASSES: usize = 10;

/// How sure the network is of each digit; together 1.
pub type Scores = [f32; CLASSES];

/// What training found. Weights of one output stand together.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub convolution: Layer,
    pub hidden: Layer,
    pub output: Layer,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub weights: Vec<f32>,
    pub biases: Vec<f32>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a file of weights has {expected} bytes, this one {found}")]
pub struct WrongSize {
    expected: usize,
    found: usize,
}

impl Layer {
    /// All zeros.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { weights: vec![0.0; inputs * outputs], biases: vec![0.0; outputs] }
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            convolution: Layer::new(KERNEL, CHANNELS),
            hidden: Layer::new(POOLED, HIDDEN),
            output: Layer::new(HIDDEN, CLASSES),
        }
    }
}

impl Weights {
    /// The ones in the program, made by `examples/train.rs`.
    pub fn trained() -> Self {
        Self::read(include_bytes!("../digits/weights.bin")).expect("a test reads them")
    }

    /// # Errors
    /// They are of another network.
    pub fn read(bytes: &[u8]) -> Result<Self, WrongSize> {
        let mut weights = Self::default();
        let expected = 4 * weights.numbers().len();
        if bytes.len() != expected {
            return Err(WrongSize { expected, found: bytes.len() });
        }
        let (words, _) = bytes.as_chunks();
        for (number, word) in weights.numbers().into_iter().zip(words) {
            *number = f32::from_le_bytes(*word);
        }
        Ok(weights)
    }

    /// Little-endian 32-bit floats: layer after layer, each its weights and then its biases.
    pub fn written(&self) -> Vec<u8> {
        self.clone().numbers().into_iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// Every number there is, in the file's order.
    pub fn numbers(&mut self) -> Vec<&mut f32> {
        let layers = [&mut self.convolution, &mut self.hidden, &mut self.output];
        layers.into_iter().flat_map(|layer| layer.weights.iter_mut().chain(&mut layer.biases)).collect()
    }
}

/// What each layer made of one image. Training goes back through it.
#[derive(Clone, Debug)]
pub struct Pass {
    pub input: [f32; PIXELS],
    pub convolved: Vec<f32>,
    pub pooled: Vec<f32>,
    pub hidden: Vec<f32>,
    pub scores: Scores,
}

pub fn pass(weights: &Weights, image: &Image) -> Pass {
    let input = image.intensities();
    let mut convolved = vec![0.0; CONVOLVED];
    convolve(&weights.convolution, &input, &mut convolved);
    let mut pooled = vec![0.0; POOLED];
    pool(&convolved, &mut pooled);
    let mut hidden = vec![0.0; HIDDEN];
    dense(&weights.hidden, &pooled, &mut hidden);
    for value in &mut hidden {
        *value = value.max(0.0);
    }
    let mut scores = [0.0; CLASSES];
    dense(&weights.output, &hidden, &mut scores);
    softmax(&mut scores);
    Pass { input, convolved, pooled, hidden, scores }
}

/// The digit the network takes it for.
pub fn class(scores: &Scores) -> usize {
    let mut best = 0;
    for (class, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = class;
        }
    }
    best
}

/// Which pixel the weight at `row` and `column` of the kernel meets for the output at (`x`, `y`). None: outside the image.
pub fn neighbour(x: usize, y: usize, row: usize, column: usize) -> Option<usize> {
    let (x, y) = ((x + column).checked_sub(1)?, (y + row).checked_sub(1)?);
    (x < SIDE && y < SIDE).then_some(y * SIDE + x)
}

fn convolve(layer: &Layer, input: &[f32], output: &mut [f32]) {
    for (channel, plane) in output.chunks_exact_mut(PIXELS).enumerate() {
        for (at, value) in plane.iter_mut().enumerate() {
            let mut sum = layer.biases[channel];
            for (k, weight) in layer.weights[channel * KERNEL..][..KERNEL].iter().enumerate() {
                if let Some(pixel) = neighbour(at % SIDE, at / SIDE, k / 3, k % 3) {
                    sum += weight * input[pixel];
                }
            }
            *value = sum.max(0.0);
        }
    }
}

/// The four places in a plane's `convolved` values that make one `pooled` value.
pub fn square(pooled: usize) -> [usize; 4] {
    let per_plane = POOLED_SIDE * POOLED_SIDE;
    let (plane, at) = (pooled / per_plane, pooled % per_plane);
    let first = plane * PIXELS + at / POOLED_SIDE * 2 * SIDE + at % POOLED_SIDE * 2;
    [first, first + 1, first + SIDE, first + SIDE + 1]
}

fn pool(convolved: &[f32], output: &mut [f32]) {
    for (at, value) in output.iter_mut().enumerate() {
        *value = square(at).into_iter().map(|place| convolved[place]).fold(0.0, f32::max);
    }
}

fn dense(layer: &Layer, input: &[f32], output: &mut [f32]) {
    let rows = layer.weights.chunks_exact(input.len());
    for ((value, row), bias) in output.iter_mut().zip(rows).zip(&layer.biases) {
        *value = row.iter().zip(input).fold(*bias, |sum, (weight, input)| sum + weight * input);
    }
}

fn softmax(values: &mut Scores) {
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - greatest).exp();
        sum += *value;
    }
    for value in values {
        *value /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::held_out;

    /// What README.md says of the network.
    const RIGHT_OF_360: usize = 349;

    #[test]
    fn reads_the_share_of_unseen_digits_that_the_readme_states() {
        let weights = Weights::trained();
        let unseen = held_out();
        let right =
            unseen.iter().filter(|(image, digit)| class(&pass(&weights, image).scores) == *digit).count();
        assert_eq!((right, unseen.len()), (RIGHT_OF_360, 360));
        let readme = include_str!("../README.md");
        assert!(readme.contains(&format!("{RIGHT_OF_360} of 360")), "README.md states another accuracy");
    }

    #[test]
    fn weights_are_read_as_they_are_written() {
        let mut weights = Weights::default();
        for (n, number) in weights.numbers().into_iter().enumerate() {
            *number = n as f32;
        }
        let bytes = weights.written();
        assert_eq!(Weights::read(&bytes), Ok(weights));
        assert!(Weights::read(&bytes[1..]).is_err());
    }

    #[test]
    fn a_kernel_looks_at_the_eight_around_and_not_outside() {
        assert_eq!(neighbour(0, 0, 0, 0), None);
        assert_eq!(neighbour(0, 0, 1, 1), Some(0));
        assert_eq!(neighbour(3, 2, 0, 2), Some(SIDE + 4));
        assert_eq!(neighbour(7, 7, 2, 1), None);
        assert_eq!(neighbour(7, 7, 1, 2), None);
        assert_eq!(square(17), [PIXELS + 2, PIXELS + 3, PIXELS + SIDE + 2, PIXELS + SIDE + 3]);
    }

    #[test]
    fn shares_are_of_one_and_great_values_do_no_harm() {
        let mut values = [0.0; CLASSES];
        values[3] = 1000.0;
        softmax(&mut values);
        assert_eq!((values[3], class(&values)), (1.0, 3));
        let mut even = [5.0; CLASSES];
        softmax(&mut even);
        assert!(even.iter().all(|share| (share - 0.1).abs() < 1e-6));
    }
}
