//! Trains the network from the digits in CSV on standard input and writes the weights and the digits that were held out:
//! `cargo run --release -p gpu-inference --example train -- DIR < digits.csv`. README.md says where the digits are from.
//!
//! The same digits give the same weights: the order of images, their shifts and the first weights come from a fixed seed.

use std::io::Read as _;
use std::path::PathBuf;

use gpu_inference::images::{Image, PIXELS, SIDE};
use gpu_inference::network::{
    CHANNELS, CLASSES, CONVOLVED, HIDDEN, KERNEL, Layer, POOLED, Pass, Weights, class, neighbour, pass,
    square,
};

/// Digits at the end of the file that training does not see.
const HELD_OUT: usize = 360;

const EPOCHS: usize = 80;
const BATCH: usize = 32;
const SEED: u64 = 8;

/// Adam's, as its authors recommend; the rate falls to nothing in a straight line.
const RATE: f32 = 2e-3;
const MOMENTUM: f32 = 0.9;
const VARIANCE: f32 = 0.999;
const TINY: f32 = 1e-8;

/// How much each step takes off every weight, as a share of the rate.
const DECAY: f32 = 1e-3;

type Digit = (Image, usize);

fn main() {
    let dir = PathBuf::from(std::env::args().nth(1).expect("name the directory to write to"));
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("digits on standard input");
    let digits: Vec<Digit> = text.lines().map(digit).collect();
    let (seen, held_out) = digits.split_at(digits.len().checked_sub(HELD_OUT).expect("more digits"));
    let weights = train(seen, held_out);
    std::fs::write(dir.join("weights.bin"), weights.written()).expect("the directory can be written");
    let record = |(image, digit): &Digit| {
        image.pixels().iter().copied().chain([u8::try_from(*digit).expect("below ten")]).collect::<Vec<u8>>()
    };
    let records: Vec<u8> = held_out.iter().flat_map(record).collect();
    std::fs::write(dir.join("held-out.bin"), records).expect("the directory can be written");
}

fn digit(line: &str) -> Digit {
    let mut numbers: Vec<i64> = line.split(',').map(|word| word.parse().expect("numbers only")).collect();
    let class = numbers.pop().expect("a line is not empty");
    (Image::new(&numbers).expect("an image"), usize::try_from(class).expect("a digit"))
}

fn train(seen: &[Digit], held_out: &[Digit]) -> Weights {
    let mut random = Random(SEED);
    let mut weights = first(&mut random);
    let count = weights.numbers().len();
    let (mut momentum, mut variance) = (vec![0.0_f32; count], vec![0.0_f32; count]);
    let steps = EPOCHS * seen.len().div_ceil(BATCH);
    let mut step = 0;
    let mut order: Vec<usize> = (0..seen.len()).collect();
    for epoch in 1..=EPOCHS {
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for batch in order.chunks(BATCH) {
            let mut slope = Weights::default();
            for (image, digit) in batch.iter().map(|at| seen[*at]) {
                let image = shifted(&image, &mut random);
                add_slope(&weights, &pass(&weights, &image), digit, &mut slope);
            }
            step += 1;
            let rate = RATE * (1.0 - step as f32 / steps as f32);
            let corrections = [1.0 - MOMENTUM.powi(step), 1.0 - VARIANCE.powi(step)];
            for (((weight, slope), momentum), variance) in
                weights.numbers().into_iter().zip(slope.numbers()).zip(&mut momentum).zip(&mut variance)
            {
                let slope = *slope / batch.len() as f32;
                *momentum = MOMENTUM * *momentum + (1.0 - MOMENTUM) * slope;
                *variance = VARIANCE * *variance + (1.0 - VARIANCE) * slope * slope;
                let towards = (*momentum / corrections[0]) / ((*variance / corrections[1]).sqrt() + TINY);
                *weight -= rate * (towards + DECAY * *weight);
            }
        }
        if epoch % 10 == 0 {
            eprintln!("epoch {epoch}: {} of {} right", right(&weights, seen), seen.len());
        }
    }
    eprintln!("held out: {} of {} right", right(&weights, held_out), held_out.len());
    weights
}

fn right(weights: &Weights, digits: &[Digit]) -> usize {
    digits.iter().filter(|(image, digit)| class(&pass(weights, image).scores) == *digit).count()
}

/// Random weights, small enough that values keep their size from layer to layer.
fn first(random: &mut Random) -> Weights {
    let mut weights = Weights::default();
    for (layer, inputs) in
        [(&mut weights.convolution, KERNEL), (&mut weights.hidden, POOLED), (&mut weights.output, HIDDEN)]
    {
        let bound = (6.0 / inputs as f32).sqrt();
        for weight in &mut layer.weights {
            *weight = (2.0 * random.share() - 1.0) * bound;
        }
    }
    weights
}

/// The image moved by at most one pixel each way, so that the network does not learn places by heart.
fn shifted(image: &Image, random: &mut Random) -> Image {
    let (row, column) = (random.below(3), random.below(3));
    let from = |at| neighbour(at % SIDE, at / SIDE, row, column).map_or(0, |pixel| image.pixels()[pixel]);
    Image::new(&(0..PIXELS).map(|at| i64::from(from(at))).collect::<Vec<_>>()).expect("the same pixels")
}

/// Adds how each weight moves the loss (cross entropy) of one image.
fn add_slope(weights: &Weights, pass: &Pass, digit: usize, slope: &mut Weights) {
    let mut output = pass.scores;
    output[digit] -= 1.0;
    let mut hidden = vec![0.0; HIDDEN];
    dense_back(&weights.output, &pass.hidden, &output[..CLASSES], &mut slope.output, &mut hidden);
    for (slope, value) in hidden.iter_mut().zip(&pass.hidden) {
        if *value <= 0.0 {
            *slope = 0.0;
        }
    }
    let mut pooled = vec![0.0; POOLED];
    dense_back(&weights.hidden, &pass.pooled, &hidden, &mut slope.hidden, &mut pooled);
    let mut convolved = vec![0.0; CONVOLVED];
    for (at, slope) in pooled.into_iter().enumerate() {
        let greatest = square(at).into_iter().find(|place| pass.convolved[*place] == pass.pooled[at]);
        if pass.pooled[at] > 0.0 {
            convolved[greatest.expect("it is one of the four")] = slope;
        }
    }
    for channel in 0..CHANNELS {
        for at in 0..PIXELS {
            let moved = convolved[channel * PIXELS + at];
            slope.convolution.biases[channel] += moved;
            for k in 0..KERNEL {
                if let Some(pixel) = neighbour(at % SIDE, at / SIDE, k / 3, k % 3) {
                    slope.convolution.weights[channel * KERNEL + k] += moved * pass.input[pixel];
                }
            }
        }
    }
}

fn dense_back(layer: &Layer, input: &[f32], output: &[f32], slope: &mut Layer, back: &mut [f32]) {
    for (o, moved) in output.iter().enumerate() {
        slope.biases[o] += moved;
        for (i, value) in input.iter().enumerate() {
            slope.weights[o * input.len() + i] += moved * value;
            back[i] += moved * layer.weights[o * input.len() + i];
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }
}
