//! One picture: read, decoded, brought to the form that is stored.

use super::RAW_OVER_JPEG;
use crate::data::decode::{Exif, Gate, Picture, decode_with};
use crate::data::pack::{Form, Keep, PackOptions};
use crate::data::resize::{Frame, Squarer};
use crate::data::source::{Contents, Entry, Reader};
use image::ImageEncoder;
use std::sync::Mutex;

/// Quality of stored JPEGs, as OpenCV's default and the tool of 2014.
const JPEG_QUALITY: u8 = 95;

/// A picture as it will be stored, and its square for the statistics where that is not what is stored.
pub(super) struct Made {
    pub stored: Vec<u8>,
    pub width: usize,
    pub height: usize,
    pub square: Option<Vec<u8>>,
}

/// What makes pictures, shared by the threads.
pub(super) struct Maker<'a> {
    pub reader: Reader<'a>,
    pub entries: &'a [Entry],
    pub options: &'a PackOptions,
    pub gate: Gate,
    /// Memory of pictures that have been written.
    pub written: Mutex<Vec<Vec<u8>>>,
}

impl Maker<'_> {
    /// Reads, decodes, resizes and encodes picture `i`.
    pub fn make(&self, i: usize, squarer: &mut Squarer) -> std::result::Result<Made, String> {
        let (framing, options) = (self.options.framing(), self.options);
        // All of it, so that it cannot pile up.
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(|e| e.into_inner()));
        written.into_iter().for_each(|memory| squarer.give(memory));
        let contents = self.reader.read_with(&self.entries[i], &mut |bytes| squarer.take(bytes))?;
        let (file, picture, _turn) = match contents {
            Contents::Encoded(bytes) => {
                let memory = &mut |bytes| squarer.take(bytes);
                let (picture, turn) = decode_with(&bytes, options.exif, &self.gate, memory)?;
                (Some(bytes), picture, turn)
            }
            Contents::Pixels(picture) => (None, picture, None),
        };
        let made = match options.keep {
            Keep::Square => {
                let pixels = squarer.square(&picture, framing);
                self.encode(pixels, options.side, options.side, squarer)?
            }
            Keep::Whole => {
                let (pixels, width, height) = squarer.whole(&picture, framing);
                self.encode(pixels, width, height, squarer)?
            }
            Keep::Original => {
                let square = Some(squarer.square(&picture, framing));
                let (width, height) = (picture.width, picture.height);
                let stored = match file {
                    Some(file) => file,
                    None => png(&picture)?,
                };
                squarer.give(picture.pixels);
                return Ok(Made { stored, width, height, square });
            }
        };
        squarer.give(picture.pixels);
        file.into_iter().for_each(|bytes| squarer.give(bytes));
        Ok(made)
    }

    /// Pixels, (height, width, 3), in the form that they are stored in.
    fn encode(
        &self,
        pixels: Vec<u8>,
        width: usize,
        height: usize,
        squarer: &mut Squarer,
    ) -> std::result::Result<Made, String> {
        let options = self.options;
        let square = |pixels: &[u8]| {
            let whole = Frame::whole(pixels, width, height);
            (width != height).then(|| whole.central_square(options.side, options.resize).to_pixels())
        };
        if options.form == Form::Raw {
            return Ok(Made { square: square(&pixels), stored: pixels, width, height });
        }
        let stored = jpeg(&pixels, width, height)?;
        // The statistics are those of the pictures as they will be seen.
        squarer.give(pixels);
        let memory = &mut |bytes| squarer.take(bytes);
        let seen = decode_with(&stored, Exif::Ignore, &Gate::default(), memory)?.0.pixels;
        Ok(Made { square: Some(square(&seen).unwrap_or(seen)), stored, width, height })
    }
}

fn jpeg(pixels: &[u8], width: usize, height: usize) -> std::result::Result<Vec<u8>, String> {
    let side =
        |v: usize| u16::try_from(v).map_err(|_| format!("a side of {v} pixels is too long for a JPEG"));
    let mut bytes = Vec::with_capacity(pixels.len() / RAW_OVER_JPEG as usize);
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    let encoded = encoder.encode(pixels, side(width)?, side(height)?, jpeg_encoder::ColorType::Rgb);
    encoded.map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn png(picture: &Picture) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (w, h) = (picture.width as u32, picture.height as u32);
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    let encoded = encoder.write_image(&picture.pixels, w, h, image::ExtendedColorType::Rgb8);
    encoded.map_err(|e| e.to_string())?;
    Ok(bytes)
}
