//! The network on a GPU: weights are copied once, each request's images in and scores out. Must not know how images arrive
//! nor what the CPU would answer.

pub mod driver;

use std::ffi::{CStr, OsStr};
use std::rc::Rc;

use driver::{Argument, Buffer, CudaError, Gpu, Kernel, Memory, OpenError, Threads};

use crate::images::{IMAGES_MAX, Image, PIXELS};
use crate::network::{CLASSES, CONVOLVED, HIDDEN, Layer, POOLED, Scores, Weights};

/// The driver's library as its linker name; the linker finds it where drivers and container runtimes put it.
const LIBRARY: &str = "libcuda.so.1";

const KERNELS: &str = concat!(include_str!("../kernels.ptx"), "\0");

const FLOAT: usize = size_of::<f32>();

pub struct Network {
    gpu: Rc<Gpu>,
    kernels: Kernels,
    convolution: OnGpu,
    hidden: OnGpu,
    output: OnGpu,
    /// What the layers make, for `IMAGES_MAX` images.
    values: Values,
    held: Option<Held>,
}

struct Kernels {
    convolve: Kernel,
    pool: Kernel,
    dense: Kernel,
    softmax: Kernel,
    fill: Kernel,
    check: Kernel,
}

/// A layer's numbers on the GPU.
struct OnGpu {
    weights: Buffer,
    biases: Buffer,
}

struct Values {
    images: Buffer,
    convolved: Buffer,
    pooled: Buffer,
    hidden: Buffer,
    scores: Buffer,
}

/// Memory that is held for its own sake, filled with a pattern.
struct Held {
    memory: Buffer,
    wrong: Buffer,
    words: u64,
}

impl Network {
    /// Opens the GPU, with a library of another name or place if one is named.
    pub fn open(library: Option<&OsStr>, weights: &Weights) -> Result<Self, OpenError> {
        let kernels = CStr::from_bytes_with_nul(KERNELS.as_bytes()).expect("a text has no zero in it");
        let gpu = Gpu::open(library.unwrap_or(OsStr::new(LIBRARY)), kernels)?;
        Ok(Self::on(gpu, weights)?)
    }

    fn on(gpu: Rc<Gpu>, weights: &Weights) -> Result<Self, CudaError> {
        let kernels = Kernels {
            convolve: gpu.kernel("convolve")?,
            pool: gpu.kernel("pool")?,
            dense: gpu.kernel("dense")?,
            softmax: gpu.kernel("softmax")?,
            fill: gpu.kernel("fill")?,
            check: gpu.kernel("check")?,
        };
        let values = |each: usize| gpu.allocate(IMAGES_MAX * each * FLOAT);
        let values = Values {
            images: values(PIXELS)?,
            convolved: values(CONVOLVED)?,
            pooled: values(POOLED)?,
            hidden: values(HIDDEN)?,
            scores: values(CLASSES)?,
        };
        Ok(Self {
            kernels,
            convolution: OnGpu::copied(&gpu, &weights.convolution)?,
            hidden: OnGpu::copied(&gpu, &weights.hidden)?,
            output: OnGpu::copied(&gpu, &weights.output)?,
            values,
            held: None,
            gpu,
        })
    }

    pub fn name(&self) -> &str {
        self.gpu.name()
    }

    /// Scores of at most [`IMAGES_MAX`] images.
    pub fn classify(&self, images: &[Image]) -> Result<Vec<Scores>, CudaError> {
        let (values, kernels) = (&self.values, &self.kernels);
        let input: Vec<f32> = images.iter().flat_map(Image::intensities).collect();
        values.images.write(&input)?;
        let count = images.len() * CONVOLVED;
        let arguments =
            [&values.images, &self.convolution.weights, &self.convolution.biases, &values.convolved];
        let [images_at, weights, biases, convolved] = arguments.map(Argument::Memory);
        let arguments = [images_at, weights, biases, convolved, counted(count)];
        self.gpu.launch(&kernels.convolve, Threads::Each(count), &arguments)?;
        let count = images.len() * POOLED;
        let arguments =
            [Argument::Memory(&values.convolved), Argument::Memory(&values.pooled), counted(count)];
        self.gpu.launch(&kernels.pool, Threads::Each(count), &arguments)?;
        let (hidden, output) = (&self.hidden, &self.output);
        self.dense(hidden, [&values.pooled, &values.hidden], [images.len(), POOLED, HIDDEN], true)?;
        self.dense(output, [&values.hidden, &values.scores], [images.len(), HIDDEN, CLASSES], false)?;
        let arguments = [Argument::Memory(&values.scores), counted(images.len()), counted(CLASSES)];
        self.gpu.launch(&kernels.softmax, Threads::Each(images.len()), &arguments)?;
        let scores: Vec<f32> = values.scores.read(images.len() * CLASSES)?;
        Ok(scores.as_chunks().0.to_vec())
    }

    fn dense(
        &self,
        layer: &OnGpu,
        [input, output]: [&Buffer; 2],
        [images, inputs, outputs]: [usize; 3],
        rectify: bool,
    ) -> Result<(), CudaError> {
        let [input, weights, biases, output] =
            [input, &layer.weights, &layer.biases, output].map(Argument::Memory);
        let count = images * outputs;
        let [all, inputs, outputs] = [count, inputs, outputs].map(counted);
        let arguments =
            [input, weights, biases, output, all, inputs, outputs, Argument::Count(rectify.into())];
        self.gpu.launch(&self.kernels.dense, Threads::Each(count), &arguments)
    }

    /// Takes `mib` of the GPU's memory and fills it.
    pub fn hold(&mut self, mib: usize) -> Result<(), CudaError> {
        let bytes = mib << 20;
        let memory = self.gpu.allocate(bytes)?;
        let wrong = self.gpu.allocate(size_of::<u64>())?;
        let words = bytes as u64 / 4;
        let arguments = [Argument::Memory(&memory), Argument::LongCount(words)];
        self.gpu.launch(&self.kernels.fill, Threads::Many, &arguments)?;
        self.gpu.wait()?;
        self.held = Some(Held { memory, wrong, words });
        Ok(())
    }

    /// How many words of the memory that is held are not what they were.
    pub fn wrong_words(&self) -> Result<u64, CudaError> {
        let Some(Held { memory, wrong, words }) = &self.held else { return Ok(0) };
        wrong.write(&[0_u64])?;
        let arguments = [Argument::Memory(memory), Argument::Memory(wrong), Argument::LongCount(*words)];
        self.gpu.launch(&self.kernels.check, Threads::Many, &arguments)?;
        Ok(wrong.read::<u64>(1)?[0])
    }

    pub fn memory(&self) -> Result<Memory, CudaError> {
        self.gpu.memory()
    }
}

impl OnGpu {
    fn copied(gpu: &Rc<Gpu>, layer: &Layer) -> Result<Self, CudaError> {
        let copied = |values: &[f32]| {
            let buffer = gpu.allocate(size_of_val(values))?;
            buffer.write(values)?;
            Ok(buffer)
        };
        Ok(Self { weights: copied(&layer.weights)?, biases: copied(&layer.biases)? })
    }
}

/// Counts here are products of small constants and at most `IMAGES_MAX`.
fn counted(count: usize) -> Argument<'static> {
    Argument::Count(u32::try_from(count).expect("it fits, see above"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_changed_on_the_gpu_are_counted() {
        // Cargo puts the fake's library beside this test.
        let fake = std::env::current_exe().unwrap().with_file_name("libtombolo_fake_cuda.so");
        let mut network = Network::open(Some(fake.as_os_str()), &Weights::trained()).unwrap();
        network.hold(2).unwrap();
        assert_eq!(network.wrong_words(), Ok(0));
        let held = &network.held.as_ref().unwrap().memory;
        let mut words: Vec<u32> = held.read(2 << 18).unwrap();
        words[0] += 1;
        words[99_999] ^= 1 << 31;
        held.write(&words).unwrap();
        assert_eq!(network.wrong_words(), Ok(2));
    }

    #[test]
    fn drivers_of_every_age_can_read_the_kernels() {
        assert!(KERNELS.is_ascii(), "older drivers refuse anything but ASCII");
        assert!(KERNELS.contains("\n.version 6.0\n.target sm_50\n"), "they run from Maxwell on");
    }
}
