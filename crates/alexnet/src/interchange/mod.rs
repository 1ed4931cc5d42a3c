//! Weights from elsewhere and for elsewhere.
//!
//! In: [`read`] tells the format of a file and reads it as [`foreign::Foreign`]: tensors that stay in the file until they
//! are wanted, and what it says about its network. [`recognise`] finds the network of the zoo that they belong to;
//! [`import`] makes a checkpoint of it, with the preprocessing that belongs to the weights. One file a format:
//! [`pth`], [`safetensors_file`], [`caffemodel`], [`onnx`]. All of them read hostile files too (`tests/hostile`).
//!
//! Out: [`export`], one file a format.
//!
//! Within the program: the convolutions of torchvision's AlexNet that ship with it ([`imagenet`]), the layers of an earlier
//! checkpoint ([`warm_start`]). Public weights over the network are the program's matter (`alexnet pull`).

pub mod caffemodel;
pub mod export;
pub mod foreign;
pub mod graph;
pub mod imagenet;
pub mod import;
pub mod onnx;
pub mod pth;
pub mod recognise;
pub mod safetensors_file;
pub mod warm_start;
pub mod wire;

use crate::error::{Error, Result};
use foreign::Foreign;

/// Which layers of a network received weights from elsewhere, and which start fresh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copied {
    /// Names of the layers whose weights and biases were copied, first to last.
    pub copied: Vec<String>,
    /// Names of the layers that keep their fresh weights, each with the reason.
    pub fresh: Vec<(String, String)>,
}

impl std::fmt::Display for Copied {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "copied: {}", self.copied.join(", "))?;
        if !self.fresh.is_empty() {
            let fresh: Vec<String> = self.fresh.iter().map(|(name, why)| format!("{name} ({why})")).collect();
            write!(f, "; fresh: {}", fresh.join(", "))?;
        }
        Ok(())
    }
}

/// A weight file, mapped into memory. It must not change while it is read.
#[derive(Debug)]
pub struct WeightFile {
    path: std::path::PathBuf,
    map: Option<memmap2::Mmap>,
}

impl WeightFile {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it cannot be read.
    pub fn open(path: &std::path::Path) -> Result<Self> {
        let fail = |why: String| Error::Checkpoint(format!("{}: {why}", path.display()));
        let about = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        if !about.is_file() {
            return Err(fail("is not a file".into()));
        }
        let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        // An empty file cannot be mapped.
        let map = match about.len() {
            0 => None,
            _ => Some(crate::data::map::map_file(&file).map_err(|e| fail(format!("cannot be read: {e}")))?),
        };
        Ok(WeightFile { path: path.to_path_buf(), map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Reads it, whatever its format.
    ///
    /// # Errors
    /// As [`read`], with the path.
    pub fn read(&self) -> Result<Foreign<'_>> {
        read(self.bytes()).map_err(|e| Error::Checkpoint(format!("{}: {e}", self.path.display())))
    }
}

/// Reads a weight file of any known format, which its first bytes tell.
///
/// # Errors
/// [`Error::Checkpoint`] with the format and what is wrong, or with what the file seems to be instead.
pub fn read(file: &[u8]) -> Result<Foreign<'_>> {
    let (words, result) = match file {
        [] => return Err(Error::Checkpoint("the file is empty".into())),
        [b'P', b'K', 3, 4, ..] => ("a PyTorch zip archive", pth::read_zip(file)),
        _ if pth::is_legacy(file) => ("a PyTorch file of before 1.6", pth::read_legacy(file)),
        _ if safetensors_file::is_one(file) => ("a safetensors file", safetensors_file::read(file)),
        // A model begins with its version number, a Caffe network with its name or a layer.
        [0x08, ..] => ("an ONNX file", onnx::read(file)),
        [0x0a | 0x12 | 0x1a | 0x22 | 0x42, ..] | [0xa2, 0x06, ..] => {
            ("a Caffe model", caffemodel::read(file))
        }
        _ => {
            let seems = match file {
                [0x89, b'H', b'D', b'F', ..] => "HDF5; Caffe also saves .caffemodel files, which are read",
                [0x80, 2..=5, ..] => {
                    "a bare pickle, which is never executed; save with torch.save(model.state_dict())"
                }
                [b'<', ..] => "a page of the web; the download went wrong",
                [b'P', b'K', ..] => "an empty or split zip archive",
                [0x1f, 0x8b, ..] => "compressed with gzip; unpack it first",
                _ => "of no format that is known here",
            };
            return Err(Error::Checkpoint(format!(
                "it seems to be {seems} (known: PyTorch .pth and .pt, safetensors, .caffemodel, .onnx)"
            )));
        }
    };
    result.map_err(|why| Error::Checkpoint(format!("it seems to be {words}: {why}")))
}
