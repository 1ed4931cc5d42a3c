//! What a weight file from elsewhere holds, whatever its format: tensors that lie in the file's bytes and are turned
//! into f32 only when they are wanted, and the network if the file says which one it is.

use crate::error::{Error, Result};
use crate::net::Network;
use std::borrow::Cow;

/// The most tensors that a file may have; AlexNet has 16.
pub const MAX_TENSORS: usize = 4096;
/// The most axes that a tensor may have.
pub const MAX_AXES: usize = 8;
/// The longest name of a tensor or layer, bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// A format of weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PyTorch's zip archive (`torch.save` since 1.6).
    PthZip,
    /// PyTorch's row of pickles (`torch.save` before 1.6).
    PthLegacy,
    /// Hugging Face's safetensors.
    Safetensors,
    /// Caffe's binary network.
    Caffemodel,
    /// ONNX.
    Onnx,
    /// This program's own.
    Checkpoint,
}

impl Format {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Format::PthZip => "PyTorch (zip)",
            Format::PthLegacy => "PyTorch (legacy, before 1.6)",
            Format::Safetensors => "safetensors",
            Format::Caffemodel => "Caffe model",
            Format::Onnx => "ONNX",
            Format::Checkpoint => "checkpoint of this program",
        }
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// IEEE double.
    F64,
    /// Integers and truth values of this many bytes; never weights, but files have them.
    Integer(u8),
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F64 => 8,
            Dtype::Integer(bytes) => usize::from(bytes),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Dtype::F32 => f.write_str("f32"),
            Dtype::F16 => f.write_str("f16"),
            Dtype::Bf16 => f.write_str("bf16"),
            Dtype::F64 => f.write_str("f64"),
            Dtype::Integer(bytes) => write!(f, "int{}", 8 * usize::from(*bytes)),
        }
    }
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Little-endian elements, of which `strides` chooses.
    bytes: Cow<'a, [u8]>,
    /// The first element and the step of each axis, elements; `None` if they follow one another.
    strides: Option<(usize, Vec<usize>)>,
}

/// The product of sizes, or why there is none.
pub(super) fn elements(name: &str, shape: &[usize]) -> std::result::Result<usize, String> {
    if shape.len() > MAX_AXES {
        return Err(format!("tensor {}: {} axes", short(name), shape.len()));
    }
    // A size of 0 makes the product 0, but the other sizes must still be possible.
    let product = |n: usize, &size: &usize| n.checked_mul(size.max(1)).filter(|&n| n <= 1 << 40);
    match shape.iter().try_fold(1usize, product) {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(n) => Ok(n),
        None => Err(format!("tensor {}: the sizes {} are not possible", short(name), sizes(shape))),
    }
}

/// A name from a file as a message may show it.
pub(super) fn short(name: &str) -> String {
    const SHOWN: usize = 80;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_string(),
    }
}

/// Sizes as `64×3×11×11`.
pub fn sizes(shape: &[usize]) -> String {
    match shape {
        [] => "scalar".into(),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×"),
    }
}

impl<'a> ForeignTensor<'a> {
    /// A tensor whose elements are all of `bytes`, in order.
    ///
    /// # Errors
    /// Why the sizes are not those of `bytes`.
    pub fn new(
        name: String,
        shape: Vec<usize>,
        dtype: Dtype,
        bytes: Cow<'a, [u8]>,
    ) -> std::result::Result<Self, String> {
        check_name(&name)?;
        let needed = elements(&name, &shape)? * dtype.bytes();
        if needed != bytes.len() {
            return Err(format!(
                "tensor {}: {} of {dtype} need {needed} bytes, the file has {}",
                short(&name),
                sizes(&shape),
                bytes.len()
            ));
        }
        Ok(ForeignTensor { name, shape, dtype, bytes, strides: None })
    }

    /// A tensor that chooses elements of a storage: PyTorch's view of memory.
    ///
    /// # Errors
    /// Why it reaches beyond the storage, or has more elements than it.
    pub fn strided(
        name: String,
        shape: Vec<usize>,
        dtype: Dtype,
        storage: &'a [u8],
        offset: usize,
        strides: Vec<usize>,
    ) -> std::result::Result<Self, String> {
        check_name(&name)?;
        let count = elements(&name, &shape)?;
        let stored = storage.len() / dtype.bytes();
        let fail = |why: &str| Err(format!("tensor {}: {why}", short(&name)));
        if strides.len() != shape.len() {
            return fail("it has not one stride an axis");
        }
        if count > stored {
            return fail(&format!("{} elements of a storage of {stored}", count));
        }
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            size.saturating_sub(1).checked_mul(stride).and_then(|reach| last.checked_add(reach))
        });
        if count > 0 && last.is_none_or(|last| last >= stored) || offset > stored {
            return fail(&format!("it reaches beyond its storage of {stored} elements"));
        }
        let mut step = 1;
        let dense = shape.iter().zip(&strides).rev().all(|(&size, &stride)| {
            let fits = stride == step || size <= 1;
            step *= size.max(1);
            fits
        });
        if dense {
            let size = dtype.bytes();
            let bytes = Cow::Borrowed(&storage[offset * size..(offset + count) * size]);
            return Ok(ForeignTensor { name, shape, dtype, bytes, strides: None });
        }
        let strides = Some((offset, strides));
        Ok(ForeignTensor { name, shape, dtype, bytes: Cow::Borrowed(storage), strides })
    }

    /// The same elements with the two axes of a matrix exchanged.
    ///
    /// # Errors
    /// If there are not two axes, or the matrix is itself a view.
    pub fn transposed(&self) -> std::result::Result<Self, String> {
        // Only of bytes that lie in the file: a copy for every mention would grow without bounds.
        match (&self.shape[..], &self.strides, &self.bytes) {
            (&[rows, columns], None, &Cow::Borrowed(bytes)) => Ok(ForeignTensor {
                name: format!("{}{TURNED}", self.name),
                shape: vec![columns, rows],
                dtype: self.dtype,
                bytes: Cow::Borrowed(bytes),
                strides: Some((0, vec![1, columns])),
            }),
            _ => Err(format!("tensor {} is no plain matrix", short(&self.name))),
        }
    }

    /// Whether it is [`ForeignTensor::transposed`] of another, and not in the file itself.
    pub fn is_turned(&self) -> bool {
        self.name.ends_with(TURNED) && self.strides.is_some()
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as f32, last axis fastest.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if they are no floating-point numbers, or one is not finite.
    pub fn values(&self) -> Result<Vec<f32>> {
        let fail = |why: String| Error::Checkpoint(format!("tensor {} {why}", short(&self.name)));
        fn convert<const N: usize>(bytes: &[u8], to_f32: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|&b| to_f32(b)).collect()
        }
        let stored = match self.dtype {
            Dtype::F32 => convert(&self.bytes, f32::from_le_bytes),
            Dtype::F16 => convert(&self.bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => convert(&self.bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(&self.bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::Integer(_) => {
                return Err(fail(format!("has elements of type {}, no weights", self.dtype)));
            }
        };
        let values = match &self.strides {
            None => stored,
            Some((offset, strides)) => gather(&stored, &self.shape, *offset, strides),
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(fail(format!("has the value {} at element {at}", values[at]))),
            None => Ok(values),
        }
    }
}

/// What the name of an exchanged matrix ends with.
pub(super) const TURNED: &str = " (turned)";

fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("a tensor's name has {} bytes", name.len()));
    }
    Ok(())
}

/// The elements that `strides` choose, last axis fastest.
fn gather(stored: &[f32], shape: &[usize], offset: usize, strides: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    let mut at = offset;
    for _ in 0..count {
        values.push(stored[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= shape[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    values
}

/// The order of a picture's channels in the first convolution's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelOrder {
    /// Red first.
    Rgb,
    /// Blue first: OpenCV's, and so Caffe's.
    Bgr,
}

/// The network that a file describes, and which of its tensors belong to which layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// The layers in order. Names are the file's.
    pub net: Network,
    /// For each layer of `net` the index of its weights among the tensors, and of its biases.
    pub tensors: Vec<(Option<usize>, Option<usize>)>,
}

/// A weight file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign<'a> {
    /// Its format.
    pub format: Format,
    /// Its tensors, in the file's order.
    pub tensors: Vec<ForeignTensor<'a>>,
    /// The network, where the format describes one: as layers, or why they cannot be expressed here.
    pub graph: Option<std::result::Result<Graph, String>>,
    /// The order of channels, if the format decides it.
    pub channels: Option<ChannelOrder>,
    /// A network that this program wrote into the file, as TOML.
    pub network: Option<String>,
    /// Preprocessing that this program wrote into the file, as JSON.
    pub preprocess: Option<String>,
    /// Class names that this program wrote into the file, as JSON.
    pub classes: Option<String>,
    /// What else the file says about itself: a name, a producer, an epoch.
    pub about: Vec<(String, String)>,
}

impl<'a> Foreign<'a> {
    /// A file with tensors and nothing else yet.
    pub fn new(format: Format, tensors: Vec<ForeignTensor<'a>>) -> Self {
        Foreign {
            format,
            tensors,
            graph: None,
            channels: None,
            network: None,
            preprocess: None,
            classes: None,
            about: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn views_of_a_storage() {
        let storage = bytes(&[0., 1., 2., 3., 4., 5.]);
        let view = |shape: &[usize], offset, strides: &[usize]| {
            ForeignTensor::strided("t".into(), shape.into(), Dtype::F32, &storage, offset, strides.into())
        };
        assert_eq!(view(&[2, 3], 0, &[3, 1]).unwrap().values().unwrap(), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(view(&[3, 2], 0, &[1, 3]).unwrap().values().unwrap(), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(view(&[2, 2], 1, &[3, 1]).unwrap().values().unwrap(), [1., 2., 4., 5.]);
        assert_eq!(view(&[4], 2, &[0]).unwrap().values().unwrap(), [2.; 4]);
        assert_eq!(view(&[0, 7], 6, &[1, 1]).unwrap().values().unwrap(), Vec::<f32>::new());
        for (shape, offset, strides, word) in [
            (&[2, 3][..], 1, &[3, 1][..], "beyond"),
            (&[7], 0, &[0], "7 elements"),
            (&[2], 0, &[usize::MAX], "beyond"),
            (&[2, 2], 0, &[1], "one stride"),
            (&[usize::MAX, 2], 0, &[1, 1], "not possible"),
            (&[0], 7, &[1], "beyond"),
        ] {
            let error = view(shape, offset, strides).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn types_become_f32() {
        let tensor = |dtype, bytes: &[u8]| {
            let n = bytes.len() / Dtype::bytes(dtype);
            ForeignTensor::new("t".into(), vec![n], dtype, bytes.to_vec().into()).unwrap().values()
        };
        assert_eq!(tensor(Dtype::F16, &half::f16::from_f32(-1.5).to_le_bytes()).unwrap(), [-1.5]);
        assert_eq!(tensor(Dtype::Bf16, &half::bf16::from_f32(3.0).to_le_bytes()).unwrap(), [3.0]);
        assert_eq!(tensor(Dtype::F64, &0.25f64.to_le_bytes()).unwrap(), [0.25]);
        assert!(tensor(Dtype::Integer(8), &[0; 8]).unwrap_err().to_string().contains("no weights"));
        assert!(tensor(Dtype::F32, &f32::NAN.to_le_bytes()).unwrap_err().to_string().contains("NaN"));
        let short = ForeignTensor::new("t".into(), vec![3], Dtype::F32, vec![0; 8].into());
        assert!(short.unwrap_err().contains("need 12 bytes, the file has 8"));
    }
}
