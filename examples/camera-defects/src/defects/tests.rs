//! The fast filter against the plain one, and what is a defect and what is not.

use super::*;
use crate::reference::{Surface, check, plain_responses, surface};

fn picture(pixels: &[u8], width: usize, height: usize) -> Picture<'_> {
    Picture { width, height, pixels }
}

#[test]
fn the_fast_filter_is_the_plain_one_to_the_bit() {
    // Wider than high, higher than wide, smaller than the squares, one line, one pixel.
    for (width, height) in [(80, 50), (37, 64), (20, 9), (70, 1), (1, 40), (1, 1)] {
        for kind in [Surface::Good, Surface::Spot] {
            let pixels = surface(kind, width, height, 3);
            let picture = picture(&pixels, width, height);
            assert_eq!(responses(picture), plain_responses(picture), "{width}x{height}");
        }
    }
    let extremes: Vec<u8> = (0..64 * 64).map(|index| if index / 7 % 2 == 0 { 0 } else { 255 }).collect();
    assert_eq!(responses(picture(&extremes, 64, 64)), plain_responses(picture(&extremes, 64, 64)));
}

#[test]
fn made_up_pictures_are_judged_rightly() {
    let checked = check();
    assert!(checked.is_passed() && checked.pictures == 12, "{checked:?}");
}

#[test]
fn uneven_light_and_noise_are_no_defects_and_a_lone_pixel_is_none() {
    let (width, height) = (160, 120);
    for light in 0..8 {
        let pixels = surface(Surface::Good, width, height, light);
        assert_eq!(inspect(picture(&pixels, width, height)).count, 0, "{light}");
    }
    let mut even = vec![100; width * height];
    assert_eq!(
        inspect(picture(&even, width, height)),
        Verdict { defects: vec![], count: 0, brightness: 100 }
    );
    // A hot pixel of the camera, dimmed by its surroundings below what is told.
    even[60 * width + 80] = 130;
    assert_eq!(inspect(picture(&even, width, height)).count, 0);
}

#[test]
fn defects_are_told_with_their_place_the_largest_first_and_not_without_end() {
    let (width, height) = (200, 160);
    let mut pixels = vec![100; width * height];
    let mark = |pixels: &mut [u8], x: usize, y: usize, size: usize, value: u8| {
        for row in y..y + size {
            pixels[row * width + x..row * width + x + size].fill(value);
        }
    };
    mark(&mut pixels, 50, 40, 4, 160);
    mark(&mut pixels, 120, 100, 8, 20);
    let verdict = inspect(picture(&pixels, width, height));
    assert_eq!(verdict.count, 2);
    let [large, small] = verdict.defects[..] else { panic!("{verdict:?}") };
    assert!(large.pixels > small.pixels);
    // The mean of 5x5 pixels reaches two further on each side.
    assert_eq!((large.x, large.y, large.width, large.height), (118, 98, 12, 12));
    assert!((60..=80).contains(&large.difference), "{large:?}");
    for index in 0..24 {
        mark(&mut pixels, 5 + index % 8 * 24, 5 + index / 8 * 50, 3, 200);
    }
    let verdict = inspect(picture(&pixels, width, height));
    assert_eq!(verdict.defects.len(), TOLD_MAX);
    assert!(verdict.count > TOLD_MAX, "{}", verdict.count);
}
