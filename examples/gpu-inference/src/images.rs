//! Images of digits, 8x8 pixels of 17 shades of grey, and how callers write them: raw bytes or JSON. Knows no network.

use serde::Deserialize;

pub const SIDE: usize = 8;
pub const PIXELS: usize = SIDE * SIDE;

/// The darkest shade; 0 is paper.
pub const SHADE_MAX: u8 = 16;

/// Most images in one request: the buffers on the GPU are made for as many, 5 MiB in all.
pub const IMAGES_MAX: usize = 1024;

/// An image whose pixels are in range, row by row from the top left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image([u8; PIXELS]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAnImage {
    #[error("an image has {PIXELS} pixels, row by row; this one has {0}")]
    Size(usize),
    #[error("a pixel is a whole number from 0 (paper) to {SHADE_MAX} (ink); pixel {at} is {value}")]
    Shade { at: usize, value: i64 },
}

/// What a caller sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    pub images: Vec<Image>,
    /// The answer is a list, even of one.
    pub is_batch: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    #[error(
        "nothing was sent: send one image as {PIXELS} bytes, or as a JSON array of {PIXELS} numbers; or several, one after the other, or as an array of arrays"
    )]
    Empty,
    #[error("this is neither bytes of images ({PIXELS} each, none above {SHADE_MAX}) nor a JSON array: {0}")]
    Json(#[from] serde_json::Error),
    #[error("image {index}: {error}")]
    Image { index: usize, error: NotAnImage },
    #[error("at most {IMAGES_MAX} images a request, these are {0}")]
    TooMany(usize),
}

impl Image {
    pub fn new(pixels: &[i64]) -> Result<Self, NotAnImage> {
        if pixels.len() != PIXELS {
            return Err(NotAnImage::Size(pixels.len()));
        }
        let mut image = [0; PIXELS];
        for (at, (pixel, value)) in image.iter_mut().zip(pixels).enumerate() {
            let shade = u8::try_from(*value).ok().filter(|shade| *shade <= SHADE_MAX);
            *pixel = shade.ok_or(NotAnImage::Shade { at, value: *value })?;
        }
        Ok(Self(image))
    }

    pub fn pixels(&self) -> &[u8; PIXELS] {
        &self.0
    }

    /// From 0 to 1, as the network takes them.
    pub fn intensities(&self) -> [f32; PIXELS] {
        self.0.map(|shade| f32::from(shade) / f32::from(SHADE_MAX))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Json {
    One(Vec<i64>),
    Many(Vec<Vec<i64>>),
}

/// Images as raw bytes or as JSON. The two cannot be taken for each other: no pixel is a bracket.
pub fn parse(body: &[u8]) -> Result<Sent, BadBody> {
    if body.is_empty() {
        return Err(BadBody::Empty);
    }
    let raw = body.iter().all(|byte| *byte <= SHADE_MAX);
    let (lists, is_batch) = if raw {
        let lists: Vec<Vec<i64>> =
            body.chunks(PIXELS).map(|chunk| chunk.iter().copied().map(i64::from).collect()).collect();
        let several = lists.len() > 1;
        (lists, several)
    } else {
        match serde_json::from_slice(body)? {
            Json::One(pixels) => (vec![pixels], false),
            Json::Many(lists) => (lists, true),
        }
    };
    if lists.len() > IMAGES_MAX {
        return Err(BadBody::TooMany(lists.len()));
    }
    let image = |(index, pixels): (usize, &Vec<i64>)| {
        Image::new(pixels).map_err(|error| BadBody::Image { index, error })
    };
    let images = lists.iter().enumerate().map(image).collect::<Result<_, _>>()?;
    Ok(Sent { images, is_batch })
}

/// Digits that training has not seen, with what they are: 65 bytes each, the last one the digit.
pub fn held_out() -> Vec<(Image, usize)> {
    let (records, _) = include_bytes!("../digits/held-out.bin").as_chunks::<{ PIXELS + 1 }>();
    let read = |record: &[u8; PIXELS + 1]| {
        let pixels: Vec<i64> = record[..PIXELS].iter().copied().map(i64::from).collect();
        (Image::new(&pixels).expect("a test reads them"), usize::from(record[PIXELS]))
    };
    records.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_taken_in_every_form() {
        let (first, second) = (held_out()[0].0, held_out()[1].0);
        let json = |image: &Image| serde_json::to_string(&image.pixels()[..]).unwrap();
        for body in [first.pixels().to_vec(), json(&first).into_bytes()] {
            assert_eq!(parse(&body).unwrap(), Sent { images: vec![first], is_batch: false });
        }
        let both = Sent { images: vec![first, second], is_batch: true };
        assert_eq!(parse(&[*first.pixels(), *second.pixels()].concat()).unwrap(), both);
        assert_eq!(parse(format!("[{},{}]", json(&first), json(&second)).as_bytes()).unwrap(), both);
        let list_of_one = format!("\n[ {} ]\n", json(&first));
        assert_eq!(parse(list_of_one.as_bytes()).unwrap(), Sent { images: vec![first], is_batch: true });
    }

    #[test]
    fn what_is_no_image_is_told_why() {
        let json = |count: usize, value: &str| format!("[{}]", vec![value; count].join(","));
        for (body, said) in [
            (String::new(), "nothing was sent"),
            ("hello".into(), "neither"),
            ("{\"image\": []}".into(), "neither"),
            ("[1.5]".into(), "neither"),
            ("\u{1}\u{2}".into(), "image 0: an image has 64 pixels, row by row; this one has 2"),
            ("[]".into(), "this one has 0"),
            (json(63, "1"), "this one has 63"),
            (json(64, "17"), "pixel 0 is 17"),
            (json(64, "-1"), "pixel 0 is -1"),
            (json(IMAGES_MAX + 1, "[]"), "at most 1024 images a request, these are 1025"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{body:?}: {error}");
        }
    }
}
