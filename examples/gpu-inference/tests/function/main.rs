//! The program as it is run: on the CPU, and on a GPU that is played by `tombolo-fake-cuda`, which interprets the very kernels
//! that real ones get.

mod ground;
mod image;

use gpu_inference::images::{IMAGES_MAX, held_out};
use serde_json::{Value, json};

use ground::{Function, run, with_fake};

/// The digit a request of one image was taken for, and its score.
fn class(answer: &Value) -> (u64, f64) {
    let class = answer["class"].as_u64().expect("a class");
    (class, answer["scores"][class as usize].as_f64().expect("a score"))
}

#[test]
fn a_gpu_answers_as_the_cpu_does() {
    let gpu = Function::start(&with_fake(&[("DEVICE", "cuda")]));
    let cpu = Function::start(&[("DEVICE", "cpu")]);
    for (image, digit) in &held_out()[..5] {
        let [on_gpu, on_cpu] =
            [&gpu, &cpu].map(|function| function.post("/classify", image.pixels()).json(200));
        assert_eq!((&on_gpu["device"], &on_cpu["device"]), (&json!("cuda:Fake GPU"), &json!("cpu")));
        let ((class_there, score_there), (class_here, score_here)) = (class(&on_gpu), class(&on_cpu));
        assert_eq!((class_there, class_here), (*digit as u64, *digit as u64));
        assert!((score_there - score_here).abs() < 1e-4, "{on_gpu} {on_cpu}");
        assert!(on_gpu["micros"].is_u64());
    }
    let checked = gpu.get("/check").json(200);
    assert_eq!((&checked["right"], &checked["images"]), (&json!(349), &json!(360)), "{checked}");
    assert_eq!(checked["is_within_tolerance"], true);
}

#[test]
fn images_are_taken_as_bytes_and_as_json_and_in_batches() {
    let function = Function::start(&[]);
    let digits = held_out();
    let one = serde_json::to_vec(&digits[0].0.pixels()[..]).unwrap();
    let answer = function.post("/classify", &one).json(200);
    assert_eq!(class(&answer).0, digits[0].1 as u64);
    assert_eq!(answer["scores"].as_array().map(Vec::len), Some(10));
    let bytes: Vec<u8> = digits.iter().flat_map(|(image, _)| *image.pixels()).collect();
    let json: Vec<&[u8]> = digits.iter().map(|(image, _)| &image.pixels()[..]).collect();
    for body in [bytes, serde_json::to_vec(&json).unwrap()] {
        let answer = function.post("/classify", &body).json(200);
        let answers = answer["answers"].as_array().expect("a list");
        let right = answers.iter().zip(&digits).filter(|(answer, digit)| class(answer).0 == digit.1 as u64);
        assert_eq!((answers.len(), right.count()), (360, 349));
    }
}

#[test]
fn the_largest_batch_fits_and_one_more_does_not() {
    let gpu = Function::start(&with_fake(&[("DEVICE", "cuda")]));
    let image = held_out()[0].0;
    let full = gpu.post("/classify", &image.pixels().repeat(IMAGES_MAX)).json(200);
    assert_eq!(full["answers"].as_array().map(Vec::len), Some(IMAGES_MAX));
    let refused = gpu.post("/classify", &image.pixels().repeat(IMAGES_MAX + 1));
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains("at most 1024 images"), "{}", refused.text());
}

#[test]
fn what_cannot_be_answered_is_told_why() {
    let function = Function::start(&[]);
    for (body, status, said) in [
        (&b""[..], 400, "nothing was sent"),
        (b"hello", 400, "neither bytes of images"),
        (b"[1,2]", 400, "an image has 64 pixels"),
        (&[0; 65], 400, "image 1: an image has 64 pixels"),
        (&[b' '; (1 << 20) + 1], 413, "at most 1048576 bytes"),
    ] {
        let answer = function.post("/classify", body);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(said), "{}", answer.text());
    }
    assert_eq!(function.get("/nothing").status, 404);
    let refused = function.get("/classify");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")));
    assert_eq!(function.post("/healthz", b"").status, 405);
    assert!(function.get("/").text().contains("POST /classify"));
    assert_eq!(function.get("/healthz").text(), "cpu works\n");
}

#[test]
fn without_a_gpu_that_works_it_computes_on_the_cpu_and_says_why() {
    for (variables, said) in [
        (vec![("CUDA_LIBRARY", "libcuda-of-nowhere.so.1")], "libcuda-of-nowhere.so.1"),
        (with_fake(&[("FAKE_CUDA_GPUS", "0")]), "finds no GPU"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuInit")]), "cuInit: CUDA_ERROR_UNKNOWN"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuDeviceGetCount")]), "cuDeviceGetCount"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuDeviceGet")]), "cuDeviceGet"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuDeviceGetName")]), "cuDeviceGetName"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain")]), "cuDevicePrimaryCtxRetain"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuCtxSetCurrent")]), "cuCtxSetCurrent"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuModuleLoadDataEx")]), "the kernels do not compile"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuModuleGetFunction:3")]), "cuModuleGetFunction"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuMemcpyHtoD_v2")]), "cuMemcpyHtoD_v2"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuMemcpyDtoH_v2")]), "cuMemcpyDtoH_v2"),
        (with_fake(&[("FAKE_CUDA_FAIL", "cuLaunchKernel:2")]), "cuLaunchKernel"),
        (with_fake(&[("FAKE_CUDA_MIB", "1")]), "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"),
        (with_fake(&[("FAKE_CUDA_SKEW", "0.01")]), "the GPU's answers are not the CPU's"),
    ] {
        let function = Function::start(&variables);
        let log = function.log();
        assert!(log.contains("computing on the CPU") && log.contains(said), "{variables:?}: {log}");
        assert_eq!(function.post("/classify", held_out()[0].0.pixels()).json(200)["device"], "cpu");
        let (succeeded, output) = run(&[&variables[..], &[("DEVICE", "cuda")]].concat(), &["--self-check"]);
        assert!(!succeeded && output.contains(said), "{variables:?}: {output}");
    }
}

#[test]
fn a_gpu_that_fails_later_is_told_and_no_longer_trusted() {
    // The first look takes one copy out, so the second one is of the first request.
    let function = Function::start(&with_fake(&[("FAKE_CUDA_FAIL", "cuMemcpyDtoH_v2:2")]));
    assert_eq!(function.get("/healthz").status, 200);
    let answer = function.post("/classify", held_out()[0].0.pixels());
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("cuMemcpyDtoH_v2: CUDA_ERROR_UNKNOWN"), "{}", answer.text());
    let health = function.get("/healthz");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("cuda:Fake GPU failed"), "{}", health.text());
}

#[test]
fn memory_is_held_and_checked() {
    for variables in [with_fake(&[("HOLD_MIB", "3")]), vec![("HOLD_MIB", "3"), ("DEVICE", "cpu")]] {
        let function = Function::start(&variables);
        let found = function.get("/memory").json(200);
        assert_eq!((&found["held_mib"], &found["wrong_words"]), (&json!(3), &json!(0)), "{found}");
        let on_gpu = found["device"] != "cpu";
        assert_eq!(found["total_mib"], if on_gpu { json!(256) } else { Value::Null }, "{found}");
    }
    let (succeeded, output) = run(&with_fake(&[("HOLD_MIB", "300")]), &[]);
    assert!(!succeeded && output.contains("300 MiB cannot be held: cuMemAlloc_v2"), "{output}");
}

#[test]
fn it_ends_when_told_to() {
    let mut function = Function::start(&[]);
    assert!(function.terminate().success());
}

#[test]
fn the_self_check_tells_what_it_found() {
    let (succeeded, output) = run(&with_fake(&[("DEVICE", "cuda")]), &["--self-check"]);
    assert!(succeeded && output.contains("cuda:Fake GPU: 349 of 360 digits read rightly"), "{output}");
    let (succeeded, output) = run(&[("DEVICE", "cpu")], &["--self-check"]);
    assert!(succeeded && output.contains("cpu: 349 of 360"), "{output}");
    let (succeeded, output) = run(&[], &["--nonsense"]);
    assert!(!succeeded && output.contains("--self-check"), "{output}");
}
