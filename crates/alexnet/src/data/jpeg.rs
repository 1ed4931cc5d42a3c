//! Looking over a JPEG file before it is decoded: the decoder fills in what is missing with gray and says nothing,
//! and repeats its work for every scan that a file claims to have. The kinds of JPEG that no common decoder takes are
//! refused by name.

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// A progressive picture has about ten scans; each costs a pass over all coefficients.
const MAX_SCANS: usize = 100;

/// What a walk along the markers finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Walk {
    /// The end-of-image marker is there.
    Complete,
    /// The file ends within the first picture's data.
    NoEnd,
}

/// Walks along the markers of a JPEG file up to the end of its first picture.
///
/// # Errors
/// The reason to refuse the file: it ends within a header, or has too many scans.
pub fn walk(bytes: &[u8]) -> Result<Walk, String> {
    let mut at = 2;
    let mut scans = 0;
    // Between segments: find 0xFF, skip fill bytes, read the marker.
    while let Some(ff) = find_ff(bytes, at) {
        at = ff + 1;
        while bytes.get(at) == Some(&0xFF) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at) else { break };
        at += 1;
        match marker {
            0xD9 if scans > 0 => return Ok(Walk::Complete),
            // A stuffed zero, a restart, a lone marker: no segment follows.
            0x00 | 0x01 | 0xD0..=0xD9 => {}
            _ => {
                let Some(length) = bytes.get(at..at + 2) else { break };
                // The frame's head: every start of a frame but the tables' markers C4, C8 and CC.
                if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
                    check_frame(marker, bytes.get(at + 2).copied())?;
                }
                if marker == 0xDA {
                    scans += 1;
                    if scans > MAX_SCANS {
                        return Err(format!("a JPEG of more than {MAX_SCANS} scans, refused"));
                    }
                }
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
    if scans == 0 {
        Err("truncated: the file ends before the picture's data".into())
    } else {
        Ok(Walk::NoEnd)
    }
}

/// Whether the decoder takes this kind of frame (ITU T.81, table B.1): baseline, extended and progressive Huffman, of 8
/// bits a sample.
fn check_frame(marker: u8, bits: Option<u8>) -> Result<(), String> {
    let kind = match marker {
        0xC0..=0xC2 => match bits {
            Some(8) | None => return Ok(()),
            Some(bits) => format!("of {bits} bits a sample"),
        },
        0xC3 => "without loss (SOF3)".into(),
        0xC5..=0xC7 => format!("with hierarchical frames (SOF{})", marker - 0xC0),
        _ => format!("with arithmetic coding (SOF{})", marker - 0xC0),
    };
    Err(format!("a JPEG {kind}, which is not supported; convert it to an ordinary JPEG or PNG"))
}

fn find_ff(bytes: &[u8], from: usize) -> Option<usize> {
    // Runs without one are passed over by vectors.
    const RUN: usize = 32;
    let rest = bytes.get(from..)?;
    let has_one = |run: &[u8]| run.iter().fold(false, |any, &b| any | (b == 0xFF));
    let whole = rest.chunks_exact(RUN).take_while(|run| !has_one(run)).count() * RUN;
    rest[whole..].iter().position(|&b| b == 0xFF).map(|i| from + whole + i)
}

/// A JPEG file whose head has been read.
pub struct Head<'a>(JpegDecoder<ZCursor<&'a [u8]>>);

impl<'a> Head<'a> {
    /// Reads up to the picture's data.
    ///
    /// # Errors
    /// The reason.
    pub fn read(bytes: &'a [u8]) -> Result<Head<'a>, String> {
        // Sizes are the caller's to check. Gray becomes three equal channels, CMYK and YCCK are converted.
        let options = DecoderOptions::default()
            .jpeg_set_out_colorspace(ColorSpace::RGB)
            .set_strict_mode(false)
            .set_max_width(usize::MAX)
            .set_max_height(usize::MAX);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(|e| reason(&e))?;
        Ok(Head(decoder))
    }

    /// Width and height as they are stored.
    pub fn size_px(&self) -> (u32, u32) {
        self.0.info().map_or((0, 0), |info| (u32::from(info.width), u32::from(info.height)))
    }

    /// How the camera was held. A damaged EXIF block does not spoil the picture.
    pub fn orientation(&self) -> Orientation {
        let exif = self.0.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
        exif.unwrap_or(Orientation::NoTransforms)
    }

    /// RGB pixels, (height, width, 3), into a buffer of any length and contents.
    ///
    /// # Errors
    /// The reason.
    pub fn decode(mut self, pixels: &mut Vec<u8>) -> Result<(), String> {
        let (w, h) = self.size_px();
        // What a damaged file leaves out must not be what the buffer held before.
        pixels.clear();
        pixels.resize(w as usize * h as usize * 3, 0);
        self.0.decode_into(pixels).map_err(|e| reason(&e))
    }
}

fn reason(error: &zune_jpeg::errors::DecodeErrors) -> String {
    format!("a JPEG that cannot be decoded: {error}").replace(['\n', '\r'], " ")
}

/// The file with data that it does not have and an end marker after it. A picture that lacks nothing but its end
/// marker decodes to the same pixels whatever follows; one that is cut does not.
pub fn with_false_end(bytes: &[u8], filler: u8) -> Vec<u8> {
    let mut longer = Vec::with_capacity(bytes.len() + 4098);
    longer.extend_from_slice(bytes);
    // A last lone 0xFF would turn the filler into a marker.
    if longer.last() == Some(&0xFF) {
        longer.push(0);
    }
    longer.resize(longer.len() + 4096, filler);
    longer.extend_from_slice(&[0xFF, 0xD9]);
    longer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded() -> Vec<u8> {
        let pixels: Vec<u8> = (0..40 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let mut out = Vec::new();
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 90);
        encoder.encode(&pixels, 40, 40, image::ExtendedColorType::Rgb8).unwrap();
        out
    }

    #[test]
    fn the_end_is_found_or_missed() {
        let jpeg = encoded();
        assert_eq!(walk(&jpeg), Ok(Walk::Complete));
        assert_eq!(walk(&jpeg[..jpeg.len() - 2]), Ok(Walk::NoEnd));
        assert_eq!(walk(&jpeg[..jpeg.len() / 2]), Ok(Walk::NoEnd));
        assert!(walk(&jpeg[..100]).unwrap_err().contains("truncated"));
        let mut trailing = jpeg.clone();
        trailing.extend_from_slice(b"whatever follows");
        assert_eq!(walk(&trailing), Ok(Walk::Complete));
    }

    #[test]
    fn kinds_that_are_not_decoded_are_named() {
        let jpeg = encoded();
        let frame = (2..).find(|&i| jpeg[i..i + 2] == [0xFF, 0xC0]).unwrap();
        for (marker, word) in
            [(0xC9, "arithmetic"), (0xCA, "arithmetic"), (0xC3, "without loss"), (0xC5, "hier")]
        {
            let mut other = jpeg.clone();
            other[frame + 1] = marker;
            assert!(walk(&other).unwrap_err().contains(word), "{marker:x}");
        }
        let mut deep = jpeg.clone();
        deep[frame + 4] = 12;
        assert!(walk(&deep).unwrap_err().contains("12 bits a sample"));
    }

    #[test]
    fn no_length_panics() {
        let jpeg = encoded();
        for n in 0..jpeg.len() {
            let _ = walk(&jpeg[..n]);
        }
    }

    #[test]
    fn a_thousand_scans_are_refused() {
        let mut bytes = vec![0xFF, 0xD8];
        for _ in 0..1000 {
            bytes.extend_from_slice(&[0xFF, 0xDA, 0, 2, 1, 2, 3]);
        }
        assert!(walk(&bytes).unwrap_err().contains("scans"));
    }
}
